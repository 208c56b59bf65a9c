package keeper

import (
	"context"
	"errors"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
)

// wantRecheck has a domain's TXT record looked at, since a lookup found its
// policy unchecked for a while: a domain that has moved its mail is followed
// at the next retry, not a day later (RFC 8461, 5.1).
//
// It is done in the check line's slots and at its rate, so that lookups cannot
// make it ask more than an administrator allows.
func (k *Keeper) wantRecheck(hash uint64, domain []byte, now, seconds int64) {
	if k.check.full() { // before the claim, so that a later lookup may try
		k.counters.rechecksDropped.Add(1)
		return
	}
	if k.rechecks.claim(hash, now, seconds) && !k.check.hurry(string(domain)) {
		k.counters.rechecksDropped.Add(1)
	}
}

// strayed says whether a policy that is asked for is out of reach of the
// refresher: left to expire, since nobody had asked for it in a long time;
// fetched when the clock was ahead, so that it would be due in the future only;
// or overdue for so long that the store's index may have lost it.
func (k *Keeper) strayed(r *cache.Record, now time.Time) bool {
	return now.Sub(r.Used) > k.o.UnusedAfter || r.Fetched.Sub(now) > ClockSlack || now.Sub(r.Due) > lostAfter
}

// recheck writes nothing: what it saw is forgotten but for a changed id, or
// what else makes a fetch due.
func (k *Keeper) recheck(ctx context.Context, domain string) {
	k.counters.rechecks.Add(1)
	r, err := k.Get(domain)
	if errors.Is(err, cache.ErrNotFound) {
		k.recheckUnkept(ctx, domain)
	}
	if err != nil {
		return
	}
	if now := time.Now(); k.strayed(&r, now) && !failedLately(&r, now) {
		k.fetchSoon(domain)
		return
	}
	record, err := k.seeRecord(ctx, &r)
	if err == nil && k.isNews(&r, record.ID, time.Now()) {
		k.fetchSoon(domain)
	}
}

// recheckUnkept is recheck for a policy for which the store had no room. The
// refresher, which goes by the store, never comes to it: it is the lookups that
// have it followed, and fetched when its time has come.
func (k *Keeper) recheckUnkept(ctx context.Context, domain string) {
	e := k.unkept(domain)
	if e == nil {
		return
	}
	if time.Now().Unix() >= e.fetchAt {
		k.fetchSoon(domain)
		return
	}
	record, err := k.seeRecord(ctx, &cache.Record{Domain: domain, Mode: e.Mode})
	if err == nil && record.ID != e.id {
		k.fetchSoon(domain)
	}
}

// unkept returns what memory has of a domain that is not in the store.
func (k *Keeper) unkept(domain string) *Entry {
	e, _ := k.table.get(k.hash(domain), []byte(domain))
	return e
}
