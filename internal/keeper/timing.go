package keeper

import (
	"math/rand/v2"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
)

// The rule of time. A policy is fetched again long before it expires, whatever
// its TXT record says. The moments are drawn at random once and stored, so that an
// attacker can neither predict them nor win by blocking the DNS (RFC 8461, 3.3
// and 10.2). The generator is seeded by the system.

// between draws from d times lo to d times hi.
func between(d time.Duration, lo, hi float64) time.Duration {
	return time.Duration(float64(d) * (lo + (hi-lo)*rand.Float64()))
}

// draw sets when a policy just fetched is to be fetched again. Used since:
// between a quarter and a half of max_age, and after 0.7 to 1.0 days at the
// latest. Not used since: between a half and four fifths.
func draw(r *cache.Record) {
	maxAge := r.Expires.Sub(r.Fetched)
	used := min(between(maxAge, 0.25, 0.5), between(oneDay, 0.7, 1))
	r.FetchAt = r.Fetched.Add(max(used, minFetchInterval))
	r.FetchUnusedAt = r.Fetched.Add(max(between(maxAge, 0.5, 0.8), minFetchInterval))
}

// fetchAt sets one moment for the next fetch, whether the policy is used or not.
func fetchAt(r *cache.Record, at time.Time) { r.FetchAt, r.FetchUnusedAt = at, at }

// backoff is the wait after so many failures in a row, with jitter: five
// minutes at first, an hour at most.
func backoff(failures int) time.Duration {
	return between(min(firstBackoff<<min(max(failures-1, 0), 10), maxBackoff*4/5), 1, 1.25)
}

// noteUse puts a use into a record.
func noteUse(r *cache.Record, now time.Time) {
	const day = 24 * 60 * 60
	r.Regular = r.Regular || !r.Used.IsZero() && r.Used.Unix()/day != now.Unix()/day
	r.Used, r.Unattended = now, 0
}

// schedule sets the lane of a record and when it is due. A record in LaneQuiet is
// not fetched: it expires, and a later lookup discovers the policy anew. It gets
// there if it was not used for unusedAfter; if it was not used since its last fetch
// and max_age is below a day; or if it was used on one day only and has been
// fetched maxUnattended times in a row since.
func schedule(r *cache.Record, now time.Time, unusedAfter time.Duration) {
	used := r.Used.After(r.Fetched)
	r.Lane, r.Due = cache.LaneNormal, r.FetchAt
	if !used {
		r.Due = r.FetchUnusedAt
	}
	if r.Failures > 0 || r.Slow {
		r.Lane = cache.LaneTroubled
	}
	switch {
	case !r.Due.Before(r.Expires), !now.Before(r.Expires),
		now.Sub(r.Used) > unusedAfter,
		!used && r.Expires.Sub(r.Fetched) < oneDay,
		!used && !r.Regular && r.Unattended >= maxUnattended:
		r.Lane, r.Due = cache.LaneQuiet, time.Time{}
	}
}
