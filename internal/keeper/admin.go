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

// What the administrator sees and does.

// Refreshed is what came of a refresh.
type Refreshed struct {
	Domain  string        `json:"domain"`
	Result  policy.Result `json:"result"`
	Mode    string        `json:"mode,omitempty"` // of the policy now held
	ID      string        `json:"id,omitempty"`
	Changed bool          `json:"changed"` // the text is another than before
	Err     string        `json:"error,omitempty"`
}

// Get returns the record of a domain, cache.ErrNotFound if none is held. An
// expired one is returned too.
func (k *Keeper) Get(domain string) (cache.Record, error) {
	if r, found := k.writer.record(domain); found {
		if r == nil {
			return cache.Record{}, cache.ErrNotFound
		}
		return *r, nil
	}
	return k.o.Store.Get(domain)
}

// List returns up to limit records in the order of their domains, beginning
// after the domain given. What waits for the disk is included. next is the
// domain to go on after, empty at the end of the list; a page may be empty before.
func (k *Keeper) List(after string, limit int) (page []cache.Record, next string, err error) {
	limit = min(max(limit, 1), cache.MaxPage)
	page, next, err = k.o.Store.List(after, limit)
	if err != nil || k.writer.lates.Load() == 0 {
		return page, next, err
	}
	byDomain := make(map[string]cache.Record, len(page))
	for _, r := range page {
		byDomain[r.Domain] = r
	}
	for _, p := range k.writer.lateBetween(after, next) {
		if p.record == nil {
			delete(byDomain, p.domain)
		} else {
			byDomain[p.domain] = *p.record
		}
	}
	page = slices.SortedFunc(maps.Values(byDomain), func(a, b cache.Record) int { return strings.Compare(a.Domain, b.Domain) })
	if len(page) > limit {
		page = page[:limit]
		next = page[limit-1].Domain
	}
	return page, next, nil
}

// lateBetween returns the late changes after a domain and up to another; an
// empty upTo is no bound.
func (w *writer) lateBetween(after, upTo string) []*pending {
	w.mu.Lock()
	defer w.mu.Unlock()
	var found []*pending
	for _, p := range w.byName {
		if p.late && p.domain > after && (upTo == "" || p.domain <= upTo) {
			found = append(found, p)
		}
	}
	return found
}

// Refresh checks and fetches a domain's policy now, or discovers it if none
// is held. It waits until that is done or ctx ends.
func (k *Keeper) Refresh(ctx context.Context, domain string) (Refreshed, error) {
	return k.fly(ctx, domain, k.refreshNow)
}

// fly has do done for a domain, or joins what is under way for it. It waits for
// the outcome, or until ctx ends; do goes on after that, and ends its flight.
func (k *Keeper) fly(ctx context.Context, domain string, do func(string, *flight)) (Refreshed, error) {
	for {
		fl, mine := k.flights.join(domain)
		if mine {
			k.wg.Go(func() { do(domain, fl) })
		}
		select {
		case <-fl.done:
		case <-ctx.Done():
			return Refreshed{}, ctx.Err()
		case <-k.life.Done():
			return Refreshed{}, context.Canceled
		}
		if mine || fl.outcome.Domain != "" {
			return fl.outcome, nil
		}
	}
}

func (k *Keeper) refreshNow(domain string, fl *flight) {
	now := time.Now()
	r, err := k.held(domain, now)
	if err != nil || !isLive(r, now) {
		k.discover(domain, fl)
		return
	}
	defer k.flights.end(domain, fl)
	defer k.survive("refresh", domain)
	// "-refresh all" of a large cache must not ask faster than allowed.
	if k.fetch.limit.Wait(k.life) != nil {
		return
	}
	if _, ok := k.refetch(k.life, k.lookupGate, r, fl); ok {
		k.store(r)
	}
}

// Forget drops a domain from the cache, and what is remembered of failures.
// A discovery or a fetch under way ends first, so that what it finds does not
// come after. It returns once that is on disk, and says whether a policy was
// held, and whether a failure to find one was remembered.
func (k *Keeper) Forget(ctx context.Context, domain string) (held, failure bool, err error) {
	fl := k.flights.alone(ctx, domain)
	if fl == nil {
		return false, false, ctx.Err()
	}
	defer k.flights.end(domain, fl)
	_, failure = k.Negative(domain)
	_, err = k.Get(domain)
	inMemory := k.unkept(domain) != nil // where the store had no room, it is nowhere else
	held = err == nil || isDamaged(err) || inMemory
	if err != nil && !held && !errors.Is(err, cache.ErrNotFound) {
		return false, false, err
	}
	p := &pending{domain: domain}
	if err := k.writer.write(p); err != nil {
		return held, failure, err
	}
	k.publish(p)
	if isClosed(p.done) {
		return held, failure, nil
	}
	return held, failure, errors.New("forgotten in memory, but not on disk yet: it is slow or full")
}

// ForgetFailures drops what is remembered of domains without a policy, and
// returns how many they were. A discovery under way may still leave one.
func (k *Keeper) ForgetFailures() int { return k.negative.clear(time.Now()) }
