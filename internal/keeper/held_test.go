package keeper

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// This file: what is held is never hidden, and what was not found out is not
// taken for "no policy".

func TestADiscoveryThatBeginsAfterAnotherHasFoundThePolicyAnswersFromIt(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		s.mustHold(t, "example.com")
		// A lookup that looked before the policy was there begins a discovery
		// now, and the network has gone meanwhile.
		s.net.change("example.com", func(h *fakeHost) { h.recordErr = policy.ResultDNS })
		var h Held
		if err := s.await(t.Context(), "example.com", false, &h); err != nil || h.Mode != policy.ModeEnforce {
			t.Errorf("mode %v, %v", h.Mode, err)
		}
		if n, _ := s.net.asked("example.com"); n != 1 {
			t.Errorf("%d TXT lookups", n)
		}
		if n, hidden := s.Negative("example.com"); hidden {
			t.Errorf("the policy held is hidden behind %+v", n)
		}
	})
}

func TestALookupThatIsBrokenOffIsNotTakenForNoPolicy(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("slow.example", 30*day)
		s.net.change("slow.example", func(h *fakeHost) { h.takes = 15 * time.Second })
		ctx, cancel := context.WithCancel(t.Context())
		errs := make(chan error, 1)
		go func() {
			var h Held
			errs <- s.Lookup(ctx, []byte("slow.example"), &h)
		}()
		synctest.Wait()
		cancel()
		if err := <-errs; !errors.Is(err, ErrBrokenOff) {
			t.Errorf("the caller gives up: %v", err)
		}
		go func() { _, err := s.lookup(t, "slow.example"); errs <- err }()
		synctest.Wait()
		s.end() // as at the end of Run
		if err := <-errs; !errors.Is(err, ErrBrokenOff) {
			t.Errorf("the daemon ends: %v", err)
		}
		if _, err := s.lookup(t, "other.example"); !errors.Is(err, ErrBrokenOff) {
			t.Errorf("the daemon has ended: %v", err)
		}
	})
}

func TestAFailedDiscoveryIsNotRememberedForLongWhereTheStoreCouldNotBeRead(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		s.mustHold(t, "example.com")
		s.net.change("example.com", func(h *fakeHost) { h.fetchErr = policy.ResultFetch })
		s.disk.set(func(d *faultyStore) { d.unreadable = true })
		if _, err := s.lookup(t, "example.com"); !errors.Is(err, ErrNoPolicy) {
			t.Errorf("an unreadable page: %v", err)
		}
		s.disk.set(func(d *faultyStore) { d.unreadable = false }) // it has been rebuilt
		time.Sleep(minNegative)
		s.mustHold(t, "example.com")
	})
}

func TestADiscoveryThatGotNoTurnIsTriedAgainSoon(t *testing.T) {
	inSite(t, func(o *Options) { o.LookupConcurrency = 1 }, func(t *testing.T, s *site) {
		s.net.set("tarpit.example", fakeHost{id: "1", tarpit: true})
		s.net.enforced("example.com", 30*day)
		for range 3 {
			go func() { _, _ = s.lookup(t, "tarpit.example") }()
			synctest.Wait()
			if _, err := s.lookup(t, "example.com"); !errors.Is(err, ErrNoPolicy) {
				t.Errorf("without a turn: %v", err)
			}
			synctest.Wait()
			n, ok := s.Negative("example.com")
			if left := time.Until(n.Until); !ok || n.Result != policy.ResultBusy || left > minNegative {
				t.Errorf("%v, remembered for %s", n.Result, left)
			}
			time.Sleep(2 * time.Hour) // and the tarpit may be tried again
		}
		s.mustHold(t, "example.com")
	})
}

func TestARecordOfAnotherVersionThatIsCheckedIsAnsweredInTodaysFormat(t *testing.T) {
	afterUpgrade(t, func(t *testing.T, s *site) {
		for range 3 { // into the table, too
			s.mustHold(t, "example.com")
		}
		s.net.change("example.com", func(h *fakeHost) { h.fetchErr = policy.ResultFetch })
		for range 48 { // checks succeed, fetches fail
			if got := s.mustHold(t, "example.com"); got != "enforce [mx.example.com]" {
				t.Fatalf("held %q", got)
			}
			settle(time.Hour)
		}
	})
}

