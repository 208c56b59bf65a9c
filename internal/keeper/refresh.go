package keeper

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// fetchDue fetches the policy of a domain that is due.
func (k *Keeper) fetchDue(domain string) {
	defer k.recoverPanic("refresh", domain)
	// A flight under way may be no fetch: a use may be on its way to the disk.
	ctx, cancel := context.WithTimeout(k.life, 2*commitEvery)
	defer cancel()
	fl := k.flights.beginExclusive(ctx, domain)
	if fl == nil {
		return
	}
	r, err := k.current(domain)
	_, failed := k.Negative(domain)
	if err != nil && !errors.Is(err, cache.ErrNotFound) && !failed && k.fetchRate.Wait(k.life) == nil {
		k.counters.add(&k.counters.StoreErrors, 1)
		k.discover(fl) // an unreadable policy is fetched anew
		return
	}
	defer k.flights.end(fl)
	if err != nil {
		return
	}
	now := k.o.Now()
	due := r.Due
	if schedule(r, now, k.o.UnusedAfter); !r.Due.IsZero() && !r.Due.After(now) {
		if !r.Used.After(r.Fetched) {
			r.Unattended = min(r.Unattended+1, cache.MaxUnattended)
		}
		if found := k.newsOf(fl, r); found == newsOther || found == newsNone && k.mayFetch(r) {
			k.fetchHeld(r, 0, fl, false)
		}
	} else if !r.Due.Equal(due) {
		k.store(r, true) // it was used or not used meanwhile
	}
}

// fetchHeld is fetch at the pace of the refresher.
func (k *Keeper) fetchHeld(r *cache.Record, within time.Duration, fl *flight, wait bool) {
	if k.fetchRate.Wait(k.life) != nil {
		fl.err = ErrBrokenOff
		return
	}
	k.fetched.Add(k.hash(r.Domain), k.o.Now())
	k.counters.add(&k.counters.Fetches, 1)
	_ = k.fetch(fl, r, within, !wait)
}

// fetch fetches the policy of a domain and stores what came of it. r is its
// record; nil: no policy is held. It waits for a place no longer than within, and
// for the disk unless lazily is set and no lookup may be waiting.
func (k *Keeper) fetch(fl *flight, r *cache.Record, within time.Duration, lazily bool) error {
	begun := time.Now()
	event := Event{Step: StepFetch, Domain: fl.domain}
	if r == nil {
		event.Step = StepDiscovery
	}
	record, recordErr, found, err := k.ask(fl, r, within)
	if err == errKnown {
		return err
	}
	if err != nil && k.life.Err() != nil {
		fl.err = ErrBrokenOff
		return nil // the daemon ends: nothing was learned
	}
	if err != nil && !policy.OurFault(err) {
		if fl.err = ErrNoPolicy; notFetched(err) {
			fl.err = ErrNotFetched
		}
	}
	k.health.noteFetch(fl.domain, err)
	event.Result, event.Err, event.Took = policy.ResultOf(err), err, time.Since(begun)
	fl.outcome = Refreshed{Domain: fl.domain, Result: event.Result}
	if err != nil {
		fl.outcome.Err = policy.Reason(err)
	}
	now := k.o.Now()
	if err != nil && r != nil && r.Fetched.Sub(now) > clockSlack {
		// Fetched by a clock that was ahead: its life begins now.
		r.Fetched, r.Expires = now, r.Expires.Add(now.Sub(r.Fetched))
	}
	switch {
	case err == nil && r == nil:
		r = &cache.Record{Domain: fl.domain, Used: now}
		fallthrough
	case err == nil:
		event.Changed = k.noteSuccess(r, found, record.ID, now)
	case r == nil:
		k.o.Observe(event)
		return err
	case policy.OurFault(err):
		r.Slow = true // it waits in the troubled lane, although nothing failed
		r.Unattended -= min(r.Unattended, 1)
		fetchAt(r, now.Add(backoff(1)))
	default:
		k.noteFailure(r, recordErr, err, now)
	}
	// A lookup that waits, since the policy has expired, goes its own way where
	// the refresher has found no place.
	fl.tried = event.Step == StepDiscovery || event.Result != policy.ResultBusy
	if recordErr == nil {
		r.Checked = now
	}
	if err == nil {
		k.announce(r)
	}
	schedule(r, now, k.o.UnusedAfter)
	e := k.entryOf(r)
	if isLive(&e.hit, now.Unix()) {
		fl.entry = e
	}
	k.store(r, lazily && fl.entry != nil && !event.Changed)
	event.Mode = r.Mode
	fl.outcome.Mode, fl.outcome.ID, fl.outcome.Changed = r.Mode.String(), r.ID, event.Changed
	k.o.Observe(event)
	return err
}

