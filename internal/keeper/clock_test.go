package keeper

import (
	"errors"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// This file: clocks that jump, and policies that come back into use.

func TestAPolicyFetchedByAClockThatWasAheadIsFetchedAgainWhenItIsAskedFor(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		// As if fetched four years from now; the clock was then put right.
		ahead := time.Now().Add(4 * 365 * day)
		p, err := policy.Parse([]byte(policyText("enforce", 30*day, "old.example.com")))
		if err != nil {
			t.Fatal(err)
		}
		found := &policy.Fetched{Text: []byte(policyText("enforce", 30*day, "old.example.com")), Policy: p}
		s.store(s.newRecord("example.com", policy.Record{ID: "1"}, found, ahead))
		s.mustHold(t, "example.com")
		settle(time.Minute)
		r, err := s.Get("example.com")
		if err != nil || r.Fetched.After(time.Now()) {
			t.Fatalf("fetched %s, %v", r.Fetched, err)
		}
		if got := s.mustHold(t, "example.com"); got != "enforce [mx.example.com]" {
			t.Errorf("held %q", got)
		}
	})
}

func TestAClockThatIsSetBackStopsNoRecheck(t *testing.T) {
	r := newRecency()
	if !r.claim(1, 1_000_000, 300) || r.claim(1, 1_000_299, 300) {
		t.Error("a claim is for 300 s")
	}
	if !r.claim(1, 500_000, 300) {
		t.Error("refused after the clock was set back")
	}
	u := newUsedMap()
	u.rotated.Store(time.Now().Add(365 * day).Unix())
	u.rotate(time.Now())
	if u.rotated.Load() > time.Now().Unix() {
		t.Error("not rotated after the clock was set back")
	}
}

func TestWhatIsKnownToBeAbsentIsKnownForTheTimeThatPasses(t *testing.T) {
	n := newNegatives()
	now := time.Now()
	n.put(7, &Negative{Domain: "example.com", Until: now.Add(time.Hour)})
	if known, _ := n.get(7, []byte("example.com"), now.Add(time.Hour-1)); !known {
		t.Error("forgotten too early")
	}
	if known, _ := n.get(7, []byte("example.com"), now.Add(time.Hour)); known {
		t.Error("still known")
	}
	// The monotonic reading decides, as long as none of the two has lost it.
	if v, _ := n.byHash.Peek(7); v.Until == v.Until.Round(0) {
		t.Error("the moment has no monotonic reading")
	}
}

func TestAPolicyLeftToExpireIsLookedAfterAgainWhenItIsAskedFor(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 365*day)
		s.mustHold(t, "example.com")
		settle(120 * day)
		r, err := s.Get("example.com")
		if err != nil || r.Lane != laneQuiet {
			t.Fatalf("after 120 days without use: lane %d, %v", r.Lane, err)
		}
		// From now on it is in use, and an attacker hides the TXT record.
		s.net.change("example.com", func(h *fakeHost) { h.recordErr = policy.ResultNoRecord })
		for range 400 {
			s.mustHold(t, "example.com")
			settle(day)
		}
		if _, err := s.lookup(t, "example.com"); err != nil {
			t.Errorf("in use for 400 days: %v", err)
		}
	})
}

func TestAStrayedPolicyThatCannotBeFetchedIsNotAskedForMoreThanEveryFiveMinutes(t *testing.T) {
	inSite(t, func(o *Options) { o.Recheck = time.Second }, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 365*day)
		s.mustHold(t, "example.com")
		settle(120 * day)
		_, before := s.net.asked("example.com")
		s.net.change("example.com", func(h *fakeHost) { h.fetchErr = policy.ResultFetch })
		for range 290 {
			if _, err := s.lookup(t, "example.com"); errors.Is(err, ErrNoPolicy) {
				t.Fatal(err)
			}
			settle(time.Second)
		}
		if _, n := s.net.asked("example.com"); n-before != 1 {
			t.Errorf("%d fetches in five minutes", n-before)
		}
	})
}

func TestNothingIsDeletedForADayAfterTheClockHasJumpedAhead(t *testing.T) {
	begun := time.Now()
	d := newDeletion(begun)
	deleted := map[time.Duration]bool{} // by the time that has passed
	for passed := time.Minute; passed <= 3*day; passed += time.Minute {
		wall := begun.Round(0).Add(passed)
		if passed > day {
			wall = wall.Add(365 * day)
		}
		deleted[passed] = d.due(begun.Add(passed), wall)
	}
	for passed, done := range deleted {
		held := passed > day && passed < 2*day+time.Minute
		if held && done {
			t.Errorf("deleted %s after the jump", passed-day)
		}
	}
	if !deleted[purgeEvery] || !deleted[2*purgeEvery] || deleted[purgeEvery+time.Minute] {
		t.Error("not every ten minutes before the jump")
	}
	if !deleted[2*day+time.Minute] {
		t.Error("not a day after the jump")
	}
}

// The bubble's clock cannot be set back, so the moments are given.
func TestAPolicyThatLivesAgainOnceTheClockIsPutRightIsNotHiddenByAFailure(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", day)
		s.mustHold(t, "example.com")
		s.net.change("example.com", func(h *fakeHost) { h.fetchErr = policy.ResultWebPKI })
		right := time.Now().Add(20 * time.Hour)
		settle(25 * time.Hour) // "the clock jumps ahead"
		if _, err := s.lookup(t, "example.com"); !errors.Is(err, ErrNoPolicy) {
			t.Fatal(err)
		}
		ahead := time.Now()
		hash := s.hash("example.com")
		if known, _ := s.negative.get(hash, []byte("example.com"), ahead); !known {
			t.Error("the failure is not remembered")
		}
		if known, _ := s.negative.get(hash, []byte("example.com"), right); known {
			t.Error("put right, the failure hides a policy that is held")
		}
		if known, _ := s.negative.get(hash, []byte("example.com"), right.Add(4*time.Hour)); !known {
			t.Error("once the policy has expired, the failure is not known")
		}
	})
}

func TestAStartWithAClockThatMayBeAheadDeletesNothingForADay(t *testing.T) {
	path := filepath.Join(memoryDir(t), "cache.db")
	synctest.Test(t, func(t *testing.T) {
		net := newFakeNet()
		s := openSite(t, path, net, nil)
		net.enforced("example.com", day)
		s.mustHold(t, "example.com")
		if err := s.stop(); err != nil {
			t.Fatal(err)
		}
		settle(9 * day) // switched off, or so the clock says
		s = openSite(t, path, net, nil)
		settle(purgeAfterJump - time.Minute)
		if _, err := s.disk.Store.Get("example.com"); err != nil {
			t.Errorf("before a day has passed: %v", err)
		}
		settle(2 * purgeEvery)
		if _, err := s.disk.Store.Get("example.com"); !errors.Is(err, cache.ErrNotFound) {
			t.Errorf("after it: %v", err)
		}
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
}
