//go:build slow

package keeper_test

import (
	"testing"
	"time"
)

func TestNoFloodOfPoliciesStarvesTheHonestOnes(t *testing.T) {
	runAttacks(t, attacks(2000, 0.1))
}

func TestNoFloodOfTarpitsStarvesTheHonestOnes(t *testing.T) {
	const name = "two days on tarpits"
	runAttacks(t, map[string]attack{name: attacks(20000, 1)[name]})
}

func TestADomainAskedForEachMinuteNeverExpiresAtALongMaxAge(t *testing.T) {
	neverExpires(t, day, 7*day)
}

// One mail, then silence. (The policy was fetched 12,271 times in 90 days at a max_age
// of 15 minutes, 3,304 times at an hour, and 136 times at a day.)
func TestOneMailLeadsToFewFetchesInNinetyDaysOfSilence(t *testing.T) {
	for _, test := range []struct {
		maxAge time.Duration
		most   int // fetches, the discovery's included
	}{
		{15 * time.Minute, 1}, {time.Hour, 1}, {6 * time.Hour, 1}, {day - time.Second, 1}, {day, 9}, {7 * day, 9}, {30 * day, 6},
	} {
		for retries := range 2 { // of the mail, which are a use after the fetch
			inSite(t, nil, func(t *testing.T, s *site) {
				s.net.enforced("example.com", test.maxAge)
				s.mustHold(t, "example.com")
				for range retries {
					settle(10 * time.Minute)
					s.mustHold(t, "example.com")
				}
				settle(90 * day)
				_, n := s.net.asked("example.com")
				t.Logf("max_age %v, %d retries: %d fetches", test.maxAge, retries, n)
				if n > test.most+retries || test.maxAge >= day && n < test.most/2 {
					t.Errorf("max_age %v, %d retries: %d fetches, want at most %d", test.maxAge, retries, n, test.most+retries)
				}
			})
		}
	}
}

func TestAPolicyUsedOnTwoDaysIsFetchedUntilItWasUnusedFor90DaysAndThenDeleted(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 4*day)
		s.mustHold(t, "example.com")
		settle(2 * day)
		s.mustHold(t, "example.com")
		settle(80 * day)
		_, before := s.net.asked("example.com")
		if before < 22 {
			t.Errorf("%d fetches in 80 days", before)
		}
		settle(15 * day)
		_, before = s.net.asked("example.com")
		settle(30 * day)
		if _, after := s.net.asked("example.com"); after != before {
			t.Errorf("fetched %d times after 95 days without use", after-before)
		}
		if _, err := s.disk.Store.Get("example.com"); err == nil {
			t.Error("a week after it has expired it is still there")
		}
	})
}
