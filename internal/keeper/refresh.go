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
	fl, mine := k.flights.join(domain)
	if !mine {
		return // a lookup or the administrator has fetched the policy meanwhile
	}
	r, err := k.current(domain)
	if err != nil && !errors.Is(err, cache.ErrNotFound) && k.fetchRate.Wait(k.life) == nil {
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
		k.fetchHeld(r, 0, fl, false)
	} else if !r.Due.Equal(due) {
		k.store(fl, r, true) // it was used or not used meanwhile
	}
}

// fetchHeld fetches a held policy and stores the result. It waits for the disk if
// wait is set or a lookup may be waiting. within limits the wait for a place.
func (k *Keeper) fetchHeld(r *cache.Record, within time.Duration, fl *flight, wait bool) {
	if k.fetchRate.Wait(k.life) != nil {
		fl.err = ErrBrokenOff
		return
	}
	until := liveUntil(r.Fetched.Unix(), r.Expires.Unix())
	if changed, ok := k.refetch(r, within, fl); ok {
		k.store(fl, r, !wait && !changed && k.o.Now().Unix() < until)
	}
}

// checkRecord asks for a held policy's TXT record, and tells the observers. A
// record that is gone or broken changes nothing while the policy lives
// (RFC 8461, 3.3).
func (k *Keeper) checkRecord(ctx context.Context, r *cache.Record) (policy.Record, error) {
	begun := time.Now()
	record, _, err := k.o.Network.Record(ctx, r.Domain)
	if ctx.Err() == nil {
		k.health.noteRecord(r.Domain, err)
		k.o.Observe(Event{Step: StepCheck, Domain: r.Domain, Result: policy.ResultOf(err), Err: err, Took: time.Since(begun), Mode: r.Mode})
	}
	return record, err
}

// refetch fetches a held policy again and updates its record. The caller stores the
// record unless ok is false.
func (k *Keeper) refetch(r *cache.Record, within time.Duration, fl *flight) (changed, ok bool) {
	ctx, evict, cancel := k.attempt()
	defer cancel()
	begun := time.Now()
	record, recordErr := k.checkRecord(ctx, r)
	g := &gate{limiter: k.refreshes, within: within, evict: evict, waited: &fl.waited}
	found, err := k.o.Network.Fetch(ctx, r.Domain, g)
	if err != nil && k.life.Err() != nil {
		fl.err = ErrBrokenOff
		return false, false // the daemon ends: nothing was learned
	}
	err = k.blame(ctx, fl, err)
	now := k.o.Now()
	k.counters.add(&k.counters.Fetches, 1)
	k.health.noteFetch(r.Domain, err)
	k.fetched.Add(k.hash(r.Domain), now)
	if recordErr == nil {
		r.Checked = now
	}
	event := Event{Step: StepFetch, Domain: r.Domain, Result: policy.ResultOf(err), Err: err, Took: time.Since(begun)}
	// The policy may have expired while it was fetched. If the refresher found no
	// place, a lookup that waits for this flight starts a discovery of its own.
	fl.tried = event.Result != policy.ResultBusy
	switch {
	case err == nil:
		event.Changed = k.noteSuccess(r, found, record.ID, now)
	case policy.OurFault(err):
		r.Slow = true // it waits in the troubled lane, although nothing failed
		fetchAt(r, now.Add(backoff(1)))
	default:
		fl.err = ErrNoPolicy
		k.noteFailure(r, recordErr, err, now)
	}
	schedule(r, now, k.o.UnusedAfter)
	event.Mode = r.Mode
	k.o.Observe(event)
	if e := k.entryOf(r); isLive(&e.hit, now.Unix()) {
		fl.found(e, r, event.Changed)
	}
	fl.outcome.Domain, fl.outcome.Result = r.Domain, event.Result
	if err != nil {
		fl.outcome.Err = policy.Reason(err)
	}
	return event.Changed, true
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
	changed := !bytes.Equal(r.Text, found.Text)
	// RFC 8461, 8.1: a new id with the old text may only mean that the policy
	// host still serves the old one. Two agreeing fetches decide, the second one
	// not before the moment drawn for it.
	newID := id != "" && id != r.ID && !changed
	unconfirmed := newID && r.PendingID != id
	early := newID && !unconfirmed && now.Before(r.FetchAt)
	was, drawn := r.Mode, r.FetchAt
	k.take(r, found, now)
	draw(r)
	switch {
	case early:
		fetchAt(r, drawn)
	case unconfirmed:
		r.PendingID = id
		fetchAt(r, now.Add(confirmAfter+between(confirmWithin-confirmAfter, 0, 1)))
	case id != "":
		r.ID, r.PendingID = id, ""
	}
	if changed && k.mayLog(k.heldLines) {
		k.o.Log.Info("MTA-STS policy changed", "domain", r.Domain, "mode", r.Mode.String(), "was", was.String(), "id", r.ID)
	}
	return changed
}
