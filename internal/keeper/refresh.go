package keeper

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// random draws from [0, 1). The generator is seeded by the system, so that
// nobody outside can predict the moments drawn with it.
func (k *Keeper) random() float64 { return rand.Float64() }

// held reads the newest record of a domain and folds in whether it was used.
// What another version has prepared is prepared again.
func (k *Keeper) held(domain string, now time.Time) (*cache.Record, error) {
	r, err := k.Get(domain)
	if err == nil {
		err = k.makeReady(&r)
	}
	if err != nil {
		return nil, err
	}
	if k.used.lately(k.hash(domain)) {
		r.Used = now
	}
	return &r, nil
}

// checkDue asks for the TXT record of a domain whose turn it is, or of one that
// a lookup wants looked at. What it returns is closed when the result is on disk.
func (k *Keeper) checkDue(ctx context.Context, domain string, urgent bool) <-chan struct{} {
	if urgent {
		if k.check.limit.Wait(ctx) == nil {
			k.recheck(ctx, domain)
		}
		return nil
	}
	now := time.Now()
	r, err := k.held(domain, now)
	if err != nil {
		k.putOff(domain, err)
		return nil
	}
	t := k.timing()
	if t.next(r, now) != actionCheck {
		// It was used or not used since it was put in line.
		return k.noteUse(domain)
	}
	if k.check.limit.Wait(ctx) != nil {
		return nil
	}
	record, err := k.seeRecord(ctx, r)
	if ctx.Err() != nil {
		return nil
	}
	return k.noteCheck(domain, record, err)
}

// reschedule changes a domain's record as it is now, and puts it in line anew.
// While something else is done for the domain it changes nothing. What it
// returns is closed when the result, or that of the other, is on disk.
func (k *Keeper) reschedule(domain string, change func(t timing, r *cache.Record, now time.Time) (troubled bool)) <-chan struct{} {
	fl, mine := k.flights.join(domain)
	if !mine {
		return fl.done
	}
	defer k.flights.end(domain, fl)
	now := time.Now()
	r, err := k.held(domain, now)
	if err != nil {
		return nil
	}
	t := k.timing()
	t.schedule(r, now, change(t, r, now))
	return k.storeSoon(r, false)
}

// noteUse puts a record in line anew.
func (k *Keeper) noteUse(domain string) <-chan struct{} {
	return k.reschedule(domain, func(timing, *cache.Record, time.Time) bool { return false })
}

// noteCheck puts what was seen of a TXT record into the domain's record as it
// is now: while the DNS was asked, another policy may have been fetched, and
// the old one must not be put back in its place; or it was forgotten. A fetch
// that is under way looks at the TXT record itself.
func (k *Keeper) noteCheck(domain string, record policy.Record, err error) <-chan struct{} {
	return k.reschedule(domain, func(t timing, r *cache.Record, now time.Time) (troubled bool) {
		if policy.ResultOf(err) == policy.ResultNoRecord && r.Mode != policy.ModeNone && k.mayLog(k.ownLines) {
			k.o.Log.Info("MTA-STS record is gone; the policy stays in force until it expires", "domain", domain,
				"mode", r.Mode.String(), "expires", r.Expires.Format(time.RFC3339))
		}
		troubled = policy.ResultOf(err) == policy.ResultDNS
		if troubled {
			r.CheckAt = now.Add(t.backoff(2 + int(r.Failures)))
		} else {
			t.drawCheck(r, now)
		}
		if err == nil {
			r.Checked = now
			if k.isNews(r, record.ID, now) && !k.fetchSoon(domain) {
				r.FetchAt, r.FetchUnusedAt = now, now
			}
		}
		return troubled
	})
}

// seeRecord asks for a held policy's TXT record, and tells the observers. A
// record that is gone or broken changes nothing while the policy lives
// (RFC 8461, 3.3).
func (k *Keeper) seeRecord(ctx context.Context, r *cache.Record) (policy.Record, error) {
	begun := time.Now()
	record, _, err := k.o.Network.Record(ctx, r.Domain)
	if ctx.Err() != nil {
		return record, err
	}
	k.counters.checks.Add(1)
	if err != nil {
		k.counters.checkFailures.Add(1)
	}
	result := policy.ResultOf(err)
	k.health.noteRecord(r.Domain, err, time.Now())
	k.o.Observe(Event{Step: StepCheck, Domain: r.Domain, Result: result, Err: err, Took: time.Since(begun), Mode: r.Mode})
	return record, err
}

