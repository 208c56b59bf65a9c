package keeper_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

func TestADiscoveredPolicyIsOnDiskBeforeTheAnswer(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		if got := s.mustHold(t, "example.com"); got != "enforce [mx.example.com]" {
			t.Errorf("held %q", got)
		}
		r, err := s.disk.Store.Get("example.com")
		if err != nil {
			t.Fatalf("not on disk: %v", err)
		}
		if r.ID != "1" || !r.Due.After(time.Now()) {
			t.Errorf("stored %+v", r)
		}
	})
}

func TestTheAnswerWaitsForTheDisk(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		gate := make(chan struct{})
		s.disk.set(func(d *faultyStore) { d.gate = gate })
		s.net.enforced("example.com", 30*day)
		answered := make(chan time.Time, 1)
		go func() {
			s.mustHold(t, "example.com")
			answered <- time.Now()
		}()
		time.Sleep(time.Second) // of the bubble's time
		synctest.Wait()
		select {
		case <-answered:
			t.Fatal("answered before the policy was on disk")
		default:
		}
		close(gate)
		<-answered
	})
}

func TestManyLookupsOfOneDomainShareADiscovery(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		s.net.change("example.com", func(h *fakeHost) { h.takes = 3 * time.Second })
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() { s.mustHold(t, "example.com") })
		}
		wg.Wait()
		if records, fetches := s.net.asked("example.com"); records != 1 || fetches != 1 {
			t.Errorf("%d TXT lookups and %d fetches", records, fetches)
		}
	})
}

func TestRFC8461_3_3_ALookupThatCannotWaitIsNotFoundAndTheDiscoveryGoesOn(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("slow.example", 30*day)
		s.net.change("slow.example", func(h *fakeHost) { h.takes = 25 * time.Second })
		begun := time.Now()
		if _, err := s.lookup(t, "slow.example"); !errors.Is(err, keeper.ErrNoPolicy) {
			t.Errorf("lookup: %v", err)
		}
		if took := time.Since(begun); took != 20*time.Second {
			t.Errorf("took %s, want the lookup's time-out", took)
		}
		time.Sleep(6 * time.Second)
		synctest.Wait()
		begun = time.Now()
		s.mustHold(t, "slow.example")
		if took := time.Since(begun); took != 0 {
			t.Errorf("the second lookup took %s", took)
		}
	})
}

func TestATarpitDelaysNobodyElse(t *testing.T) {
	inSite(t, func(o *keeper.Options) { o.LookupConcurrency = 4 }, func(t *testing.T, s *site) {
		for _, d := range []string{"t1.example", "t2.example", "t3.example", "t4.example", "t5.example"} {
			s.net.set(d, fakeHost{id: "1", tarpit: true})
			go func() { _, _ = s.lookup(t, d) }()
		}
		synctest.Wait()
		begun := time.Now()
		if _, err := s.lookup(t, "none.example"); !errors.Is(err, keeper.ErrNoPolicy) {
			t.Errorf("lookup: %v", err)
		}
		if took := time.Since(begun); took != 0 {
			t.Errorf("a domain without a policy waited %s for the tarpits", took)
		}
	})
}

func TestTheDenialIsKeptForItsTTLAMinuteAtLeastAndAnHourAtMost(t *testing.T) {
	tests := []struct {
		ttl, want time.Duration
	}{{0, time.Minute}, {10 * time.Second, time.Minute}, {10 * time.Minute, 10 * time.Minute}, {day, time.Hour}}
	for _, tt := range tests {
		inSite(t, nil, func(t *testing.T, s *site) {
			s.net.set("example.com", fakeHost{recordErr: policy.ResultNoRecord, ttl: tt.ttl})
			_, _ = s.lookup(t, "example.com")
			time.Sleep(tt.want - time.Second)
			if _, err := s.lookup(t, "example.com"); !errors.Is(err, keeper.ErrNoPolicy) {
				t.Error(err)
			}
			if n, _ := s.net.asked("example.com"); n != 1 {
				t.Errorf("TTL %s: asked again before %s", tt.ttl, tt.want)
			}
			time.Sleep(time.Second)
			_, _ = s.lookup(t, "example.com")
			if n, _ := s.net.asked("example.com"); n != 2 {
				t.Errorf("TTL %s: not asked again after %s", tt.ttl, tt.want)
			}
		})
	}
}

