package keeper

import (
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

const day = 24 * time.Hour

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func fetchedRecord(maxAge time.Duration) *cache.Record {
	return &cache.Record{Domain: "example.com", Mode: policy.ModeEnforce, Fetched: epoch, Expires: epoch.Add(maxAge), Used: epoch, Checked: epoch}
}

func TestRFC8461_10_2_APolicyIsFetchedLongBeforeItExpiresAtAMomentThatIsDrawn(t *testing.T) {
	for maxAge := time.Duration(0); maxAge < policy.MaxMaxAge; maxAge = maxAge*13/10 + 97*time.Second {
		seen := make(map[time.Time]bool)
		for range 100 {
			r := fetchedRecord(maxAge)
			draw(r)
			seen[r.FetchAt] = true
			// Used: between a quarter and a half of max_age, and within a day.
			at := r.FetchAt.Sub(epoch)
			if at < max(min(maxAge/4, day*7/10), minFetchInterval)-time.Second || at > max(min(maxAge/2, day), minFetchInterval) {
				t.Errorf("max_age %s: fetched after %s", maxAge, at)
			}
			// Not used: between a half and four fifths.
			if at = r.FetchUnusedAt.Sub(epoch); at < max(maxAge/2, minFetchInterval)-time.Second || at > max(maxAge*4/5, minFetchInterval) {
				t.Errorf("max_age %s, not used: fetched after %s", maxAge, at)
			}
		}
		if maxAge > time.Hour && len(seen) < 90 {
			t.Errorf("max_age %s: 100 draws gave %d moments", maxAge, len(seen))
		}
	}
}

func TestRFC8461_3_3_AFailedFetchIsRetriedAfterFiveMinutesAtFirstAndAnHourAtMost(t *testing.T) {
	for failures := range 100 {
		for range 100 {
			if d := backoff(failures); d < firstBackoff || d > maxBackoff || failures < 2 && d > firstBackoff*5/4 || failures > 5 && d < maxBackoff*3/4 {
				t.Errorf("after %d failures %s", failures, d)
			}
		}
	}
}

func TestWhenARecordIsDueAndInWhichLane(t *testing.T) {
	const usedAt, unusedAt = 18 * time.Hour, 18 * day
	used := func(r *cache.Record) { r.Used = epoch.Add(time.Hour) }
	for name, tt := range map[string]struct {
		maxAge time.Duration
		bend   func(*cache.Record)
		lane   cache.Lane
		due    time.Duration
	}{
		"used since the fetch":             {30 * day, used, cache.LaneNormal, usedAt},
		"not used since":                   {30 * day, func(r *cache.Record) {}, cache.LaneNormal, unusedAt},
		"not used, on one day only, 8th":   {30 * day, func(r *cache.Record) { r.Unattended = 7 }, cache.LaneNormal, unusedAt},
		"not used, on one day only, 9th":   {30 * day, func(r *cache.Record) { r.Unattended = 8 }, cache.LaneQuiet, 0},
		"not used, on two days, 9th":       {30 * day, func(r *cache.Record) { r.Unattended, r.Regular = 8, true }, cache.LaneNormal, unusedAt},
		"not used for 90 days":             {30 * day, func(r *cache.Record) { r.Used, r.Regular = epoch.Add(-90*day), true }, cache.LaneQuiet, 0},
		"below a day, used":                {20 * time.Hour, used, cache.LaneNormal, usedAt},
		"below a day, not used":            {20 * time.Hour, func(r *cache.Record) { r.Regular, r.FetchUnusedAt = true, epoch.Add(time.Hour) }, cache.LaneQuiet, 0},
		"failed":                           {30 * day, func(r *cache.Record) { used(r); r.Failures = 1 }, cache.LaneTroubled, usedAt},
		"slow":                             {30 * day, func(r *cache.Record) { used(r); r.Slow = true }, cache.LaneTroubled, usedAt},
		"too short-lived to be fetched":    {5 * time.Minute, used, cache.LaneQuiet, 0},
		"expired":                          {90 * time.Minute, func(r *cache.Record) { used(r); r.FetchAt = epoch.Add(time.Hour) }, cache.LaneQuiet, 0},
		"the next try is after its expiry": {17 * time.Hour, func(r *cache.Record) { used(r); r.Failures = 9 }, cache.LaneQuiet, 0},
	} {
		r := fetchedRecord(tt.maxAge)
		r.FetchAt, r.FetchUnusedAt = epoch.Add(usedAt), epoch.Add(unusedAt)
		tt.bend(r)
		schedule(r, epoch.Add(2*time.Hour), 90*day)
		want := epoch.Add(tt.due)
		if tt.due == 0 {
			want = time.Time{}
		}
		if r.Lane != tt.lane || !r.Due.Equal(want) {
			t.Errorf("%s: due %v in lane %d", name, r.Due.Sub(epoch), r.Lane)
		}
	}
}

func TestAUseOnAnotherDayMakesADomainRegular(t *testing.T) {
	r := fetchedRecord(day)
	r.Unattended = 3
	if noteUse(r, epoch.Add(23*time.Hour)); r.Regular || r.Unattended != 0 {
		t.Errorf("on the same day: %+v", r)
	}
	if noteUse(r, epoch.Add(25*time.Hour)); !r.Regular {
		t.Errorf("on the next: %+v", r)
	}
}