// ask asks for the record and then for the policy. Where none is held it counts as
// a question until it knows the policy host's addresses, and ends without a record.
func (k *Keeper) ask(fl *flight, held *cache.Record, within time.Duration) (record policy.Record, recordErr error, found *policy.Fetched, err error) {
	begun := time.Now()
	ctx, cancel := context.WithTimeout(k.life, k.o.FetchTimeout+k.o.LookupTimeout+discoverySteps)
	defer cancel()
	ctx, end := context.WithCancelCause(ctx)
	g := &gate{limiter: k.refreshes, within: within, evict: func() { end(errEvicted) }, waited: &fl.waited}
	if held != nil {
		record, recordErr = k.checkRecord(ctx, held)
	} else {
		g.limiter = k.lookups
		silent := time.AfterFunc(silentFor, func() {
			if fl.found() != nil {
				end(errSilent)
			}
		})
		if g.arrive, err = k.questions.ask(ctx, fl.domain, g.evict, g.waited); err == nil {
			defer g.arrive()
			record, _, err = k.o.Network.Record(ctx, fl.domain)
		}
		silent.Stop()
		if f := fl.found(); f != nil && err == nil {
			if record.ID == f.ID {
				err = errKnown
			}
			// Else our own discovery decides, while the lookup still waits.
			limited, cancel := context.WithDeadline(ctx, begun.Add(within*3/4))
			defer cancel()
			ctx = limited
		}
	}
	if err == nil {
		found, err = k.o.Network.Fetch(ctx, fl.domain, g)
	}
	// It is our own fault if it was ended to make room, or was out of time after it
	// had waited for a place.
	if err != nil && (errors.Is(context.Cause(ctx), errEvicted) || fl.waited.Load() && errors.Is(err, policy.ErrTimeout)) {
		err = &policy.Error{Domain: fl.domain, Result: policy.ResultBusy, Err: errEvicted}
	}
	if policy.ResultOf(err) == policy.ResultBusy {
		k.counters.add(&k.counters.Overloads, 1)
	}
	if held == nil {
		k.health.noteRecord(fl.domain, err)
	}
	return record, recordErr, found, err
}

// noteFailure puts a failed fetch into a record. The policy stays in force,
// and the administrator is told unless its mode is none (RFC 8461, 3.3).
func (k *Keeper) noteFailure(r *cache.Record, recordErr, err error, now time.Time) {
	r.Failures++
	r.FailedAt, r.LastError = now, string(policy.ResultOf(err))+": "+policy.Reason(err)
	fetchAt(r, now.Add(backoff(int(r.Failures))))
	if r.Mode == policy.ModeNone || !k.mayLog(k.heldLines) {
		return
	}
	level, words := slog.LevelWarn, "MTA-STS policy could not be refreshed; the held one stays in force"
	if policy.ResultOf(recordErr) == policy.ResultNoRecord {
		words = "MTA-STS record is gone, and the policy could not be refreshed; the held one stays in force until it expires"
	}
	if 4*r.Expires.Sub(now) < r.Expires.Sub(r.Fetched) {
		level, words = slog.LevelError, "MTA-STS policy is about to expire and cannot be refreshed; then no policy applies"
	}
	k.o.Log.Log(context.Background(), level, words,
		"domain", r.Domain, "mode", r.Mode.String(), "result", string(policy.ResultOf(err)), "err", policy.Reason(err),
		"failures", r.Failures, "expires", r.Expires.Format(time.RFC3339), "next", r.FetchAt.Format(time.RFC3339))
}

// noteSuccess puts a fetched policy into a record, and says whether its text
// is new. id is the TXT record's, empty if it could not be seen.
func (k *Keeper) noteSuccess(r *cache.Record, found *policy.Fetched, id string, now time.Time) bool {
	was := *r
	r.Mode, r.Text, r.Match = found.Policy.Mode, found.Text, k.o.MatchList(found.Policy)
	r.Fetched, r.Expires = now, now.Add(found.Policy.MaxAge)
	r.Failures, r.FailedAt, r.LastError = 0, time.Time{}, ""
	r.Slow = found.Duration > slowFetch
	draw(r)
	changed := !bytes.Equal(was.Text, r.Text)
	switch {
	// RFC 8461, 8.1: a new id with the old text may only mean that the policy
	// host still serves the old one. Two agreeing fetches decide, the second one
	// not before the moment drawn for it.
	case id != "" && id != r.ID && !changed && r.PendingID != id:
		r.PendingID = id
		fetchAt(r, now.Add(confirmAfter+between(confirmWithin-confirmAfter, 0, 1)))
	case id != "" && id != r.ID && !changed && now.Before(was.FetchAt):
		fetchAt(r, was.FetchAt)
	case id != "":
		r.ID, r.PendingID = id, ""
	}
	switch {
	case was.Fetched.IsZero() && k.mayLog(k.strangerLines):
		k.o.Log.Info("MTA-STS policy found", "domain", r.Domain, "mode", r.Mode.String(), "id", r.ID,
			"max_age", found.Policy.MaxAge, "mx", len(found.Policy.MX))
	case !was.Fetched.IsZero() && changed && k.mayLog(k.heldLines):
		k.o.Log.Info("MTA-STS policy changed", "domain", r.Domain, "mode", r.Mode.String(), "was", was.Mode.String(), "id", r.ID)
	}
	return changed
}