func TestRFC8461_3_3_AFailedDiscoveryIsRetriedAfterFiveMinutesOrMore(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.set("example.com", fakeHost{id: "1", fetchErr: policy.ResultFetch})
		asked := func() int { _, n := s.net.asked("example.com"); return n }
		for second := range 2 * 60 * 60 {
			if _, err := s.lookup(t, "example.com"); !errors.Is(err, keeper.ErrNoPolicy) {
				t.Fatalf("after %d s: %v", second, err)
			}
			if second == 299 && asked() != 1 {
				t.Fatalf("%d fetches in the first five minutes", asked())
			}
			time.Sleep(time.Second)
		}
		if n := asked(); n < 4 || n > 6 {
			t.Errorf("%d fetches in two hours", n)
		}
	})
}

func TestAfterAFailureALookupThatSucceedsForgetsIt(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.set("example.com", fakeHost{id: "1", fetchErr: policy.ResultFetch})
		_, _ = s.lookup(t, "example.com")
		s.net.enforced("example.com", 30*day)
		time.Sleep(8 * time.Minute)
		s.mustHold(t, "example.com")
		if _, remembered := s.Negative("example.com"); remembered {
			t.Error("the failure is still remembered")
		}
	})
}

func TestRFC8461_3_3_APolicyIsHeldUntilItsMaxAgeRunsOutWhateverTheRecordSays(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 2*day)
		s.mustHold(t, "example.com")
		s.net.change("example.com", func(h *fakeHost) {
			h.recordErr, h.fetchErr = policy.ResultNoRecord, policy.ResultFetch
		})
		for range 47 {
			time.Sleep(time.Hour)
			s.mustHold(t, "example.com")
		}
		time.Sleep(time.Hour)
		if _, err := s.lookup(t, "example.com"); !errors.Is(err, keeper.ErrNoPolicy) {
			t.Errorf("after max_age: %v", err)
		}
	})
}

func TestMaxAgeZeroCountsForAMinute(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 0)
		for range 180 {
			s.mustHold(t, "example.com")
			time.Sleep(time.Second)
		}
		if _, n := s.net.asked("example.com"); n != 3 {
			t.Errorf("%d fetches in three minutes", n)
		}
	})
}

func TestAFullDiskLosesNoPolicyAndIsTriedAgain(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.disk.set(func(d *faultyStore) { d.full = true })
		for _, d := range []string{"a.example", "b.example", "c.example"} {
			s.net.enforced(d, 30*day)
			s.mustHold(t, d)
		}
		page, _, err := s.List("", 10)
		if err != nil || len(page) != 3 || page[0].NotOnDisk != "it waits for the disk" || mustGet(t, s, "b.example").NotOnDisk != "it waits for the disk" {
			t.Errorf("listed %+v, %v", page, err)
		}
		time.Sleep(10 * time.Minute)
		if !strings.Contains(s.log.String(), "cannot write to the cache") {
			t.Errorf("the log does not say so:\n%s", s.log)
		}
		s.disk.set(func(d *faultyStore) { d.full = false })
		time.Sleep(10 * time.Second)
		synctest.Wait()
		for _, d := range []string{"a.example", "b.example", "c.example"} {
			if _, err := s.disk.Store.Get(d); err != nil || mustGet(t, s, d).NotOnDisk != "" {
				t.Errorf("%s: %v", d, err)
			}
		}
		s.disk.set(func(d *faultyStore) { d.full = true })
		time.Sleep(2 * day)
		s.mustHold(t, "a.example") // its use waits for the disk, its policy does not
		time.Sleep(time.Second)
		if mustGet(t, s, "a.example").NotOnDisk != "" {
			t.Error("a note that waits for the disk makes the policy one that is not on disk")
		}
	})
}

// listed returns the domains that a listing has, in pages of so many.
func (s *site) listed(t *testing.T, limit int) (domains []string) {
	t.Helper()
	for after := ""; ; {
		page, next, err := s.List(after, limit)
		if err != nil || len(page) > limit {
			t.Fatalf("a page of %d, %v", len(page), err)
		}
		for _, r := range page {
			domains = append(domains, r.Domain)
		}
		if next == "" {
			return domains
		}
		after = next
	}
}

