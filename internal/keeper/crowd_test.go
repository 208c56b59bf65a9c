package keeper_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// This file: whoever crowds the bounds of discovery does not turn off anybody
// else's protection.

// stall looks up so many domains whose policy hosts never answer.
func (s *site) stall(t *testing.T, n int, addr func(i int) string) {
	for i := range n {
		d := fmt.Sprintf("t%d.example", i)
		s.net.set(d, fakeHost{id: "1", tarpit: true, addr: addr(i)})
		go func() { _, _ = s.lookup(t, d) }()
	}
	synctest.Wait()
}

func TestStallingPolicyHostsDoNotKeepAnHonestOneFromBeingFound(t *testing.T) {
	for name, tt := range map[string]struct {
		stalling int
		at       func(i int) string
		honest   string
		within   time.Duration
		most     int // connections when all others have come
	}{
		"12 at its own address":    {12, func(int) string { return "2a00::1" }, "2a00::1", 6 * time.Second, 8},
		"300 at one address":       {300, func(int) string { return "2a00::1" }, "2a01::1", time.Second, 8},
		"64 in its own network":    {64, func(i int) string { return fmt.Sprintf("2a00:0:0:%x::1", i) }, "2a00:0:0:ffff::1", 6 * time.Second, 64},
		"300 in one /24":           {300, func(i int) string { return fmt.Sprintf("93.184.215.%d", i%250) }, "193.0.6.1", time.Second, 64},
		"300 at four addresses":    {300, func(i int) string { return fmt.Sprintf("2a00:0:%x::1", i%4) }, "2a00:0:9::1", time.Second, 32},
		"256 in networks of their": {256, func(i int) string { return fmt.Sprintf("2a00:%x::1", i) }, "2a01::1", 6 * time.Second, 256},
	} {
		t.Run(name, func(t *testing.T) {
			inSite(t, nil, func(t *testing.T, s *site) {
				s.stall(t, tt.stalling, tt.at)
				if s.net.connections(true) != tt.most {
					t.Errorf("%d connections at once; want %d", s.net.connections(true), tt.most)
				}
				s.net.enforced("honest.example", 30*day)
				s.net.change("honest.example", func(h *fakeHost) { h.addr, h.takes = tt.honest, time.Second/2 })
				begun := time.Now()
				s.mustHold(t, "honest.example")
				if took := time.Since(begun); took > tt.within {
					t.Errorf("the honest policy was found after %s", took)
				}
				begun = time.Now()
				if _, err := s.lookup(t, "none.example"); !errors.Is(err, keeper.ErrNoPolicy) || time.Since(begun) > 0 {
					t.Errorf("a domain without a record: %v after %s", err, time.Since(begun))
				}
			})
		})
	}
}

func TestAnAddressGetsThirtyTwoConnectionsAndFurtherLookupsAreDeferred(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.stall(t, 60, func(int) string { return "2a00::1" })
		settle(16 * time.Second)
		s.net.enforced("late.example", 30*day)
		s.net.change("late.example", func(h *fakeHost) { h.addr, h.takes = "2a00::1", 25*time.Second })
		if _, err := s.lookup(t, "late.example"); !errors.Is(err, keeper.ErrOurFault) {
			t.Errorf("after a wait for a place: %v", err)
		}
		if s.net.connections(true) != 32 {
			t.Errorf("%d connections at once", s.net.connections(true))
		}
		settle(2 * time.Minute)
		if n, ok := s.Negative("late.example"); ok {
			t.Errorf("remembered: %+v", n)
		}
		if s.Stats().Overloads == 0 {
			t.Error("not counted")
		}
	})
}

// In the wider bounds half of the places at most are those of slow fetches.
func TestTheOldestSlowFetchYieldsItsPlaceAndIsNotRemembered(t *testing.T) {
	inSite(t, func(o *keeper.Options) { o.LookupConcurrency = 4 }, func(t *testing.T, s *site) {
		addr := func(i int) string { return fmt.Sprintf("2a00:%x::1", i) }
		s.stall(t, 4, addr)
		settle(6 * time.Second)
		for i := range 2 {
			d := fmt.Sprintf("h%d.example", i)
			s.net.enforced(d, 30*day)
			s.net.change(d, func(h *fakeHost) { h.takes = time.Second })
			begun := time.Now()
			if s.mustHold(t, d); time.Since(begun) != time.Second {
				t.Errorf("found after %v", time.Since(begun))
			}
		}
		if _, ok := s.Negative("t0.example"); ok {
			t.Error("the one that was ended is remembered")
		}
		if s.net.connections(false) != 3 {
			t.Errorf("%d connections are left", s.net.connections(false))
		}
	})
}

func TestManyHonestDomainsAtOneHostAreAllFound(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		errs := make(chan error, 400)
		for i := range 400 {
			d := fmt.Sprintf("d%d.example", i)
			s.net.enforced(d, 30*day)
			s.net.change(d, func(h *fakeHost) { h.addr, h.takes = "2a00::1", 200*time.Millisecond })
			go func() { _, err := s.lookup(t, d); errs <- err }()
		}
		for range 400 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if s.net.connections(true) != 8 {
			t.Errorf("%d connections at once", s.net.connections(true))
		}
	})
}

func TestTheRefresherHasPlacesOfItsOwn(t *testing.T) {
	inSite(t, func(o *keeper.Options) { o.LookupConcurrency = 1 }, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		s.net.change("example.com", func(h *fakeHost) { h.addr = "2a00::1" })
		s.mustHold(t, "example.com")
		s.stall(t, 20, func(int) string { return "2a00::1" })
		if got, err := s.Refresh(t.Context(), "example.com"); err != nil || got.Result != policy.ResultOK {
			t.Errorf("%+v, %v", got, err)
		}
	})
}

func TestTooManyQuestionsBelowOneDomainEndTheOldestOfThem(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		never := make(chan struct{})
		errs := make(chan error, 100)
		for i := range 100 {
			d := fmt.Sprintf("u%d.attacker.co.uk", i)
			s.net.set(d, fakeHost{recordGate: never})
			go func() { _, err := s.lookup(t, d); errs <- err }()
			synctest.Wait()
		}
		if len(errs) != 100-64 {
			t.Errorf("%d are answered", len(errs))
		}
		for range len(errs) {
			if err := <-errs; !errors.Is(err, keeper.ErrOurFault) {
				t.Errorf("ended to make room: %v", err)
			}
		}
		if n, remembered := s.Negative("u0.attacker.co.uk"); remembered {
			t.Errorf("remembered: %+v", n)
		}
		s.net.enforced("honest.co.uk", 30*day)
		s.mustHold(t, "honest.co.uk")
	})
}

func TestAFloodOfSilentDomainsBlocksNoOtherDomain(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		never := make(chan struct{})
		for i := range 5000 {
			d := fmt.Sprintf("u%d.example", i)
			s.net.set(d, fakeHost{recordGate: never})
			go func() { _, _ = s.lookup(t, d) }()
		}
		synctest.Wait()
		if n := s.Stats().Discovering; n != 3072 {
			t.Errorf("%d discoveries are under way", n)
		}
		begun := time.Now()
		s.net.enforced("honest.test", 30*day)
		if s.mustHold(t, "honest.test"); time.Since(begun) > 0 {
			t.Errorf("found after %v", time.Since(begun))
		}
	})
}
