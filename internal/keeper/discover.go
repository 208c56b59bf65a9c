package keeper

import (
	"context"
	"errors"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// await has a domain's policy discovered and waits for it, for the lookup
// time-out at most. The discovery goes on after that. damaged says that a
// policy was held that cannot be read: until one is fetched, mail waits.
func (k *Keeper) await(ctx context.Context, domain string, damaged bool, h *Held) error {
	none, brokenOff := ErrNoPolicy, ErrBrokenOff
	if damaged {
		none, brokenOff = ErrUnreadable, ErrUnreadable
	}
	timer := time.NewTimer(k.o.LookupTimeout)
	defer timer.Stop()
	for k.life.Err() == nil {
		fl, mine := k.flights.begin(domain, maxFlights*k.o.LookupConcurrency)
		switch {
		case fl == nil:
			k.turnAway(domain, damaged)
			return none
		case mine:
			k.wg.Go(func() { k.discover(domain, fl) })
		}
		select {
		case <-fl.done:
		case <-timer.C:
			k.counters.discoveryTimeouts.Add(1)
			return none
		case <-ctx.Done():
			return brokenOff
		case <-k.life.Done():
			return brokenOff
		}
		switch {
		case fl.entry != nil:
			h.fromEntry(fl.entry)
			return nil
		case !mine && !fl.tried:
			continue // the refresher looked and left it alone
		case damaged:
			return ErrUnreadable // whatever the flight we joined was for
		}
		return fl.err
	}
	return brokenOff
}

// A hold is what the store has of a domain when its discovery begins.
type hold uint8

const (
	holdNothing hold = iota // no policy that lives
	holdLive                // one that does
	holdDamaged             // one that cannot be read: mail waits until it is fetched again
	holdUnknown             // it cannot be told: that counts as nothing, but not for long
)

// look says what is held of a domain now. The record is also returned if it has
// expired.
func (k *Keeper) look(domain string, now time.Time) (*cache.Record, hold) {
	r, err := k.held(domain, now)
	switch {
	case isDamaged(err):
		return nil, holdDamaged
	case errors.Is(err, cache.ErrNotFound):
		return nil, holdNothing
	case err != nil:
		return nil, holdUnknown
	case !isLive(r, now):
		return r, holdNothing
	}
	return r, holdLive
}

// discover is a discovery from its first packet to the disk (RFC 8461, 3.3).
func (k *Keeper) discover(domain string, fl *flight) {
	begun := time.Now()
	ctx, cancel := context.WithTimeout(k.life, k.o.FetchTimeout+k.o.LookupTimeout+discoverySteps)
	defer cancel()
	defer k.flights.end(domain, fl)
	defer k.survive("discovery", domain)

	fl.tried = true
	// Another discovery may have ended since the lookup looked. A failure of
	// this one must not hide what that one has found.
	known, held := k.look(domain, begun)
	switch held {
	case holdLive:
		fl.entry = k.entryOf(known)
		fl.outcome = Refreshed{Domain: domain, Result: policy.ResultOK, Mode: known.Mode.String(), ID: known.ID}
		return
	case holdDamaged:
		fl.err = ErrUnreadable
	}
	k.counters.discoveries.Add(1)
	record, found, err := k.find(ctx, domain)
	if ctx.Err() != nil && k.life.Err() != nil {
		if held != holdDamaged {
			fl.err = ErrBrokenOff
		}
		return // the daemon ends; nothing was learned
	}
	result := policy.ResultOf(err)
	if result == policy.ResultBusy {
		k.counters.overloads.Add(1)
	}
	k.health.note(domain, err, time.Now())
	event := Event{Step: StepDiscovery, Domain: domain, Result: result, Err: err, Took: time.Since(begun)}
	if err != nil {
		k.remember(domain, known, held, err)
		k.o.Observe(event)
		fl.outcome = Refreshed{Domain: domain, Result: result, Err: policy.Reason(err)}
		return
	}
	event.Mode, event.Changed = found.Policy.Mode, true
	now := time.Now()
	r := k.newRecord(domain, record, found, now)
	k.store(r)
	fl.entry = k.entryOf(r)
	fl.outcome = Refreshed{Domain: domain, Result: policy.ResultOK, Mode: r.Mode.String(), ID: r.ID, Changed: true}
	k.o.Observe(event)
	if !k.mayLog(k.strangersLines) {
		return
	}
	k.o.Log.Info("MTA-STS policy found", "domain", domain, "mode", r.Mode.String(), "id", r.ID,
		"max_age", found.Policy.MaxAge, "mx", len(found.Policy.MX))
}

// remember keeps the news that no policy was found: for as long as the DNS
// says, or, after a failure, five minutes and longer with repetition. One that
// was not tried for want of a turn has not failed. known is a policy that has
// expired; nil if there is none.
func (k *Keeper) remember(domain string, known *cache.Record, held hold, err error) {
	now := time.Now()
	hash := k.hash(domain)
	damaged := held == holdDamaged
	n := &Negative{Domain: domain, Result: policy.ResultOf(err), Err: policy.Reason(err), damaged: damaged}
	if known != nil {
		n.heldUntil = liveUntil(known.Fetched.Unix(), known.Expires.Unix())
	}
	n.failures = k.negative.failures(hash, domain)
	keep := min(max(ttlOf(err), minNegative), maxNegativeTTL)
	switch n.Result {
	case policy.ResultNoRecord:
		n.failures = 0
		if damaged {
			keep = max(keep, firstBackoff)
		}
	case policy.ResultBusy:
		keep = minNegative
	default:
		n.failures++
		keep = max(keep, k.timing().backoff(n.failures))
	}
	if held == holdUnknown {
		keep = minNegative // the store repairs itself, and may have a policy yet
	}
	n.Until = now.Add(keep)
	if n.Result != policy.ResultNoRecord {
		k.logFailure(n)
	}
	k.negative.put(hash, n)
}

func ttlOf(err error) time.Duration {
	var pe *policy.Error
	if errors.As(err, &pe) {
		return pe.TTL
	}
	return 0
}

// newRecord makes the record of a policy found for the first time.
func (k *Keeper) newRecord(domain string, record policy.Record, found *policy.Fetched, now time.Time) *cache.Record {
	r := &cache.Record{Domain: domain, ID: record.ID, Checked: now, Used: now}
	k.take(r, found, now)
	t := k.timing()
	t.drawFetch(r)
	t.drawCheck(r, now)
	t.schedule(r, now, false)
	return r
}

// take puts a fetched policy into a record.
func (k *Keeper) take(r *cache.Record, found *policy.Fetched, now time.Time) {
	r.Mode = found.Policy.Mode
	r.Text = found.Text
	r.Ready = k.o.Prepare(found.Policy)
	r.Fetched, r.Expires = now, now.Add(found.Policy.MaxAge)
	r.Failures, r.FailedAt, r.LastError = 0, time.Time{}, ""
	r.Slow = found.Duration > slowFetch
}

func (k *Keeper) timing() timing {
	return timing{interval: k.o.Interval, unusedAfter: k.o.UnusedAfter, watching: k.begun, random: k.random}
}