func TestAListingIncludesAPolicyThatIsCommittedMeanwhile(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		gate := make(chan struct{})
		s.disk.set(func(d *faultyStore) {
			d.gate = gate
			d.listed = sync.OnceFunc(func() { close(gate); synctest.Wait() })
		})
		s.net.enforced("example.com", 30*day)
		s.mustHold(t, "example.com")
		if got := s.listed(t, 10); !slices.Equal(got, []string{"example.com"}) {
			t.Errorf("listed %v", got)
		}
	})
}

func TestAListingIncludesPoliciesThatWaitForTheDisk(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		// Long policies: the store's pages are shorter than what is asked for.
		text := []byte(policyText("enforce", 30*day, "mx.example.com") + strings.Repeat("x: "+strings.Repeat("y", 100)+"\n", 550))
		now := time.Now()
		var ops []cache.Op
		var want []string
		for i := range 200 {
			d := fmt.Sprintf("d%03d.example", i)
			want = append(want, d)
			ops = append(ops, cache.Op{Put: &cache.Record{Domain: d, Mode: policy.ModeEnforce, Text: text, Fetched: now, Expires: now.Add(30 * day)}})
		}
		if _, err := s.disk.Store.Write(ops); err != nil {
			t.Fatal(err)
		}
		s.disk.set(func(d *faultyStore) { d.full = true })
		for _, d := range []string{"c.example", "d1.example", "z.example"} { // before, between and behind
			s.net.enforced(d, 30*day)
			s.mustHold(t, d)
			want = append(want, d)
		}
		slices.Sort(want)
		for _, limit := range []int{1, 7, 500} {
			if got := s.listed(t, limit); !slices.Equal(got, want) {
				t.Errorf("in pages of %d: %d domains, not %d", limit, len(got), len(want))
			}
		}
		// Pages on which everything was forgotten do not end it.
		for _, d := range want[1:5] {
			_, _, _ = s.Forget(t.Context(), d) // on a full disk
		}
		if got := s.listed(t, 2); !slices.Equal(got[1:], want[5:]) {
			t.Errorf("after some were forgotten: %d domains, not %d", len(got), len(want)-4)
		}
		s.disk.set(func(d *faultyStore) { d.full = false })
		settle(time.Minute)
	})
}

func TestForgetDropsThePolicyFromMemoryAndDisk(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		for range 3 {
			s.mustHold(t, "example.com") // into the table, too
		}
		found, _, err := s.Forget(t.Context(), "example.com")
		if err != nil || !found {
			t.Fatalf("forget: %v, %v", found, err)
		}
		s.net.change("example.com", func(h *fakeHost) { h.recordErr = policy.ResultNoRecord })
		if _, err := s.lookup(t, "example.com"); !errors.Is(err, keeper.ErrNoPolicy) {
			t.Errorf("after forget: %v", err)
		}
		if found, _, _ := s.Forget(t.Context(), "example.com"); found {
			t.Error("found once more")
		}
	})
}

