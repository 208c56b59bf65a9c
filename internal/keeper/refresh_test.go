package keeper

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// settle lets what is under way end, within the bubble's time.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

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

func TestAPolicyNotInUseIsFetchedRarelyAndAfter90DaysLeftToExpire(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		s.mustHold(t, "example.com")
		settle(60 * day)
		if _, n := s.net.asked("example.com"); n < 3 || n > 7 {
			t.Errorf("%d fetches in 60 days without use", n)
		}
		settle(35 * day)
		_, before := s.net.asked("example.com")
		settle(60 * day)
		if _, after := s.net.asked("example.com"); after != before {
			t.Errorf("fetched %d times after 95 days without use", after-before)
		}
		if _, err := s.disk.Store.Get("example.com"); err == nil {
			t.Error("a week after it has expired it is still there")
		}
	})
}

func TestAUseIsNotForgottenWhereChecksAreRarerThanTheBitmapsAreRotated(t *testing.T) {
	inSite(t, func(o *Options) { o.Interval = 10 * day }, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 60*day)
		s.mustHold(t, "example.com")
		settle(2 * day)
		checks, fetches := s.net.asked("example.com")
		s.mustHold(t, "example.com")
		used := time.Now()
		settle(2 * day)
		if r := mustGet(t, s, "example.com"); r.Used.Before(used.Add(-time.Second)) {
			t.Errorf("used %v before the last use", used.Sub(r.Used))
		}
		if _, n := s.net.asked("example.com"); n == fetches {
			t.Error("a policy in use was not fetched within two days")
		}
		if n, _ := s.net.asked("example.com"); n > checks+4 { // the recheck, and with each fetch
			t.Errorf("%d TXT lookups in two days", n-checks)
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
				t.Errorf("mode %s: record %+v, %v", mode, r, err)
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

func TestARecheckNeedsNoSecondSlot(t *testing.T) {
	inSite(t, func(o *Options) { o.RefreshConcurrency = 1 }, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		s.mustHold(t, "example.com")
		s.net.change("example.com", func(h *fakeHost) { h.id, h.text = "2", policyText("enforce", 30*day, "new.example.com") })
		settle(6 * time.Minute)
		s.mustHold(t, "example.com")
		settle(10 * time.Second)
		if got := s.mustHold(t, "example.com"); !strings.Contains(got, "new.example.com") {
			t.Errorf("held %q", got)
		}
	})
}

func TestAllSlotsCanBeHeldAtOnce(t *testing.T) {
	const slots = 3
	inSite(t, func(o *Options) { o.RefreshConcurrency = slots }, func(t *testing.T, s *site) {
		gate := make(chan struct{})
		for i := range 2 * slots {
			d := fmt.Sprintf("d%d.example", i)
			s.net.enforced(d, 30*day)
			s.mustHold(t, d)
			s.net.change(d, func(h *fakeHost) { h.recordGate = gate })
		}
		settle(day + idlePoll) // checks are due, and wait
		if n := len(s.check.slots); n != slots {
			t.Errorf("%d of %d slots are held", n, slots)
		}
		close(gate)
	})
}

// However many rechecks lookups want, what is due for a check is checked.
func TestRechecksDoNotKeepTheCheckLineFromWhatIsDue(t *testing.T) {
	inSite(t, func(o *Options) { o.CheckRate = 0.1 }, func(t *testing.T, s *site) {
		const n = 60 // more than twice what can be checked in recheck
		for i := range n {
			s.net.enforced(fmt.Sprintf("d%d.example", i), 30*day)
			s.mustHold(t, fmt.Sprintf("d%d.example", i))
		}
		s.net.enforced("quiet.example", 30*day)
		s.mustHold(t, "quiet.example")
		for range 26 * 12 { // a day and two hours
			for i := range n {
				s.mustHold(t, fmt.Sprintf("d%d.example", i))
			}
			settle(5 * time.Minute)
		}
		if got, _ := s.net.asked("quiet.example"); got < 2 {
			t.Error("in a day it was not checked")
		}
	})
}

// A store whose index has lost a policy never says that it is due.
type forgetfulStore struct{ Store }

func (forgetfulStore) Due(cache.Lane, time.Time, int) ([]cache.Due, time.Time, error) {
	return nil, time.Time{}, nil
}

func TestAPolicyThatTheIndexHasLostIsFetchedWhenItIsAskedFor(t *testing.T) {
	inSite(t, func(o *Options) { o.Store = forgetfulStore{o.Store} }, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 3*day)
		for range 10 * 24 {
			s.mustHold(t, "example.com")
			settle(time.Hour)
		}
		if n := s.Stats().Discoveries; n != 1 {
			t.Errorf("it has expired and was found anew %d times", n-1)
		}
	})
}