func TestATextThatThisVersionDoesNotTakeMakesMailWaitUntilItIsFetchedAgain(t *testing.T) {
	afterUpgrade(t, func(t *testing.T, s *site) {
		r, err := s.disk.Store.Get("example.com")
		if err != nil {
			t.Fatal(err)
		}
		r.Text = []byte("of a grammar that is no more")
		if _, err := s.disk.Store.Write([]cache.Op{{Put: &r}}); err != nil {
			t.Fatal(err)
		}
		s.net.change("example.com", func(h *fakeHost) { h.fetchErr = policy.ResultFetch })
		if _, err := s.lookup(t, "example.com"); !errors.Is(err, ErrUnreadable) {
			t.Errorf("lookup: %v", err)
		}
		s.net.enforced("example.com", 30*day)
		settle(2 * time.Hour)
		s.mustHold(t, "example.com")
	})
}

var errUnreadablePage = errors.Join(cache.ErrUnreadable, errors.New("as the test wants it"))

// A policy that mail uses now is not given up for a newcomer, although its
// record says that it was not used for long: that is put right a day later.
func TestANewcomerDisplacesNoPolicyThatIsAskedForNow(t *testing.T) {
	path := filepath.Join(memoryDir(t), "cache.db")
	synctest.Test(t, func(t *testing.T) {
		net := newFakeNet()
		s := openSiteOf(t, path, 1<<20, net, func(o *Options) { o.Interval = 20 * day })
		s.net.enforced("used.example", 60*day)
		idle := time.Now().Add(-8 * day)
		fill(t, s.disk, s.timing(), 600, "d%04d.example", 60*day, idle)
		newcomers := 0
		come := func(n int) (refused int64) {
			before := s.Stats().Refused
			for range n {
				d := fmt.Sprintf("new%d.example", newcomers)
				newcomers++
				net.set(d, fakeHost{id: "1", text: policyText("enforce", 30*day, "mx.example.net") + strings.Repeat("x: "+strings.Repeat("y", 100)+"\n", 10)})
				s.mustHold(t, d)
			}
			return s.Stats().Refused - before
		}
		if come(400) == 0 {
			t.Error("none is refused soon after the start, when nothing is known of uses")
		}
		settle(usedPeriod)
		asked := []string{"d0000.example", "d0007.example"}
		for _, d := range asked {
			s.mustHold(t, d)
		}
		come(400)
		for _, d := range asked {
			if _, err := s.disk.Store.Get(d); err != nil {
				t.Errorf("%s, which was asked for just now: %v", d, err)
			}
		}
		if _, err := s.disk.Store.Get("d0001.example"); err == nil {
			t.Error("no idle one was given up")
		}
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
}

// The refresher goes by the store and never comes to such a policy.
func TestAPolicyInMemoryOnlyIsFollowedAndFetchedBeforeItExpires(t *testing.T) {
	path := filepath.Join(memoryDir(t), "cache.db")
	synctest.Test(t, func(t *testing.T) {
		net := newFakeNet()
		s := openSiteOf(t, path, 1<<20, net, nil)
		unkept := ""
		for i := 0; s.Stats().Refused == 0; i++ {
			unkept = fmt.Sprintf("d%d.example", i)
			net.enforced(unkept, 30*day)
			s.mustHold(t, unkept)
		}
		if _, err := s.Get(unkept); !errors.Is(err, cache.ErrNotFound) {
			t.Fatalf("it is in the store: %v", err)
		}
		net.set(unkept, fakeHost{id: "2", text: policyText("enforce", 2*day, "moved.example.com")})
		settle(2 * s.o.Recheck)
		s.mustHold(t, unkept)
		settle(time.Minute)
		if got := s.mustHold(t, unkept); got != "enforce [moved.example.com]" {
			t.Errorf("a retry after the id has changed: %s", got)
		}
		for range 47 { // a record that is gone changes nothing
			settle(time.Hour)
			s.mustHold(t, unkept)
		}
		net.change(unkept, func(h *fakeHost) { h.recordErr = policy.ResultNoRecord })
		settle(20 * time.Hour)
		s.mustHold(t, unkept)
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestTheLogDoesNotSayThatAPolicyInMemoryOnlyIsNone(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.set("example.com", fakeHost{id: "2", fetchErr: policy.ResultFetch})
		r := cache.Record{Domain: "example.com", Mode: policy.ModeEnforce, Fetched: time.Now(), Expires: time.Now().Add(day)}
		s.inMemoryOnly(&r)
		s.fetchSoon("example.com")
		settle(time.Minute)
		if log := s.log.String(); !strings.Contains(log, "the policy in memory still applies") || strings.Contains(log, "without us") {
			t.Error(log)
		}
		settle(2 * day)
		s.fetchSoon("example.com")
		settle(time.Minute)
		if log := s.log.String(); !strings.Contains(log, "without us") {
			t.Errorf("when it has expired: %s", log)
		}
	})
}