func TestADiscoveredPolicySurvivesARestart(t *testing.T) {
	path := t.TempDir() + "/cache.db"
	synctest.Test(t, func(t *testing.T) {
		net := newFakeNet()
		s := openSite(t, path, net, nil)
		net.enforced("example.com", 30*day)
		s.mustHold(t, "example.com")
		if err := s.stop(); err != nil {
			t.Fatal(err)
		}
		net.change("example.com", func(h *fakeHost) { h.recordErr, h.tarpit = policy.ResultDNS, true })
		s = openSite(t, path, net, nil)
		s.mustHold(t, "example.com")
		if err := s.stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestADamagedOrUnreadablePolicyMakesMailWaitUntilItIsFetchedAgain(t *testing.T) {
	for name, fault := range map[string]func(*faultyStore){
		"damaged":    func(d *faultyStore) { d.damaged["example.com"] = true },
		"unreadable": func(d *faultyStore) { d.unreadable = true },
	} {
		inSite(t, nil, func(t *testing.T, s *site) {
			s.net.enforced("example.com", 30*day)
			s.mustHold(t, "example.com")
			s.disk.set(fault)
			s.net.change("example.com", func(h *fakeHost) { h.recordErr = policy.ResultNoRecord })
			for range 3 {
				if _, err := s.lookup(t, "example.com"); !errors.Is(err, keeper.ErrUnreadable) {
					t.Fatalf("%s: %v", name, err)
				}
				time.Sleep(4 * time.Minute)
			}
			s.net.enforced("example.com", 30*day)
			time.Sleep(time.Hour)
			s.mustHold(t, "example.com")
		})
	}
}

func TestASlowDiskDelaysANewPolicyForTwoSecondsAtMost(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		gate := make(chan struct{})
		s.disk.set(func(d *faultyStore) { d.gate = gate })
		s.net.enforced("example.com", 30*day)
		for _, want := range []time.Duration{2 * time.Second, 0} {
			begun := time.Now()
			s.mustHold(t, "example.com")
			if took := time.Since(begun); took != want {
				t.Errorf("answered after %s", took)
			}
		}
		if _, n := s.net.asked("example.com"); n != 1 || s.Stats().Pending != 1 {
			t.Errorf("%d fetches, %d pending", n, s.Stats().Pending)
		}
		time.Sleep(9 * time.Second)
		synctest.Wait()
		if !s.Stats().Failing || strings.Count(s.log.String(), "a commit of the cache does not end") != 1 {
			t.Errorf("a commit under way for 11 s is not told: %s", s.log)
		}
		close(gate)
		synctest.Wait()
		if got := s.Stats(); got.Failing || got.Pending != 0 {
			t.Errorf("once it has ended: %+v", got)
		}
		s.mustHold(t, "example.com")
	})
}

func TestWhenTheOverlayIsFullNewPoliciesAreAnsweredAndNotKept(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.disk.set(func(d *faultyStore) { d.full = true })
		long := strings.Repeat("x: "+strings.Repeat("y", 100)+"\n", 550)
		const domains = 400
		for i := range domains {
			d := fmt.Sprintf("d%d.example", i)
			s.net.set(d, fakeHost{id: "1", text: policyText("enforce", 30*day, "mx."+d) + long})
			go func() { _, _ = s.lookup(t, d) }()
		}
		settle(10 * time.Second)
		notKept := s.Stats().NotKept
		if notKept == 0 || notKept == domains {
			t.Errorf("%d are not kept", notKept)
		}
		s.mustHold(t, fmt.Sprintf("d%d.example", domains-1))
		s.disk.set(func(d *faultyStore) { d.full = false })
		settle(10 * time.Second)
		if page, _, err := s.disk.Store.List("", 1000); err != nil || int64(len(page)) > domains-notKept || len(page) == 0 {
			t.Errorf("%d are on disk, %v", len(page), err)
		}
	})
}

func TestForgetDropsRememberedFailuresAndSaysSo(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		fails := func(domain string) {
			t.Helper()
			s.net.enforced(domain, 30*day)
			s.net.change(domain, func(h *fakeHost) { h.recordErr = policy.ResultNoRecord })
			if _, err := s.lookup(t, domain); !errors.Is(err, keeper.ErrNoPolicy) {
				t.Fatal(err)
			}
		}
		fails("a.example")
		for _, want := range []bool{true, false} {
			if held, failure, err := s.Forget(t.Context(), "a.example"); err != nil || held || failure != want {
				t.Errorf("held %v, a failure %v, %v", held, failure, err)
			}
		}
		fails("a.example")
		fails("b.example")
		for _, want := range []int{2, 0} {
			if n := s.ForgetFailures(); n != want {
				t.Errorf("%d failures forgotten, not %d", n, want)
			}
		}
		s.net.change("b.example", func(h *fakeHost) { h.recordErr = "" })
		s.mustHold(t, "b.example")
	})
}

func TestARepeatedLookupAllocatesNothing(t *testing.T) {
	net := newFakeNet()
	net.enforced("example.com", 30*day)
	s := openSite(t, t.TempDir()+"/cache.db", net, nil)
	var h keeper.Held
	domain := []byte("example.com")
	look := func() {
		if err := s.Lookup(t.Context(), domain, &h); err != nil {
			t.Fatal(err)
		}
	}
	look()
	look()
	look()
	if h.Entry == nil {
		t.Fatal("not in memory after three uses")
	}
	if n := testing.AllocsPerRun(100, look); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
}

