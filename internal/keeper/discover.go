package keeper

import (
	"context"
	"errors"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// await starts the discovery of a domain and waits for it, at most for the lookup
// time-out; the discovery then goes on. unreadable means that a policy may be
// stored but cannot be read: mail waits until a fetch succeeds.
func (k *Keeper) await(ctx context.Context, domain string, unreadable bool, h *Held) error {
	waiting, cancel := context.WithTimeout(ctx, k.o.LookupTimeout)
	defer cancel()
	fl, err := k.runOrJoin(waiting, domain, k.discover)
	switch {
	case err == nil && fl.entry != nil:
		h.set(&fl.entry.hit, fl.entry)
		return nil
	case err == nil:
		err = fl.err
	case errors.Is(err, ErrBrokenOff), ctx.Err() != nil:
		err = ErrBrokenOff
	default:
		k.counters.add(&k.counters.DiscoveryTimeouts, 1)
		err = ErrNoPolicy // the domain's DNS or policy host is slow (RFC 8461, 3.3)
		if fl.waited.Load() {
			err = ErrOurFault
		}
	}
	if unreadable {
		return ErrUnreadable
	}
	return err
}

// current reads the newest record of a domain, with a match list of today's rule.
// A text that this version does not understand counts as damaged.
func (k *Keeper) current(domain string) (*cache.Record, error) {
	r, err := k.Get(domain)
	if err == nil && !k.o.MatchListCurrent(r.Match) {
		var p *policy.Policy
		if p, err = policy.Parse(r.Text); err == nil {
			r.Match = k.o.MatchList(p)
		}
	}
	if err != nil {
		return nil, err
	}
	return &r, nil
}

// look returns the live policy held for a domain, or nil. unreadable means that
// a policy may be held but cannot be read.
func (k *Keeper) look(domain string) (r *cache.Record, unreadable bool) {
	r, err := k.current(domain)
	if err != nil {
		return nil, !errors.Is(err, cache.ErrNotFound)
	}
	if k.o.Now().Unix() >= liveUntil(r.Fetched.Unix(), r.Expires.Unix()) {
		return nil, false
	}
	return r, false
}

// discover is a discovery from its first packet to the disk (RFC 8461, 3.3).
func (k *Keeper) discover(fl *flight) {
	domain := fl.domain
	defer k.flights.end(fl)
	defer k.recoverPanic("discovery", domain)
	fl.tried = true
	// Another discovery may have found a policy since the lookup read the store. A
	// failure of this discovery must not hide that policy.
	held, unreadable := k.look(domain)
	if held != nil {
		fl.found(k.entryOf(held), held, false)
		return
	}
	begun := time.Now()
	id, found, err := k.ask(fl)
	if err != nil && k.life.Err() != nil {
		fl.err = ErrBrokenOff
		return // the daemon ends; nothing was learned
	}
	k.health.noteRecord(domain, err)
	k.health.noteFetch(domain, err)
	event := Event{Step: StepDiscovery, Domain: domain, Result: policy.ResultOf(err), Err: err, Took: time.Since(begun)}
	if err != nil {
		switch {
		case unreadable:
			fl.err = ErrUnreadable
		case !policy.OurFault(err):
			fl.err = ErrNoPolicy
		}
		fl.outcome = Refreshed{Domain: domain, Result: event.Result, Err: policy.Reason(err)}
		k.remember(domain, unreadable, err)
		k.o.Observe(event)
		return
	}
	now := k.o.Now()
	r := &cache.Record{Domain: domain, ID: id, Checked: now, Used: now}
	k.take(r, found, now)
	draw(r)
	schedule(r, now, k.o.UnusedAfter)
	k.store(fl, r, false)
	fl.found(k.entryOf(r), r, true)
	event.Mode, event.Changed = r.Mode, true
	k.o.Observe(event)
	if k.mayLog(k.strangerLines) {
		k.o.Log.Info("MTA-STS policy found", "domain", domain, "mode", r.Mode.String(), "id", r.ID,
			"max_age", found.Policy.MaxAge, "mx", len(found.Policy.MX))
	}
}

// found notes the live policy with which a flight ends.
func (fl *flight) found(e *Entry, r *cache.Record, changed bool) {
	fl.entry = e
	fl.outcome = Refreshed{Domain: r.Domain, Result: policy.ResultOK, Mode: r.Mode.String(), ID: r.ID, Changed: changed}
}

// ask asks for the record and then fetches the policy. The discovery counts as a
// question until the policy host's addresses are known, and then as a fetch.
func (k *Keeper) ask(fl *flight) (id string, found *policy.Fetched, err error) {
	ctx, evict, cancel := k.attempt()
	defer cancel()
	done, err := k.questions.ask(ctx, fl.domain, evict, &fl.waited)
	if err != nil {
		return "", nil, k.blame(ctx, fl, err)
	}
	defer done()
	record, _, err := k.o.Network.Record(ctx, fl.domain)
	if err == nil {
		g := &gate{limiter: k.lookups, within: k.o.LookupTimeout, arrive: done, evict: evict, waited: &fl.waited}
		found, err = k.o.Network.Fetch(ctx, fl.domain, g)
	}
	return record.ID, found, k.blame(ctx, fl, err)
}

// attempt returns the context of a discovery or a refresh, and a function that
// ends the attempt to make room for another one.
func (k *Keeper) attempt() (ctx context.Context, evict, cancel func()) {
	ctx, cancel = context.WithTimeout(k.life, k.o.FetchTimeout+k.o.LookupTimeout+discoverySteps)
	ctx, end := context.WithCancelCause(ctx)
	return ctx, func() { end(errEvicted) }, cancel
}

// blame turns err into our own fault if the attempt was evicted, or if it waited
// for a place and then ran out of time.
func (k *Keeper) blame(ctx context.Context, fl *flight, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(context.Cause(ctx), errEvicted) || fl.waited.Load() && errors.Is(err, policy.ErrTimeout) {
		err = &policy.Error{Domain: fl.domain, Result: policy.ResultBusy, Err: errEvicted}
	}
	if policy.ResultOf(err) == policy.ResultBusy {
		k.counters.add(&k.counters.Overloads, 1)
	}
	return err
}

// take puts a fetched policy into a record.
func (k *Keeper) take(r *cache.Record, found *policy.Fetched, now time.Time) {
	r.Mode, r.Text, r.Match = found.Policy.Mode, found.Text, k.o.MatchList(found.Policy)
	r.Fetched, r.Expires = now, now.Add(found.Policy.MaxAge)
	r.Failures, r.FailedAt, r.LastError = 0, time.Time{}, ""
	r.Slow = found.Duration > slowFetch
}