// isNews says whether an id calls for a fetch: it is another than the known
// ones, and no fetch has failed in the last five minutes (RFC 8461, 3.3).
func (k *Keeper) isNews(r *cache.Record, id string, now time.Time) bool {
	return id != r.ID && id != r.PendingID && !failedLately(r, now)
}

func failedLately(r *cache.Record, now time.Time) bool {
	since := now.Sub(r.FailedAt)
	return since >= 0 && since < firstBackoff
}

// fetchDue fetches the policy of a domain whose turn it is, or whose id has
// changed. What it returns is closed when the result is on disk.
func (k *Keeper) fetchDue(ctx context.Context, domain string, urgent bool) <-chan struct{} {
	fl, mine := k.flights.join(domain)
	for !mine && urgent {
		// What is under way may be no fetch, and the news must not be lost.
		select {
		case <-fl.done:
		case <-ctx.Done():
			return nil
		}
		if fl.tried {
			return nil
		}
		fl, mine = k.flights.join(domain)
	}
	if !mine {
		return fl.done // it is being done; what comes of it is looked at then
	}
	now := time.Now()
	r, err := k.held(domain, now)
	if isDamaged(err) {
		k.skipped.note(domain, now)
		k.discover(domain, fl)
		return nil
	}
	if errors.Is(err, cache.ErrNotFound) && k.unkept(domain) != nil && k.fetch.limit.Wait(ctx) == nil {
		k.discover(domain, fl)
		return nil
	}
	defer k.flights.end(domain, fl)
	if err != nil {
		k.putOff(domain, err)
		return nil
	}
	t := k.timing()
	if !urgent && t.next(r, now) != actionFetch {
		t.schedule(r, now, false)
		return k.storeSoon(r, false)
	}
	if k.fetch.limit.Wait(ctx) != nil {
		return nil
	}
	until := liveUntil(r.Fetched.Unix(), r.Expires.Unix())
	changed, ok := k.refetch(ctx, k.refreshGate, r, fl)
	if !ok {
		return nil
	}
	if time.Now().Unix() >= until {
		return k.store(r) // a lookup may wait for this fetch: its policy is on disk before it is answered
	}
	return k.storeSoon(r, changed)
}

// refetch fetches a held policy again and puts what came of it into its
// record, which is then to be stored unless ok is false.
func (k *Keeper) refetch(ctx context.Context, gate policy.Gate, r *cache.Record, fl *flight) (changed, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, k.o.FetchTimeout+discoverySteps)
	defer cancel()
	fl.tried = true
	begun := time.Now()
	id := ""
	record, recordErr := k.seeRecord(ctx, r)
	if recordErr == nil {
		id = record.ID
	}
	found, err := k.o.Network.Fetch(ctx, r.Domain, gate)
	now := time.Now()
	if errors.Is(ctx.Err(), context.Canceled) {
		fl.err = ErrBrokenOff // for a lookup that waits, its policy having run out
		return false, false   // the daemon ends: nothing was learned
	}
	result := policy.ResultOf(err)
	// A lookup waits for a place at the address; the refresher does not.
	fl.tried = result != policy.ResultBusy
	k.counters.fetches.Add(1)
	k.health.noteFetch(r.Domain, err, now)
	event := Event{Step: StepFetch, Domain: r.Domain, Result: result, Err: err, Took: now.Sub(begun)}
	t := k.timing()
	if recordErr == nil {
		r.Checked = now
	}
	t.drawCheck(r, now)
	if err != nil {
		k.counters.fetchFailures.Add(1)
		k.noteFailure(t, r, err, now)
	} else {
		event.Changed = k.noteSuccess(t, r, found, id, now)
	}
	event.Mode = r.Mode
	t.schedule(r, now, false)
	k.o.Observe(event)
	if e := k.entryOf(r); now.Unix() < liveUntil(e.Fetched, e.Expires) {
		fl.entry = e
	}
	fl.outcome = Refreshed{Domain: r.Domain, Result: result, Mode: r.Mode.String(), ID: r.ID, Changed: event.Changed}
	if err != nil {
		fl.outcome.Err = policy.Reason(err)
	}
	return event.Changed, true
}