func TestAFloodOfRechecksIsDroppedAndCounted(t *testing.T) {
	s := openSite(t, t.TempDir()+"/cache.db", newFakeNet(), nil)
	if err := s.stop(); err != nil { // nothing drains the queue now
		t.Fatal(err)
	}
	for i := range 3 * recheckQueue {
		d := fmt.Sprintf("x%d.example", i)
		s.wantRecheck(uint64(i)<<8|uint64(i)<<32, []byte(d), 1e9, 300)
	}
	if len(s.check.urgent) != recheckQueue {
		t.Errorf("%d wait", len(s.check.urgent))
	}
	if got := s.Stats().RechecksDropped; got != 2*recheckQueue {
		t.Errorf("%d dropped", got)
	}
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

func TestRFC8461_8_1_FetchesByTheAdministratorDoNotSettleANewIDTooSoon(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		s.mustHold(t, "example.com")
		s.net.change("example.com", func(h *fakeHost) { h.id = "2" })
		seen := time.Now()
		for range 9 {
			if _, err := s.Refresh(t.Context(), "example.com"); err != nil {
				t.Fatal(err)
			}
			if r := mustGet(t, s, "example.com"); r.ID != "1" || r.PendingID != "2" {
				t.Fatalf("%v after the first sight: id %q, pending %q", time.Since(seen), r.ID, r.PendingID)
			}
			settle(time.Minute)
		}
		settle(confirmWithin)
		if r := mustGet(t, s, "example.com"); r.ID != "2" || r.PendingID != "" {
			t.Errorf("%v after the first sight: id %q, pending %q", time.Since(seen), r.ID, r.PendingID)
		}
	})
}

func TestALookupThatJoinsARefreshIsAnsweredFromWhatIsOnDisk(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", time.Hour)
		s.mustHold(t, "example.com")
		s.net.change("example.com", func(h *fakeHost) { h.fetchErr = policy.ResultFetch })
		settle(time.Until(mustGet(t, s, "example.com").Expires) - 20*time.Second)
		s.net.enforced("example.com", time.Hour)
		s.net.change("example.com", func(h *fakeHost) { h.takes = 25 * time.Second })
		s.fetch.hurry("example.com") // under way when the policy expires
		settle(21 * time.Second)
		s.mustHold(t, "example.com")
		if r, err := s.disk.Store.Get("example.com"); err != nil || !r.Expires.After(time.Now()) {
			t.Errorf("on disk it expires %v, %v", r.Expires, err)
		}
	})
}

