package keeper

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

// dice returns a timing whose dice always fall the same.
func dice(f float64) timing {
	return timing{interval: day, unusedAfter: 90 * day, random: func() float64 { return f }}
}

func fetched(maxAge time.Duration) *cache.Record {
	return &cache.Record{Domain: "example.com", Mode: policy.ModeEnforce, Fetched: epoch, Expires: epoch.Add(maxAge), Used: epoch, Checked: epoch}
}

// maxAges runs from the smallest to the largest that the standard allows.
func maxAges() []time.Duration {
	ages := []time.Duration{0, time.Second, 9 * time.Minute, 10 * time.Minute, 20 * time.Minute, time.Hour, day - 1, day, 2 * day, 4 * day, policy.MaxMaxAge}
	for a := 90 * time.Second; a < policy.MaxMaxAge; a = a * 13 / 10 {
		ages = append(ages, a.Truncate(time.Second))
	}
	return ages
}

func TestRFC8461_10_2_APolicyInUseIsFetchedBeforeHalfItsLifeAndWithinADay(t *testing.T) {
	for _, maxAge := range maxAges() {
		for _, f := range []float64{0, 0.25, 0.5, 0.999999} {
			r := fetched(maxAge)
			dice(f).drawFetch(r)
			at := r.FetchAt.Sub(r.Fetched)
			most := max(min(maxAge/2, day), minFetchInterval)
			least := max(min(maxAge/4, scale(day, 0.7)), minFetchInterval)
			if at < least || at > most {
				t.Errorf("max_age %s, dice %v: fetched after %s, want %s to %s", maxAge, f, at, least, most)
			}
		}
	}
}

func TestRFC8461_10_2_APolicyNotInUseIsFetchedBetweenHalfAndFourFifthsOfItsLife(t *testing.T) {
	for _, maxAge := range maxAges() {
		for _, f := range []float64{0, 0.5, 0.999999} {
			r := fetched(maxAge)
			dice(f).drawFetch(r)
			at := r.FetchUnusedAt.Sub(r.Fetched)
			if at < max(maxAge/2, minFetchInterval)-time.Second || at > max(maxAge*4/5, minFetchInterval) {
				t.Errorf("max_age %s, dice %v: fetched after %s", maxAge, f, at)
			}
		}
	}
}

func TestRFC8461_10_2_TheMomentsOfTwoPoliciesDiffer(t *testing.T) {
	tm := timing{interval: day, unusedAfter: 90 * day, random: rand.Float64}
	seen := make(map[time.Time]bool)
	for range 100 {
		r := fetched(30 * day)
		tm.drawFetch(r)
		seen[r.FetchAt] = true
	}
	if len(seen) < 90 {
		t.Errorf("100 draws gave %d moments", len(seen))
	}
}

func TestRFC8461_3_3_TheRecordIsAskedForOnceADayLessUpTo30Percent(t *testing.T) {
	for _, f := range []float64{0, 0.5, 0.999999} {
		r := fetched(30 * day)
		dice(f).drawCheck(r, epoch)
		if at := r.CheckAt.Sub(epoch); at < scale(day, 0.7) || at > day {
			t.Errorf("dice %v: checked after %s", f, at)
		}
	}
}

func TestRFC8461_3_3_AFailedFetchIsRetriedAfterFiveMinutesAtFirstAndAnHourAtMost(t *testing.T) {
	for _, f := range []float64{0, 0.5, 0.999999} {
		last := time.Duration(0)
		for failures := range 100 {
			d := dice(f).backoff(failures)
			if d < firstBackoff || d > maxBackoff || d < last {
				t.Errorf("dice %v: after %d failures %s, before that %s", f, failures, d, last)
			}
			last = d
		}
		if last < maxBackoff*3/4 {
			t.Errorf("dice %v: never waits longer than %s", f, last)
		}
	}
}

func TestRFC8461_8_1_ANewIDWithTheOldTextIsLookedAtAgainAfter10To60Minutes(t *testing.T) {
	for _, f := range []float64{0, 0.999999} {
		r := fetched(30 * day)
		dice(f).drawConfirm(r, epoch)
		if at := r.FetchAt.Sub(epoch); at < 10*time.Minute || at > 60*time.Minute || r.FetchAt != r.FetchUnusedAt {
			t.Errorf("dice %v: %s", f, at)
		}
	}
}

