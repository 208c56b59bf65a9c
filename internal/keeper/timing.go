package keeper

import (
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
)

// The rule of time. A policy is looked at again for two reasons, whichever
// comes first: its TXT record is asked for about once a day, and the policy
// itself is fetched long before it expires, whatever the record says. Each
// moment is drawn at random once and stored, so that an attacker can neither
// predict it nor win by blocking the DNS (RFC 8461, 3.3 and 10.2).

// An action is what is to be done about a record.
type action uint8

const (
	actionWait  action = iota // nothing before it is due
	actionCheck               // ask for the TXT record
	actionFetch               // fetch the policy
)

// The lines in which records wait. Within one, those with the least life left
// go first.
const (
	laneQuiet         cache.Lane = iota // only to be deleted
	laneCheckUsed                       // TXT record, asked for by mail since
	laneCheckUnused                     // TXT record, not asked for
	laneCheckTroubled                   // TXT record, after a failure
	laneFetchUsed                       // policy in use
	laneFetchShort                      // policy in use with a max_age below a day
	laneFetchUnused                     // policy not in use
	laneFetchTroubled                   // policy, after a failed or a slow fetch
)

// A timing is the rule with its settings and its dice.
type timing struct {
	interval    time.Duration  // between two checks, at most
	unusedAfter time.Duration  // left to expire when not asked for in so long
	watching    time.Time      // since when uses are noted in memory
	random      func() float64 // in [0, 1)
}

// between draws from [lo, hi).
func (t timing) between(lo, hi float64) float64 { return lo + (hi-lo)*t.random() }

func scale(d time.Duration, f float64) time.Duration { return time.Duration(float64(d) * f) }

// drawCheck sets when the TXT record is next asked for: after an interval,
// less up to 30 %.
func (t timing) drawCheck(r *cache.Record, now time.Time) {
	r.CheckAt = now.Add(scale(t.interval, t.between(0.7, 1)))
}

// drawFetch sets when a policy just fetched is to be fetched again. In use:
// between a quarter and a half of max_age, and after a day at the latest. Not
// in use: between a half and four fifths.
func (t timing) drawFetch(r *cache.Record) {
	maxAge := r.Expires.Sub(r.Fetched)
	used := min(scale(maxAge, t.between(0.25, 0.5)), scale(dayOfFetch, t.between(0.7, 1)))
	unused := scale(maxAge, t.between(0.5, 0.8))
	r.FetchAt = r.Fetched.Add(max(used, minFetchInterval))
	r.FetchUnusedAt = r.Fetched.Add(max(unused, minFetchInterval))
}

// drawConfirm has a policy fetched once more soon, since its id has changed
// and its text has not (RFC 8461, 8.1).
func (t timing) drawConfirm(r *cache.Record, now time.Time) {
	at := now.Add(scale(confirmWithin-confirmAfter, t.random()) + confirmAfter)
	r.FetchAt, r.FetchUnusedAt = at, at
}

// drawRetry has a policy fetched again after a failure: five minutes later at
// first, an hour at most.
func (t timing) drawRetry(r *cache.Record, now time.Time) {
	at := now.Add(t.backoff(int(r.Failures)))
	r.FetchAt, r.FetchUnusedAt = at, at
}

// backoff is the wait after so many failures in a row, with jitter.
func (t timing) backoff(failures int) time.Duration {
	const jitter = 0.25
	d := firstBackoff << min(max(failures-1, 0), 10)
	return scale(min(d, scale(maxBackoff, 1/(1+jitter))), t.between(1, 1+jitter))
}

// usedSince says whether a policy was asked for since it was last fetched.
func usedSince(r *cache.Record) bool { return r.Used.After(r.Fetched) }

// usedLately says whether a policy counts as in use when it is put in line.
// Soon after a start nothing is known of late uses; then it stays what it was.
func (t timing) usedLately(r *cache.Record, now time.Time) bool {
	if now.Sub(r.Used) <= 2*usedPeriod {
		return true
	}
	was := r.Lane == laneCheckUsed || r.Lane == laneFetchUsed || r.Lane == laneFetchShort
	return was && now.Sub(t.watching) < usedPeriod
}

// next says what is to be done about a record at now.
func (t timing) next(r *cache.Record, now time.Time) action {
	switch {
	case !now.Before(r.Expires), now.Sub(r.Used) > t.unusedAfter:
		return actionWait // a lookup finds it anew; nobody else needs it
	case !now.Before(r.FetchUnusedAt), usedSince(r) && !now.Before(r.FetchAt):
		return actionFetch
	case !now.Before(r.CheckAt):
		return actionCheck
	}
	return actionWait
}

// schedule sets when a record is due after now, and in which line it waits.
// A moment that has passed without leading to anything (FetchAt of a policy
// that was not used) is no longer one.
//
// It is looked at once in usedPeriod at least, without asking the network, so
// that its uses come into it before they are forgotten.
func (t timing) schedule(r *cache.Record, now time.Time, troubledCheck bool) {
	fetch := r.FetchUnusedAt
	if now.Before(r.FetchAt) || usedSince(r) {
		fetch = r.FetchAt
	}
	used := t.usedLately(r, now)
	switch {
	case !now.Before(r.Expires), !r.Expires.After(earlier(fetch, r.CheckAt)), now.Sub(r.Used) > t.unusedAfter:
		r.Due, r.Lane = r.Expires.Add(keepExpired), laneQuiet
	case !fetch.After(r.CheckAt), !fetch.After(now):
		r.Due, r.Lane = fetch, fetchLane(r, used)
	default:
		r.Due, r.Lane = r.CheckAt, checkLane(used, troubledCheck)
	}
	if visit := now.Add(usedPeriod); r.Lane != laneQuiet && visit.Before(r.Due) {
		r.Due, r.Lane = visit, checkLane(used, troubledCheck)
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func checkLane(used, troubled bool) cache.Lane {
	switch {
	case troubled:
		return laneCheckTroubled
	case used:
		return laneCheckUsed
	}
	return laneCheckUnused
}

func fetchLane(r *cache.Record, used bool) cache.Lane {
	switch {
	case r.Failures > 0, r.Slow:
		return laneFetchTroubled
	case !used:
		return laneFetchUnused
	case r.Expires.Sub(r.Fetched) < shortLived:
		return laneFetchShort
	}
	return laneFetchUsed
}