func TestRFC8461_3_3_AfterAFailedFetchTheSameIDWaitsFiveMinutes(t *testing.T) {
	inSite(t, func(o *Options) { o.Recheck = time.Second }, func(t *testing.T, s *site) {
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

func TestAFailedFetchIsTriedAgainWhenTheLogSaysSo(t *testing.T) {
	for _, result := range []policy.Result{policy.ResultFetch, policy.ResultBusy} {
		inSite(t, nil, func(t *testing.T, s *site) {
			s.net.enforced("example.com", 30*day)
			for range 2 {
				s.mustHold(t, "example.com")
			}
			// First a fetch that succeeds, so that the host was asked of late.
			if _, err := s.Refresh(t.Context(), "example.com"); err != nil {
				t.Fatal(err)
			}
			s.net.change("example.com", func(h *fakeHost) { h.fetchErr = result })
			if _, err := s.Refresh(t.Context(), "example.com"); err != nil {
				t.Fatal(err)
			}
			failed := time.Now()
			_, before := s.net.asked("example.com")
			next := mustGet(t, s, "example.com").FetchAt
			if wait := next.Sub(failed); wait < firstBackoff-time.Second || wait > firstBackoff*5/4 {
				t.Errorf("%s: the next try is to be %v after the failure", result, wait)
			}
			if told := "next=" + next.Format(time.RFC3339); result == policy.ResultFetch && !strings.Contains(s.log.String(), told) {
				t.Errorf("no %s in the log:\n%s", told, s.log)
			}
			settle(time.Until(next) - time.Second)
			if _, n := s.net.asked("example.com"); n != before {
				t.Errorf("%s: tried %d times before", result, n-before)
			}
			settle(10 * time.Second)
			if _, n := s.net.asked("example.com"); n != before+1 {
				t.Errorf("%s: tried %d times at the moment that was drawn", result, n-before)
			}
		})
	}
}

func mustGet(t *testing.T, s *site, domain string) cache.Record {
	t.Helper()
	r, err := s.Get(domain)
	if err != nil {
		t.Fatal(err)
	}
	return r
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

func TestARefreshThatFindsThePolicyExpiredDoesNotSwallowALookup(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", time.Hour)
		s.mustHold(t, "example.com")
		settle(61 * time.Minute)
		fl, mine := s.flights.join("example.com")
		if !mine {
			t.Fatal("a flight is under way")
		}
		done := make(chan error, 1)
		go func() { _, err := s.lookup(t, "example.com"); done <- err }()
		synctest.Wait()
		s.flights.end("example.com", fl) // the refresher saw nothing to do
		if err := <-done; err != nil {
			t.Errorf("lookup: %v", err)
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
		for range 3 * 24 {
			s.mustHold(t, "good.example")
			settle(time.Hour)
		}
		if _, n := s.net.asked("example.com"); n < 2 || n > 3*24*7 {
			t.Errorf("%d fetches of the damaged one in three days", n)
		}
		s.net.enforced("example.com", 4*day)
		settle(2 * time.Hour)
		s.mustHold(t, "example.com")
	})
}

func TestOneErrorSaysThatNothingSucceedsAnyMore(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		for i := range 10 {
			d := strings.Repeat("x", i+1) + ".example"
			s.net.set(d, fakeHost{id: "1", fetchErr: policy.ResultFetch})
			_, _ = s.lookup(t, d)
			settle(time.Minute)
		}
		if n := strings.Count(s.log.String(), "no policy fetch has succeeded"); n != 1 || !s.Stats().Trouble {
			t.Errorf("said %d times, trouble %v\n%s", n, s.Stats().Trouble, s.log)
		}
		s.net.enforced("good.example", day)
		s.mustHold(t, "good.example")
		settle(2 * time.Minute)
		if s.Stats().Trouble || !strings.Contains(s.log.String(), "it works again") {
			t.Error("still in trouble")
		}
	})
}

func TestAPanicInADiscoveryIsSurvivedAndNotFound(t *testing.T) {
	inSite(t, func(o *Options) {
		o.Prepare = func(*policy.Policy) []byte { panic("on purpose") }
	}, func(t *testing.T, s *site) {
		s.net.enforced("example.com", day)
		if _, err := s.lookup(t, "example.com"); !errors.Is(err, ErrNoPolicy) {
			t.Error(err)
		}
		if s.Stats().Panics != 1 {
			t.Errorf("%d panics counted", s.Stats().Panics)
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