func TestNextSaysWhatIsToBeDone(t *testing.T) {
	base := func() *cache.Record {
		r := fetched(30 * day)
		r.CheckAt, r.FetchAt, r.FetchUnusedAt = epoch.Add(20*time.Hour), epoch.Add(18*time.Hour), epoch.Add(18*day)
		return r
	}
	tests := []struct {
		name string
		bend func(*cache.Record)
		at   time.Duration
		want action
	}{
		{"before anything is due", nil, time.Hour, actionWait},
		{"used, when the fetch is due", func(r *cache.Record) { r.Used = epoch.Add(time.Hour) }, 18 * time.Hour, actionFetch},
		{"not used, when the fetch would be due", nil, 18 * time.Hour, actionWait},
		{"not used, when the check is due", nil, 20 * time.Hour, actionCheck},
		{"not used, when its own fetch is due", nil, 18 * day, actionFetch},
		{"fetch and check both due", func(r *cache.Record) { r.Used = epoch.Add(time.Hour) }, 21 * time.Hour, actionFetch},
		{"expired", nil, 30 * day, actionWait},
		{"expired and used", func(r *cache.Record) { r.Used = epoch.Add(29 * day) }, 30 * day, actionWait},
		{"asked for 90 days ago", func(r *cache.Record) { r.Used = epoch.Add(-72*day - time.Second) }, 18 * day, actionWait},
	}
	for _, tt := range tests {
		r := base()
		if tt.bend != nil {
			tt.bend(r)
		}
		if got := dice(0.5).next(r, epoch.Add(tt.at)); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

// Whatever state a record is in: once it is put in line, it is due for what
// its line does, or due later, or not before it has expired. A record that is
// due in a line that finds nothing to do would be looked at for ever.
func TestADueRecordWaitsInTheLineThatHasSomethingToDo(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	tm := timing{interval: day, unusedAfter: 90 * day, random: rnd.Float64}
	seen := make(map[action]int)
	for range 50000 {
		r := fetched(time.Duration(rnd.Int64N(int64(policy.MaxMaxAge))))
		if rnd.IntN(2) == 0 {
			r.Expires = r.Fetched.Add(time.Duration(rnd.Int64N(int64(10 * day))))
		}
		tm.drawFetch(r)
		tm.drawCheck(r, epoch)
		now := epoch.Add(time.Duration(rnd.Int64N(int64(r.Expires.Sub(r.Fetched)) + int64(day))))
		r.Used = epoch.Add(time.Duration(rnd.Int64N(int64(200*day))) - 100*day)
		if r.Used.After(now) {
			r.Used = now
		}
		tm.schedule(r, now, rnd.IntN(2) == 0)
		if r.Lane != laneQuiet && !r.Due.Before(r.Expires) {
			t.Fatalf("due only when it has expired: %+v", r)
		}
		want := tm.next(r, now)
		seen[want]++
		got := actionWait
		switch {
		case r.Due.After(now), r.Lane == laneQuiet:
		case r.Lane >= laneFetchUsed:
			got = actionFetch
		default:
			got = actionCheck
		}
		if got != want {
			t.Fatalf("at %s there is %d to do, and it waits for %d: %+v", now, want, got, r)
		}
		if got != actionWait {
			continue
		}
		// When its moment comes, its line does it or puts it off.
		if later := r.Due; r.Lane != laneQuiet {
			tm.schedule(r, later, false)
			if !r.Due.After(later) && tm.next(r, later) == actionWait {
				t.Fatalf("at its moment %s there is nothing to do: %+v", later, r)
			}
		}
	}
	for _, a := range []action{actionWait, actionCheck, actionFetch} {
		if seen[a] < 100 {
			t.Errorf("action %d came up %d times only", a, seen[a])
		}
	}
}

func TestTheLaneSaysWhoMustNotWaitForWhom(t *testing.T) {
	at := func(maxAge time.Duration, bend func(*cache.Record)) cache.Lane {
		r := fetched(maxAge)
		dice(0.5).drawFetch(r)
		r.CheckAt = epoch.Add(policy.MaxMaxAge)
		if bend != nil {
			bend(r)
		}
		dice(0.5).schedule(r, epoch, false)
		return r.Lane
	}
	tests := []struct {
		name string
		got  cache.Lane
		want cache.Lane
	}{
		{"in use", at(30*day, nil), laneFetchUsed},
		{"in use and short-lived", at(time.Hour, nil), laneFetchShort},
		{"not in use", at(30*day, func(r *cache.Record) { r.Used = epoch.Add(-3 * day) }), laneFetchUnused},
		{"failed", at(30*day, func(r *cache.Record) { r.Failures = 1 }), laneFetchTroubled},
		{"slow", at(30*day, func(r *cache.Record) { r.Slow = true }), laneFetchTroubled},
		{"too short-lived to be refreshed", at(5*time.Minute, nil), laneQuiet},
		{"asked for 90 days ago", at(30*day, func(r *cache.Record) { r.Used = epoch.Add(-91 * day) }), laneQuiet},
		{"check first", at(30*day, func(r *cache.Record) { r.CheckAt = epoch.Add(time.Minute) }), laneCheckUsed},
	}
	for _, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("%s: lane %d, want %d", tt.name, tt.got, tt.want)
		}
	}
}
