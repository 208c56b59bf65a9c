package keeper_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

func TestRFC8461_3_3_APolicyInUseIsFetchedDaily(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		for range 10 * 24 {
			s.mustHold(t, "example.com")
			settle(time.Hour)
		}
		if _, n := s.net.asked("example.com"); n < 10 || n > 16 {
			t.Errorf("%d fetches in ten days of use", n)
		}
	})
}

func TestRFC8461_3_3_ABlockedDNSStopsNoFetch(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 4*day)
		s.mustHold(t, "example.com")
		s.net.change("example.com", func(h *fakeHost) { h.recordErr = policy.ResultDNS })
		for range 30 * 24 {
			s.mustHold(t, "example.com")
			settle(time.Hour)
		}
	})
}

func TestRFC8461_3_3_ARecordThatIsGoneChangesNothingWhileThePolicyLives(t *testing.T) {
	for _, gone := range []policy.Result{policy.ResultNoRecord, policy.ResultRecordInvalid} {
		inSite(t, nil, func(t *testing.T, s *site) {
			s.net.enforced("example.com", 4*day)
			s.mustHold(t, "example.com")
			s.net.change("example.com", func(h *fakeHost) { h.recordErr = gone })
			for range 20 * 24 {
				s.mustHold(t, "example.com")
				settle(time.Hour)
			}
			if _, n := s.net.asked("example.com"); n < 15 {
				t.Errorf("%s: %d fetches in 20 days", gone, n)
			}
		})
	}
}

func TestRFC8461_3_3_AFailureToRefreshIsLoggedUnlessTheModeIsNone(t *testing.T) {
	for mode, want := range map[string]bool{"enforce": true, "testing": true, "none": false} {
		inSite(t, nil, func(t *testing.T, s *site) {
			s.net.set("example.com", fakeHost{id: "1", text: policyText(mode, 30*day, "mx.example.com")})
			s.mustHold(t, "example.com")
			s.net.change("example.com", func(h *fakeHost) { h.fetchErr = policy.ResultWebPKI })
			for range 48 {
				_, _ = s.lookup(t, "example.com")
				settle(time.Hour)
			}
			if got := strings.Contains(s.log.String(), "could not be refreshed"); got != want {
				t.Errorf("mode %s: warned %v\n%s", mode, got, s.log)
			}
			if r, err := s.Get("example.com"); err != nil || r.Failures == 0 || !strings.Contains(r.LastError, "as the test wants it") {
				t.Errorf("mode %s: record %+v, %v\n%s\n%+v", mode, r, err, s.log, s.disk.Stats())
			}
		})
	}
}

func TestRFC8461_5_1_ANewIDIsFollowedAtTheNextRetry(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		s.mustHold(t, "example.com")
		s.net.change("example.com", func(h *fakeHost) { h.id, h.text = "2", policyText("enforce", 30*day, "new.example.com") })
		settle(6 * time.Minute) // longer than recheck
		s.mustHold(t, "example.com")
		settle(10 * time.Second)
		if got := s.mustHold(t, "example.com"); !strings.Contains(got, "new.example.com") {
			t.Errorf("held %q", got)
		}
		if r, _ := s.Get("example.com"); r.ID != "2" || r.PendingID != "" {
			t.Errorf("record %+v", r)
		}
	})
}

func TestALookupAsksForTheRecordOnceInRecheck(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		for range 600 {
			s.mustHold(t, "example.com")
			settle(time.Second)
		}
		if n, _ := s.net.asked("example.com"); n < 2 || n > 3 {
			t.Errorf("%d TXT lookups in ten minutes", n)
		}
	})
}

func TestRFC8461_8_1_ANewIDWithTheOldTextIsSeenOnlyWhenASecondFetchAgrees(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		s.mustHold(t, "example.com")
		s.net.change("example.com", func(h *fakeHost) { h.id = "2" })
		settle(6 * time.Minute)
		s.mustHold(t, "example.com")
		settle(10 * time.Second)
		if r, _ := s.Get("example.com"); r.ID != "1" || r.PendingID != "2" {
			t.Fatalf("after the first fetch: id %q, pending %q", r.ID, r.PendingID)
		}
		// The policy host catches up before the second fetch.
		s.net.change("example.com", func(h *fakeHost) { h.text = policyText("enforce", 30*day, "new.example.com") })
		settle(61 * time.Minute)
		if got := s.mustHold(t, "example.com"); !strings.Contains(got, "new.example.com") {
			t.Errorf("held %q", got)
		}
		if r, _ := s.Get("example.com"); r.ID != "2" || r.PendingID != "" {
			t.Errorf("after the second: id %q, pending %q", r.ID, r.PendingID)
		}
	})
}

func TestRFC8461_8_1_ASecondFetchThatAgreesSettlesTheNewID(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		s.mustHold(t, "example.com")
		s.net.change("example.com", func(h *fakeHost) { h.id = "2" })
		settle(6 * time.Minute)
		s.mustHold(t, "example.com")
		settle(70 * time.Minute)
		_, n := s.net.asked("example.com")
		if r, _ := s.Get("example.com"); r.ID != "2" || r.PendingID != "" || n != 3 {
			t.Errorf("id %q, pending %q after %d fetches", r.ID, r.PendingID, n)
		}
	})
}

