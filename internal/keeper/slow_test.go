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

// One mail, then silence.
func TestHowOftenAPolicyIsFetchedThatWasUsedOnOneDayOnly(t *testing.T) {
	for maxAge, most := range map[time.Duration]int{15 * time.Minute: 2, time.Hour: 2, day: 10, 30 * day: 7} {
		inSite(t, nil, func(t *testing.T, s *site) {
			s.net.enforced("example.com", maxAge)
			s.mustHold(t, "example.com")
			settle(time.Second)
			s.mustHold(t, "example.com")
			settle(90 * day)
			if _, n := s.net.asked("example.com"); n > most || maxAge >= day && n < 3 {
				t.Errorf("max_age %v: %d fetches in 90 days", maxAge, n)
			}
		})
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
