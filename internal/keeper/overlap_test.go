package keeper

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// This file: what is done to a domain at the same time.

// inSlowCheck runs a test while the check line waits for the TXT record of
// example.com, whose policy is held. What it then gets is the old record.
func inSlowCheck(t *testing.T, test func(t *testing.T, s *site, goOn func())) {
	t.Helper()
	inSite(t, func(o *Options) { o.Interval = 2 * time.Hour }, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		s.mustHold(t, "example.com")
		gate := make(chan struct{})
		s.net.change("example.com", func(h *fakeHost) { h.recordGate = gate })
		settle(2*time.Hour + idlePoll)
		if n, _ := s.net.asked("example.com"); n != 2 {
			t.Fatalf("%d TXT lookups: the check has not begun", n)
		}
		s.net.change("example.com", func(h *fakeHost) { h.recordGate = nil })
		test(t, s, func() { close(gate); settle(2 * commitLinger) })
	})
}

func TestACheckDoesNotPutAnOldPolicyInTheNewOnesPlace(t *testing.T) {
	inSlowCheck(t, func(t *testing.T, s *site, goOn func()) {
		s.net.change("example.com", func(h *fakeHost) { h.id, h.text = "2", policyText("enforce", 30*day, "new.example.com") })
		if got, err := s.Refresh(t.Context(), "example.com"); err != nil || !got.Changed {
			t.Fatalf("%+v, %v", got, err)
		}
		goOn()
		r, err := s.disk.Store.Get("example.com")
		if err != nil || r.ID != "2" || !strings.Contains(string(r.Text), "new.example.com") {
			t.Errorf("on disk: %+v, %v", r, err)
		}
		if got := s.mustHold(t, "example.com"); !strings.Contains(got, "new.example.com") {
			t.Errorf("held %q", got)
		}
	})
}

func TestACheckDoesNotBringBackWhatWasForgotten(t *testing.T) {
	inSlowCheck(t, func(t *testing.T, s *site, goOn func()) {
		if found, _, err := s.Forget(t.Context(), "example.com"); err != nil || !found {
			t.Fatalf("forget: %v, %v", found, err)
		}
		goOn()
		if _, err := s.disk.Store.Get("example.com"); !errors.Is(err, cache.ErrNotFound) {
			t.Errorf("after forget: %v", err)
		}
	})
}

func TestForgetComesAfterTheDiscoveryThatIsUnderWay(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		s.net.change("example.com", func(h *fakeHost) { h.takes = 5 * time.Second })
		errs := make(chan error, 1)
		go func() { _, err := s.lookup(t, "example.com"); errs <- err }()
		synctest.Wait()
		if found, _, err := s.Forget(t.Context(), "example.com"); err != nil || !found {
			t.Errorf("forget: %v, %v", found, err)
		}
		if err := <-errs; err != nil {
			t.Errorf("the lookup before: %v", err)
		}
		settle(time.Minute)
		if _, err := s.Get("example.com"); !errors.Is(err, cache.ErrNotFound) {
			t.Errorf("after forget: %v", err)
		}
	})
}

func TestNewsThatComeWhileARecordIsWrittenAreNotLost(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		s.mustHold(t, "example.com")
		s.net.change("example.com", func(h *fakeHost) { h.id, h.text = "2", policyText("enforce", 30*day, "new.example.com") })
		fl, mine := s.flights.join("example.com")
		if !mine {
			t.Fatal("a flight is under way")
		}
		s.fetch.hurry("example.com")
		settle(time.Second)
		s.flights.end("example.com", fl)
		settle(time.Second)
		if r, err := s.Get("example.com"); err != nil || r.ID != "2" {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

func TestTheRefresherDoesNotSpinOnADomainThatIsBeingDone(t *testing.T) {
	inSite(t, func(o *Options) { o.Interval = 30 * day }, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 4*day)
		s.mustHold(t, "example.com")
		fl, mine := s.flights.join("example.com")
		if !mine {
			t.Fatal("a flight is under way")
		}
		settle(day + idlePoll) // it is due, and nothing can be done about it
		if n := s.fetch.underWay(); n != 1 {
			t.Errorf("%d under way", n)
		}
		s.flights.end("example.com", fl)
		settle(2 * idlePoll)
		if n := s.fetch.underWay(); n != 0 {
			t.Errorf("%d under way at the end", n)
		}
	})
}

func TestForgetFindsAPolicyThatIsInMemoryOnly(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		r := cache.Record{Domain: "example.com", Mode: policy.ModeEnforce, Fetched: time.Now(), Expires: time.Now().Add(day)}
		s.inMemoryOnly(&r)
		if _, err := s.lookup(t, "example.com"); err != nil {
			t.Fatal(err)
		}
		if found, _, err := s.Forget(t.Context(), "example.com"); err != nil || !found {
			t.Errorf("forget: %v, %v", found, err)
		}
		if found, _, err := s.Forget(t.Context(), "example.com"); err != nil || found {
			t.Errorf("once more: %v, %v", found, err)
		}
	})
}

// inLateFetch runs a test while the refresher fetches the policy of
// example.com, which has run out, and waits for the TXT record first. A lookup
// that waits for it has begun; what it comes to is in the channel.
func inLateFetch(t *testing.T, test func(t *testing.T, s *site, goOn func(), came <-chan error)) {
	t.Helper()
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 5*time.Minute)
		s.mustHold(t, "example.com")
		s.net.change("example.com", func(h *fakeHost) { h.fetchErr = policy.ResultFetch })
		settle(6 * time.Minute)
		gate := make(chan struct{})
		s.net.change("example.com", func(h *fakeHost) { h.fetchErr, h.recordGate = "", gate })
		s.fetch.hurry("example.com")
		synctest.Wait()
		s.net.change("example.com", func(h *fakeHost) { h.recordGate = nil })
		came := make(chan error, 1)
		go func() { _, err := s.lookup(t, "example.com"); came <- err }()
		synctest.Wait()
		if n, _ := s.net.asked("example.com"); s.flights.length() != 1 || len(came) != 0 {
			t.Fatalf("%d flights, %d TXT lookups: the lookup does not wait for the refresher", s.flights.length(), n)
		}
		test(t, s, func() { close(gate) }, came)
	})
}

func TestALookupTriesItselfWhereTheRefresherHasNoTurn(t *testing.T) {
	inLateFetch(t, func(t *testing.T, s *site, goOn func(), came <-chan error) {
		for range hostFetches {
			release, err := s.refreshGate.Acquire(t.Context(), addrOf("example.com"))
			if err != nil {
				t.Fatal(err)
			}
			defer release()
		}
		goOn()
		if err := <-came; err != nil {
			t.Error(err)
		}
	})
}

func TestALookupIsBrokenOffWithTheFetchItWaitsFor(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 5*time.Minute)
		s.mustHold(t, "example.com")
		r, err := s.held("example.com", time.Now())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		fl, _ := s.flights.join("example.com")
		defer s.flights.end("example.com", fl)
		if _, ok := s.refetch(ctx, s.refreshGate, r, fl); ok || !errors.Is(fl.err, ErrBrokenOff) {
			t.Errorf("%v, %v", ok, fl.err)
		}
	})
}
