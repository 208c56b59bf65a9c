package keeper

import (
	"context"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
)

// This file: what a lookup of a held policy leads to in the background, a write
// of its use and a look at its TXT record.

// noteLookup queues the domain if its use is to be written or its TXT record to be
// checked. If the queue is full, a later lookup tries again.
func (k *Keeper) noteLookup(e *Entry, now int64) {
	used, unchecked := e.used.Load(), k.isUnchecked(e.checked.Load(), now)
	if !unchecked && !isUnused(used, e.hit.Fetched, now) || !k.enqueueAttention(e.domain) {
		return
	}
	if e.used.Store(now); unchecked {
		e.checked.Store(now)
	}
}

// isUnused says whether the last known use is not after the last fetch, or older
// than a day.
func isUnused(used, fetched, now int64) bool {
	return used <= fetched && fetched < now || now-used > int64(oneDay/time.Second)
}

// isUnchecked says whether the last TXT check is older than Recheck, or in the
// future: made while the clock was ahead.
func (k *Keeper) isUnchecked(checked, now int64) bool {
	return now-checked >= int64(k.o.Recheck/time.Second) || checked > now
}

// enqueueAttention says whether there was room.
func (k *Keeper) enqueueAttention(domain string) bool {
	if len(k.attention) < maxAttention && k.attentionRate.Allow() {
		select {
		case k.attention <- domain:
			return true
		default:
		}
	}
	k.counters.add(&k.counters.RechecksDropped, 1)
	return false
}

// attend works off the queue until ctx ends. It writes uses, and asks for TXT
// records: a domain that moves its mail is followed at the next retry (RFC 8461,
// 5.1). Those that are slow to answer do not hold up the uses of others.
func (k *Keeper) attend(ctx context.Context) {
	rechecking := make(chan struct{}, maxRechecks)
	for {
		var domain string
		select {
		case <-ctx.Done():
			return
		case domain = <-k.attention:
		}
		now, hash := k.o.Now(), k.hash(domain)
		r, err := k.newest(domain)
		if err != nil {
			continue
		}
		if isUnused(r.Used.Unix(), r.Fetched.Unix(), now.Unix()) {
			k.writeUse(domain, now)
		}
		last, _ := k.rechecked.Get(hash)
		if !k.isUnchecked(r.Checked.Unix(), now.Unix()) || now.Sub(last).Abs() < k.o.Recheck {
			continue
		}
		select {
		case rechecking <- struct{}{}:
			k.rechecked.Add(hash, now)
			k.wg.Go(func() {
				defer func() { <-rechecking }()
				k.recheck(&r)
			})
		default:
			k.counters.add(&k.counters.RechecksDropped, 1)
		}
	}
}

// recheck asks for the TXT record of a held policy, and fetches the policy if the
// id is another, or if it was fetched by a clock that was ahead.
func (k *Keeper) recheck(r *cache.Record) {
	defer k.recoverPanic("recheck", r.Domain)
	k.counters.add(&k.counters.Rechecks, 1)
	ctx, cancel := context.WithTimeout(k.life, discoverySteps)
	defer cancel()
	release, ours := k.mayCheck(ctx, r)
	if !ours {
		return
	}
	record, err := k.checkRecord(ctx, r)
	if err != nil {
		release() // another relay may see it
	}
	if now := k.o.Now(); r.Fetched.Sub(now) > clockSlack || err == nil && isNews(r, record.ID, now) {
		k.fetchNow(ctx, r.Domain, record.ID, true)
	}
}

func (k *Keeper) writeUse(domain string, now time.Time) {
	defer k.recoverPanic("use", domain)
	fl, mine := k.flights.join(domain)
	if !mine {
		return // a later lookup tries again
	}
	defer k.flights.end(fl)
	if r, err := k.current(domain); err == nil {
		noteUse(r, now)
		schedule(r, now, k.o.UnusedAfter)
		k.store(r, true)
	}
}

// isNews says whether an id calls for a fetch: it is another than the known
// ones, and no fetch has failed in the last five minutes (RFC 8461, 3.3).
func isNews(r *cache.Record, id string, now time.Time) bool {
	return id != r.ID && id != r.PendingID && now.Sub(r.FailedAt).Abs() >= firstBackoff
}

// fetchNow fetches a policy before it is due, or takes the fleet's newer one. id is the
// new one; empty: there is another reason. Unless always is set, it fetches only if the
// fleet has another policy. A fetch less than ten minutes ago puts it off.
func (k *Keeper) fetchNow(ctx context.Context, domain, id string, always bool) {
	fl := k.flights.beginExclusive(ctx, domain)
	if fl == nil {
		return
	}
	defer k.flights.end(fl)
	r, err := k.current(domain)
	now := k.o.Now()
	if err != nil || id != "" && id == r.ID {
		return
	}
	found := k.newsOf(fl, r)
	if found == newsAdopted || found == newsNone && !always {
		return
	}
	last, _ := k.fetched.Get(k.hash(domain))
	if at := last.Add(minFetchInterval); now.Before(at) && now.After(last) {
		fetchAt(r, at)
		schedule(r, now, k.o.UnusedAfter)
		k.store(r, true)
		return
	}
	if found == newsOther || k.mayFetch(r) {
		k.fetchHeld(r, 0, fl, false)
	}
}