// noteFailure puts a failed fetch into a record. The policy stays in force,
// and the administrator is told unless its mode is none (RFC 8461, 3.3).
func (k *Keeper) noteFailure(t timing, r *cache.Record, err error, now time.Time) {
	if policy.ResultOf(err) == policy.ResultBusy {
		// Others at the same address have their turn: nothing has failed, but
		// it waits with those that did, so that it does not crowd out the rest.
		r.Slow = true
		at := now.Add(t.backoff(1))
		r.FetchAt, r.FetchUnusedAt = at, at
		return
	}
	r.Failures++
	r.FailedAt, r.LastError = now, string(policy.ResultOf(err))+": "+policy.Reason(err)
	t.drawRetry(r, now)
	if r.Mode != policy.ModeNone && k.mayLog(k.ownLines) {
		level, words := slog.LevelWarn, "MTA-STS policy could not be refreshed; the one held stays in force"
		if endsSoon(r, now) {
			level, words = slog.LevelError, "MTA-STS policy is about to expire and cannot be refreshed; then mail goes without it"
		}
		k.o.Log.Log(context.Background(), level, words,
			"domain", r.Domain, "mode", r.Mode.String(), "result", string(policy.ResultOf(err)), "err", policy.Reason(err),
			"failures", r.Failures, "expires", r.Expires.Format(time.RFC3339), "next", r.FetchAt.Format(time.RFC3339))
	}
}

// endsSoon says whether less than a quarter of a policy's life is left.
func endsSoon(r *cache.Record, now time.Time) bool {
	return 4*r.Expires.Sub(now) < r.Expires.Sub(r.Fetched)
}

// noteSuccess puts a fetched policy into a record, and says whether its text
// is new. id is the TXT record's, empty if it could not be seen.
func (k *Keeper) noteSuccess(t timing, r *cache.Record, found *policy.Fetched, id string, now time.Time) bool {
	changed := !bytes.Equal(r.Text, found.Text)
	confirm := false
	early := false
	if id != "" && id != r.ID && !changed {
		// RFC 8461, 8.1: a new id with the old text may only mean that the
		// policy host still serves the old one. Two agreeing fetches decide,
		// the second one not before the moment drawn for it.
		confirm = r.PendingID != id
		early = !confirm && now.Before(r.FetchAt)
	}
	was, drawn := r.Mode, r.FetchAt
	k.take(r, found, now)
	t.drawFetch(r)
	switch {
	case early:
		r.FetchAt, r.FetchUnusedAt = drawn, drawn
	case confirm:
		r.PendingID = id
		t.drawConfirm(r, now)
	case id != "":
		r.ID, r.PendingID = id, ""
	}
	if changed && k.mayLog(k.ownLines) {
		k.o.Log.Info("MTA-STS policy changed", "domain", r.Domain, "mode", r.Mode.String(), "was", was.String(), "id", r.ID)
	}
	return changed
}

// fetchSoon has a policy fetched before what is due, and says whether there was
// room for that.
func (k *Keeper) fetchSoon(domain string) bool {
	if k.fetch.hurry(domain) {
		return true
	}
	k.counters.urgentDropped.Add(1)
	return false
}

// putOff handles a record that is due and cannot be read, or that is gone: that
// may not be on disk yet. It stays due in the store, so it is passed over for a
// while.
func (k *Keeper) putOff(domain string, err error) {
	k.skipped.note(domain, time.Now())
	if errors.Is(err, cache.ErrNotFound) {
		return
	}
	k.counters.storeErrors.Add(1)
	if isDamaged(err) && k.fetchSoon(domain) {
		return // to be fetched anew
	}
	if k.hasRoom(k.ownLines) {
		k.o.Log.Error("a cached policy cannot be read", "domain", domain, "err", err, "next", "tried again in "+minFetchInterval.String())
	}
}

// lately remembers, for the last domains noted, when that was.
type lately struct {
	when *lru.Cache[string, time.Time]
}

func newLately() *lately {
	c, err := lru.New[string, time.Time](maxLately)
	if err != nil {
		panic(err) // the size is a positive constant
	}
	return &lately{when: c}
}

// noted says whether a domain was noted in the last ten minutes.
func (l *lately) noted(domain string, now time.Time) bool {
	at, ok := l.when.Get(domain)
	return ok && now.Sub(at) < minFetchInterval
}

func (l *lately) note(domain string, now time.Time) { l.when.Add(domain, now) }