func TestAMatchListOfAnotherRuleIsRenderedAgain(t *testing.T) {
	path := t.TempDir() + "/cache.db"
	synctest.Test(t, func(t *testing.T) {
		net := newFakeNet()
		s := openSite(t, path, net, func(o *keeper.Options) {
			o.MatchList = func(*policy.Policy) []byte { return []byte("older rule") }
		})
		net.enforced("example.com", 30*day)
		net.enforced("odd.example", 30*day)
		s.mustHold(t, "example.com")
		s.mustHold(t, "odd.example")
		r := mustGet(t, s, "odd.example")
		r.Text = []byte("of a grammar that is no more")
		if _, err := s.disk.Store.Write([]cache.Op{{Put: &r}}); err != nil {
			t.Fatal(err)
		}
		if err := s.stop(); err != nil {
			t.Fatal(err)
		}
		for _, domain := range []string{"example.com", "odd.example"} {
			net.change(domain, func(h *fakeHost) { h.fetchErr = policy.ResultFetch })
		}
		s = openSite(t, path, net, func(o *keeper.Options) {
			o.MatchListCurrent = func(list []byte) bool { return string(list) != "older rule" }
		})
		for range 48 { // through memory, and through failed fetches
			if got := s.mustHold(t, "example.com"); got != "enforce [mx.example.com]" {
				t.Fatalf("held %q", got)
			}
			settle(time.Hour)
		}
		if _, err := s.lookup(t, "odd.example"); !errors.Is(err, keeper.ErrUnreadable) {
			t.Errorf("a text that this version does not understand: %v", err)
		}
		net.enforced("odd.example", 30*day)
		settle(2 * time.Hour)
		s.mustHold(t, "odd.example")
		if err := s.stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestACancelledLookupIsNotReportedAsNoPolicy(t *testing.T) {
	path := t.TempDir() + "/cache.db"
	synctest.Test(t, func(t *testing.T) {
		net := newFakeNet()
		s := openSite(t, path, net, nil)
		net.enforced("slow.example", 30*day)
		net.change("slow.example", func(h *fakeHost) { h.takes = 15 * time.Second })
		ctx, cancel := context.WithCancel(t.Context())
		errs := make(chan error, 2)
		go func() {
			var h keeper.Held
			errs <- s.Lookup(ctx, []byte("slow.example"), &h)
		}()
		synctest.Wait()
		cancel()
		if err := <-errs; !errors.Is(err, keeper.ErrBrokenOff) {
			t.Errorf("the caller gives up: %v", err)
		}
		go func() { _, err := s.lookup(t, "slow.example"); errs <- err }()
		synctest.Wait()
		if err := s.stop(); err != nil {
			t.Error(err)
		}
		if err := <-errs; !errors.Is(err, keeper.ErrBrokenOff) {
			t.Errorf("the daemon ends: %v", err)
		}
	})
}

// What this machine is to blame for is neither remembered nor taken for "no
// policy".
func TestOurOwnFaultsDeferMail(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.set("example.com", fakeHost{id: "1", fetchErr: policy.ResultFetch, cause: policy.ErrProxy})
		for range 3 {
			if _, err := s.lookup(t, "example.com"); !errors.Is(err, keeper.ErrOurFault) {
				t.Errorf("lookup: %v", err)
			}
		}
		if _, fetches := s.net.asked("example.com"); fetches != 3 {
			t.Errorf("%d fetches", fetches)
		}
		if n, ok := s.Negative("example.com"); ok {
			t.Errorf("remembered: %+v", n)
		}
		s.net.enforced("example.com", 30*day)
		s.mustHold(t, "example.com")
	})
}

func TestOnlyLookupsNotAnsweredFromMemoryReportTheirStart(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		timed := 0
		for range 10 {
			var h keeper.Held
			if err := s.Lookup(t.Context(), []byte("example.com"), &h); err != nil {
				t.Fatal(err)
			}
			if !h.Since.IsZero() {
				timed++
			}
		}
		if timed == 0 || timed > 3 { // the discovery, and until it is in memory
			t.Errorf("%d of 10 lookups were timed", timed)
		}
	})
}

