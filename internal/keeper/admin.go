package keeper

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// This file: what the administrator sees and does.

// Refreshed is what came of a refresh.
type Refreshed struct {
	Domain  string        `json:"domain"`
	Result  policy.Result `json:"result"`
	Mode    string        `json:"mode,omitempty"` // of the policy now held
	ID      string        `json:"id,omitempty"`
	Changed bool          `json:"changed"` // the text is another than before
	Err     string        `json:"error,omitempty"`
}

// Get returns the record of a domain, also an expired record and a record that is
// not on disk. The error is cache.ErrNotFound if no record is held.
func (k *Keeper) Get(domain string) (cache.Record, error) {
	r, err := k.newest(domain)
	if err == nil {
		stored, e := k.o.Store.Get(domain)
		if e == nil && !isNewer(&r, &stored) {
			r.NotOnDisk = ""
		}
	}
	return r, err
}

// newest returns the newest record of a domain, wherever it is.
func (k *Keeper) newest(domain string) (cache.Record, error) {
	if r, _, ok := k.writer.pending([]byte(domain)); ok {
		if r == nil {
			return cache.Record{}, cache.ErrNotFound
		}
		waits := *r
		waits.NotOnDisk = waitsForDisk
		return waits, nil
	}
	r, err := k.o.Store.Get(domain)
	if errors.Is(err, cache.ErrNotFound) {
		if e := k.memory.get(k.hash(domain), []byte(domain)); e != nil {
			return e.record(), nil
		}
	}
	return r, err
}

// isNewer says whether a policy is another than the stored one, in whole seconds as
// they are stored.
func isNewer(r, stored *cache.Record) bool { return r.Fetched.Unix() != stored.Fetched.Unix() }

// List returns up to limit records in the order of their domains, from the first
// one after the given domain. Records that are not on disk are included. next is the
// domain to continue after, empty at the end of the list. A page before the end may
// be empty.
func (k *Keeper) List(after string, limit int) (page []cache.Record, next string, err error) {
	limit = min(max(limit, 1), cache.MaxPage)
	// Read before the store: what is committed in between would be in neither.
	pending, unstored := k.writer.pendingAfter(after), k.memory.unstoredAfter(after)
	page, next, err = k.o.Store.List(after, limit)
	if err != nil || len(pending)+len(unstored) == 0 {
		return page, next, err
	}
	inPage := func(domain string) bool { return next == "" || domain <= next }
	byDomain := make(map[string]cache.Record, len(page))
	for _, r := range page {
		byDomain[r.Domain] = r
	}
	for domain, r := range pending {
		stored := byDomain[domain]
		if delete(byDomain, domain); r != nil && inPage(domain) {
			waits := *r
			if waits.NotOnDisk = ""; isNewer(r, &stored) {
				waits.NotOnDisk = waitsForDisk
			}
			byDomain[domain] = waits
		}
	}
	for _, e := range unstored {
		_, listed := byDomain[e.domain]
		if _, waits := pending[e.domain]; !listed && !waits && inPage(e.domain) {
			byDomain[e.domain] = e.record()
		}
	}
	page = slices.SortedFunc(maps.Values(byDomain), func(a, b cache.Record) int { return strings.Compare(a.Domain, b.Domain) })
	if len(page) > limit {
		page, next = page[:limit], page[limit-1].Domain
	}
	return page, next, nil
}

// Refresh checks and fetches a domain's policy now, or discovers it if none
// is held. It waits until that is done or ctx ends.
func (k *Keeper) Refresh(ctx context.Context, domain string) (Refreshed, error) {
	fl, err := k.runOrJoin(ctx, domain, func(fl *flight) {
		r, _ := k.look(domain)
		if r == nil {
			k.discover(fl)
			return
		}
		defer k.flights.end(fl)
		defer k.recoverPanic("refresh", domain)
		k.fetchHeld(r, k.o.LookupTimeout, fl, true)
	})
	if err != nil {
		return Refreshed{}, err
	}
	return fl.outcome, nil
}

// Forget deletes the policy of a domain and its negative result. It waits for a
// discovery or fetch under way, whose policy would otherwise be stored afterwards.
// It returns when the deletion is on disk, and says whether a policy was held and
// whether a negative result was.
func (k *Keeper) Forget(ctx context.Context, domain string) (held, failure bool, err error) {
	if k.o.Fleet != nil {
		defer k.o.Fleet.Forgot(domain)
	}
	return k.forget(ctx, domain, time.Time{})
}

// forget drops what is held of a domain, unless it was fetched after a time; zero: always.
func (k *Keeper) forget(ctx context.Context, domain string, unlessAfter time.Time) (held, failure bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, k.o.LookupTimeout)
	defer cancel()
	fl := k.flights.beginExclusive(ctx, domain)
	if fl == nil {
		return false, false, errors.New("not forgotten: a fetch of it does not end, or the disk is slow or full")
	}
	defer k.flights.end(fl)
	_, failure = k.Negative(domain)
	r, err := k.newest(domain)
	if err == nil && !unlessAfter.IsZero() && r.Fetched.After(unlessAfter) {
		return true, failure, nil
	}
	held = !errors.Is(err, cache.ErrNotFound) // one that cannot be read is held
	onDisk, err := k.write(domain, nil, false)
	if err != nil {
		return held, failure, err
	}
	k.negative.drop(k.hash(domain))
	k.memory.forget(k.hash(domain))
	if !onDisk {
		err = errors.New("forgotten in memory, but not on disk yet: it is slow or full")
	}
	return held, failure, err
}