func TestRFC8461_3_3_AfterAFailedFetchTheSameIDWaitsFiveMinutes(t *testing.T) {
	inSite(t, func(o *keeper.Options) { o.Recheck = time.Second }, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		s.mustHold(t, "example.com")
		s.net.change("example.com", func(h *fakeHost) { h.id, h.fetchErr = "2", policy.ResultFetch })
		settle(2 * time.Second)
		for range 290 {
			s.mustHold(t, "example.com")
			settle(time.Second)
		}
		if _, n := s.net.asked("example.com"); n != 2 {
			t.Errorf("%d fetches in five minutes, the first one included", n)
		}
	})
}

func TestAPolicyThatIsRefreshedIsAnsweredFromMemoryAtOnce(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		for range 3 {
			s.mustHold(t, "example.com")
		}
		s.net.change("example.com", func(h *fakeHost) { h.text = policyText("none", 30*day, "mx.example.com") })
		got, err := s.Refresh(t.Context(), "example.com")
		if err != nil || got.Result != policy.ResultOK || !got.Changed || got.Mode != "none" {
			t.Errorf("refreshed: %+v, %v", got, err)
		}
		if held := s.mustHold(t, "example.com"); !strings.HasPrefix(held, "none ") {
			t.Errorf("held %q", held)
		}
	})
}

func TestRefreshOfADomainNotHeldDiscoversIt(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		if got, err := s.Refresh(t.Context(), "none.example"); err != nil || got.Result != policy.ResultNoRecord {
			t.Errorf("%+v, %v", got, err)
		}
		s.net.enforced("example.com", 30*day)
		if got, err := s.Refresh(t.Context(), "example.com"); err != nil || got.Result != policy.ResultOK || got.ID != "1" {
			t.Errorf("%+v, %v", got, err)
		}
	})
}

func TestTheRefresherDoesNotSpinOnADamagedRecord(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 4*day)
		s.net.enforced("good.example", 4*day)
		s.mustHold(t, "example.com")
		s.mustHold(t, "good.example")
		s.disk.set(func(d *faultyStore) { d.damaged["example.com"] = true })
		s.net.change("example.com", func(h *fakeHost) { h.fetchErr = policy.ResultFetch })
		for range 4*24 - 8 {
			s.mustHold(t, "good.example")
			settle(time.Hour)
		}
		if _, n := s.net.asked("example.com"); n < 2 || n > 4*24*3 {
			t.Errorf("%d fetches of the damaged one in four days", n)
		}
		s.net.enforced("example.com", 4*day)
		settle(2 * time.Hour)
		s.mustHold(t, "example.com")
	})
}

// The refresher reads the first 1,000 that are due. It must not wait while these are
// fetched and not written yet.
func TestABacklogIsWorkedOffAtAHighRate(t *testing.T) {
	fast := func(o *keeper.Options) { o.FetchRate = 10_000 }
	inSite(t, fast, func(t *testing.T, s *site) {
		const n = 5000
		var ops []cache.Op
		now := time.Now()
		for i := range n {
			domain := fmt.Sprintf("d%d.example", i)
			s.net.enforced(domain, 30*day)
			ops = append(ops, cache.Op{Put: &cache.Record{
				Domain: domain, Mode: policy.ModeEnforce, Text: []byte(policyText("enforce", 30*day, "mx."+domain)), Match: []byte{0}, ID: "1",
				Fetched: now.Add(-day), Expires: now.Add(29 * day), Used: now, FetchAt: now, FetchUnusedAt: now,
				Lane: cache.LaneNormal, Due: now.Add(-time.Minute),
			}})
		}
		if _, err := s.disk.Write(ops); err != nil {
			t.Fatal(err)
		}
		settle(5*time.Minute + n*time.Second/200) // the refresher may sleep for five minutes
		if got := s.net.total("d"); got < n {
			t.Errorf("%d of %d policies were fetched", got, n)
		}
	})
}

func TestRefreshesByTheAdministratorKeepToTheRateOfFetches(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		const n = 100
		for i := range n {
			d := fmt.Sprintf("d%d.example", i)
			s.net.enforced(d, 30*day)
			s.mustHold(t, d)
		}
		begun := time.Now()
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				if got, err := s.Refresh(t.Context(), fmt.Sprintf("d%d.example", i)); err != nil || got.Result != policy.ResultOK {
					t.Errorf("%+v, %v", got, err)
				}
			})
		}
		wg.Wait()
		if took, least := time.Since(begun), (n-1)*time.Second/20; took < least {
			t.Errorf("%d fetches in %s, want %s at 20 a second", n, took, least)
		}
	})
}