func TestAPolicyThatTheStoreRefusesIsAnsweredFromMemoryAndFollowed(t *testing.T) {
	path := memoryDir(t) + "/cache.db"
	synctest.Test(t, func(t *testing.T) {
		net := newFakeNet()
		s := openSiteOf(t, path, 1<<20, net, nil)
		refused := ""
		for i := 0; s.Stats().Refused == 0; i++ {
			refused = fmt.Sprintf("d%d.example", i)
			net.set(refused, fakeHost{id: "1", text: policyText("testing", 30*day, "mx.example.net") + strings.Repeat("x: "+strings.Repeat("y", 100)+"\n", 100)})
			s.mustHold(t, refused)
		}
		before := s.Stats().Fetches
		if r := mustGet(t, s, refused); r.ID != "1" || !strings.HasPrefix(r.NotOnDisk, "the cache is full") || !s.Stats().Full {
			t.Errorf("record %+v, full: %v", r, s.Stats().Full)
		}
		net.set(refused, fakeHost{id: "2", text: policyText("testing", 30*day, "new.example.net")})
		settle(6 * time.Minute)
		s.mustHold(t, refused)
		settle(time.Minute)
		if got := s.mustHold(t, refused); !strings.Contains(got, "new.example.net") || s.Stats().Fetches == before {
			t.Errorf("held %q", got)
		}
		settle(time.Hour)
		if s.Stats().Full {
			t.Error("the cache is said to be full an hour after the last policy that it had no room for")
		}
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestRFC8460_4_3_4_OnlyAFailureOfTheDomainWithAValidRecordCountsAsNotFetched(t *testing.T) {
	for name, test := range map[string]struct {
		host fakeHost
		want bool
	}{
		"no connection":       {fakeHost{id: "1", fetchErr: policy.ResultFetch}, true},
		"a broken policy":     {fakeHost{id: "1", text: "version: STSv1\n"}, true},
		"a wrong certificate": {fakeHost{id: "1", fetchErr: policy.ResultWebPKI, cause: policy.ErrCertName}, true},
		"no record":           {fakeHost{recordErr: policy.ResultNoRecord}, false},
		"a broken record":     {fakeHost{recordErr: policy.ResultRecordInvalid}, false},
		"no DNS":              {fakeHost{recordErr: policy.ResultDNS}, false},
		"a refused address":   {fakeHost{id: "1", fetchErr: policy.ResultFetch, cause: policy.ErrAddressRefused}, false},
		"the proxy":           {fakeHost{id: "1", fetchErr: policy.ResultFetch, cause: policy.ErrProxy}, false},
		"no roots":            {fakeHost{id: "1", fetchErr: policy.ResultWebPKI, cause: policy.ErrNoRoots}, false},
	} {
		t.Run(name, func(t *testing.T) {
			inSite(t, nil, func(t *testing.T, s *site) {
				s.net.set("example.com", test.host)
				for _, what := range []string{"discovered", "remembered"} {
					if _, err := s.lookup(t, "example.com"); err == nil || errors.Is(err, keeper.ErrNotFetched) != test.want {
						t.Errorf("%s: %v", what, err)
					}
				}
			})
		})
	}
}

func TestAFailureThatMayBeOursIsProvenByOtherFetchesBetweenTwoOfThem(t *testing.T) {
	proven := func(s *site) bool { n, _ := s.Negative("example.com"); return n.Proven }
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.set("example.com", fakeHost{id: "1", fetchErr: policy.ResultFetch, cause: policy.ErrConnect})
		s.net.set("works.example", fakeHost{id: "1", text: policyText("testing", 30*day, "mx.example")})
		for range 4 {
			if _, err := s.lookup(t, "example.com"); err == nil || proven(s) {
				t.Errorf("%v, proven while no fetch succeeds: %t", err, proven(s))
			}
			settle(2 * time.Hour)
		}
		_, _ = s.lookup(t, "works.example")
		for _, what := range []string{"after another fetch", "once proven"} {
			if _, err := s.lookup(t, "example.com"); err == nil || !proven(s) {
				t.Errorf("%s: %v, proven: %t", what, err, proven(s))
			}
			settle(2 * time.Hour)
		}
	})
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.set("example.com", fakeHost{id: "1", text: "version: STSv1\n"})
		if _, err := s.lookup(t, "example.com"); err == nil || !proven(s) {
			t.Errorf("an answer of the host: %v, proven: %t", err, proven(s))
		}
	})
}