func TestAPanicInADiscoveryIsSurvivedAndOurFault(t *testing.T) {
	inSite(t, func(o *keeper.Options) {
		o.MatchList = func(*policy.Policy) []byte { panic("on purpose") }
	}, func(t *testing.T, s *site) {
		s.net.enforced("example.com", day)
		if _, err := s.lookup(t, "example.com"); !errors.Is(err, keeper.ErrOurFault) {
			t.Error(err)
		}
		if s.Stats().Panics != 1 {
			t.Errorf("%d panics counted", s.Stats().Panics)
		}
	})
}

func TestNothingIsDeletedForADayAfterAStartWithAClockThatMayBeAhead(t *testing.T) {
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
		settle(day - time.Minute)
		if _, err := s.disk.Store.Get("example.com"); err != nil {
			t.Errorf("before a day has passed: %v", err)
		}
		settle(20 * time.Minute)
		if _, err := s.disk.Store.Get("example.com"); !errors.Is(err, cache.ErrNotFound) {
			t.Errorf("after it: %v\n%s", err, s.log)
		}
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestRFC8461_8_1_FetchesByTheAdministratorDoNotSettleANewIDTooSoon(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		s.mustHold(t, "example.com")
		s.net.change("example.com", func(h *fakeHost) { h.id = "2" })
		for range 9 {
			if _, err := s.Refresh(t.Context(), "example.com"); err != nil {
				t.Fatal(err)
			}
			if r := mustGet(t, s, "example.com"); r.ID != "1" || r.PendingID != "2" {
				t.Fatalf("id %q, pending %q", r.ID, r.PendingID)
			}
			settle(time.Minute)
		}
		settle(time.Hour)
		if r := mustGet(t, s, "example.com"); r.ID != "2" || r.PendingID != "" {
			t.Errorf("id %q, pending %q", r.ID, r.PendingID)
		}
	})
}

// The id changes all the time, and the domain is asked for all the time.
func TestOneDomainIsFetchedNoMoreThanOnceInTenMinutes(t *testing.T) {
	inSite(t, func(o *keeper.Options) { o.Recheck = time.Minute }, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		for i := range 10 * 60 {
			s.net.change("example.com", func(h *fakeHost) {
				h.id, h.text = fmt.Sprint(i), policyText("enforce", 30*day, fmt.Sprintf("mx%d.example.com", i))
			})
			s.mustHold(t, "example.com")
			settle(time.Minute)
		}
		if _, n := s.net.asked("example.com"); n < 50 || n > 62 {
			t.Errorf("%d fetches in ten hours", n)
		}
	})
}

func TestAFailedFetchIsTriedAgainWhenTheLogSaysSo(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		s.mustHold(t, "example.com")
		s.net.change("example.com", func(h *fakeHost) { h.fetchErr = policy.ResultFetch })
		if _, err := s.Refresh(t.Context(), "example.com"); err != nil {
			t.Fatal(err)
		}
		next := mustGet(t, s, "example.com").FetchAt
		if wait := time.Until(next); wait < 5*time.Minute-time.Second || wait > 5*time.Minute*5/4 {
			t.Errorf("the next try is %v after the failure", wait)
		}
		if told := "next=" + next.Format(time.RFC3339); !strings.Contains(s.log.String(), told) {
			t.Errorf("no %s in the log:\n%s", told, s.log)
		}
		settle(time.Until(next) - time.Second)
		if _, n := s.net.asked("example.com"); n != 2 {
			t.Errorf("tried %d times before", n-2)
		}
		settle(90 * time.Second)
		if _, n := s.net.asked("example.com"); n != 3 {
			t.Errorf("tried %d times at the moment that was drawn", n-2)
		}
	})
}

func TestTheRefresherDoesNotSpinWhenNothingCanBeWritten(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		for i := range 20 {
			s.net.enforced(fmt.Sprintf("d%d.example", i), 2*day)
			s.mustHold(t, fmt.Sprintf("d%d.example", i))
		}
		s.disk.set(func(d *faultyStore) { d.full = true })
		settle(day)
		if n := s.net.total("d"); n > 20*3 {
			t.Errorf("%d fetches of 20 policies", n)
		}
		s.disk.set(func(d *faultyStore) { d.full = false })
		settle(time.Hour)
	})
}

func TestADomainAskedForEachMinuteNeverExpires(t *testing.T) {
	neverExpires(t, 15*time.Minute, 6*time.Hour)
}

func neverExpires(t *testing.T, maxAges ...time.Duration) {
	t.Helper()
	for _, maxAge := range maxAges {
		inSite(t, nil, func(t *testing.T, s *site) {
			s.net.enforced("example.com", maxAge)
			s.mustHold(t, "example.com")
			for range 8 * max(maxAge, 3*time.Hour) / time.Minute {
				settle(time.Minute)
				s.mustHold(t, "example.com")
				if r := mustGet(t, s, "example.com"); !time.Now().Before(r.Expires) {
					t.Fatalf("max_age %v: it has expired", maxAge)
				}
			}
			records, fetches := s.net.asked("example.com")
			if most := int(8*max(maxAge, 3*time.Hour)/(10*time.Minute)) + 1; fetches > most {
				t.Errorf("max_age %v: %d fetches, %d TXT questions", maxAge, fetches, records)
			}
		})
	}
}
