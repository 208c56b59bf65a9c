package keeper

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// This file: disks that hang, logs that somebody wants to flood.

func TestAFindThatIsLateStaysAnsweredWhenMoreIsWrittenOfItsDomain(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		gate := make(chan struct{})
		s.disk.set(func(d *faultyStore) { d.gate = gate })
		s.net.enforced("example.com", 30*day)
		found := make(chan error, 1)
		go func() { _, err := s.lookup(t, "example.com"); found <- err }()
		synctest.Wait()
		r, err := s.Get("example.com") // it waits for the disk
		if err != nil {
			t.Fatal(err)
		}
		s.storeSoon(&r, false) // as a check would
		if err := <-found; err != nil {
			t.Fatal(err)
		}
		s.net.change("example.com", func(h *fakeHost) { h.recordErr = policy.ResultDNS })
		s.mustHold(t, "example.com")
		close(gate)
		settle(2 * commitLinger)
		if n := s.writer.lates.Load(); n != 0 {
			t.Errorf("%d are still late", n)
		}
		s.mustHold(t, "example.com")
	})
}

// inHang runs a test while one commit hangs that has an older policy of
// example.com, mode testing; goOn lets it end, and has the next one hang.
func inHang(t *testing.T, test func(t *testing.T, s *site, goOn func())) {
	t.Helper()
	inSite(t, nil, func(t *testing.T, s *site) {
		testing := func(id string) fakeHost {
			return fakeHost{id: id, text: policyText("testing", 30*day, "mx"+id+".example.com")}
		}
		s.net.set("example.com", testing("1"))
		for range 3 { // so that it is in the table
			s.mustHold(t, "example.com")
		}
		first, second := make(chan struct{}), make(chan struct{})
		s.disk.set(func(d *faultyStore) { d.gate = first })
		s.net.set("example.com", testing("2"))
		if _, err := s.Refresh(t.Context(), "example.com"); err != nil {
			t.Fatal(err)
		}
		s.net.enforced("example.com", 30*day)
		test(t, s, func() {
			s.disk.set(func(d *faultyStore) { d.gate = second })
			close(first)
			settle(time.Second)
		})
		close(second)
		settle(time.Second)
	})
}

func TestACommitDoesNotPutAnOlderPolicyInThePlaceOfOneThatIsLate(t *testing.T) {
	inHang(t, func(t *testing.T, s *site, goOn func()) {
		if _, err := s.Refresh(t.Context(), "example.com"); err != nil {
			t.Fatal(err)
		}
		for _, when := range []string{"before", "after"} {
			if got := s.mustHold(t, "example.com"); !strings.HasPrefix(got, "enforce ") {
				t.Errorf("%s the older one came to the disk: %s", when, got)
			}
			if when == "before" {
				goOn()
			}
		}
	})
}

func TestACommitDoesNotPutAnOlderPolicyInThePlaceOfOneThatIsInMemoryOnly(t *testing.T) {
	inHang(t, func(t *testing.T, s *site, goOn func()) {
		s.writer.mu.Lock()
		s.writer.bytes += maxPendingBytes // the queue is full
		s.writer.mu.Unlock()
		if _, err := s.Refresh(t.Context(), "example.com"); err != nil {
			t.Fatal(err)
		}
		goOn()
		if got := s.mustHold(t, "example.com"); !strings.HasPrefix(got, "enforce ") {
			t.Errorf("once the older one is on disk: %s", got)
		}
	})
}

func TestALookupUnderWayDoesNotHideAPolicyThatBecomesLate(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.set("example.com", fakeHost{id: "1", text: policyText("testing", 30*day, "mx.example.com")})
		s.mustHold(t, "example.com")

		domain, hash := []byte("example.com"), s.hash("example.com")
		s.table.secondUse(hash)
		_, generation := s.table.get(hash, domain)
		if _, late := s.writer.late(domain); late {
			t.Fatal("late already")
		}
		gate := make(chan struct{})
		s.disk.set(func(d *faultyStore) { d.gate = gate })
		s.net.enforced("example.com", 30*day)
		if _, err := s.Refresh(t.Context(), "example.com"); err != nil {
			t.Fatal(err)
		}
		var h Held
		if err := s.lookupStored(t.Context(), hash, domain, time.Now().Unix(), generation, &h); err != nil {
			t.Fatal(err)
		}
		if got := s.mustHold(t, "example.com"); !strings.HasPrefix(got, "enforce ") {
			t.Errorf("while the disk hangs: %s", got)
		}
		close(gate)
	})
}

func TestLinesAboutPoliciesHeldThatAreLeftOutAreCounted(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		for i := range 2 * logBurst {
			r := &cache.Record{Domain: fmt.Sprintf("d%d.example", i), Mode: policy.ModeEnforce}
			s.stored(&pending{domain: r.Domain, record: r}, errNotKept)
		}
		logged := strings.Count(s.log.String(), "could not be written")
		if dropped := s.Stats().LogLinesDropped; logged == 0 || int64(logged)+dropped != 2*logBurst {
			t.Errorf("%d logged, %d dropped", logged, dropped)
		}
	})
}

func TestStrangersDoNotCrowdOutTheWarningsAboutPoliciesHeld(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		s.mustHold(t, "example.com")
		s.net.change("example.com", func(h *fakeHost) { h.fetchErr = policy.ResultWebPKI })
		for i := range 10 * logBurst {
			d := fmt.Sprintf("s%d.example", i)
			s.net.set(d, fakeHost{id: "1", fetchErr: policy.ResultFetch})
			_, _ = s.lookup(t, d)
		}
		if _, err := s.Refresh(t.Context(), "example.com"); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(s.log.String(), "discovery failed"); n == 0 || n > logBurst {
			t.Errorf("%d lines about strangers", n)
		}
		if !strings.Contains(s.log.String(), "could not be refreshed") {
			t.Error("the warning is missing")
		}
		if got := s.Stats().LogLinesDropped; got < 9*logBurst {
			t.Errorf("%d dropped lines were counted", got)
		}
	})
}

func TestWhileNothingSucceedsFewDomainsAreNamed(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		look := func(i int) {
			d := fmt.Sprintf("s%d.example", i)
			s.net.set(d, fakeHost{id: "1", fetchErr: policy.ResultFetch})
			_, _ = s.lookup(t, d)
			settle(time.Minute)
		}
		for i := range 10 {
			look(i)
		}
		before := strings.Count(s.log.String(), "\n")
		for i := range 600 { // ten hours
			look(10 + i)
		}
		if n, most := strings.Count(s.log.String(), "\n")-before, outageLogBurst+60; n > most || n < most/2 {
			t.Errorf("%d lines in an outage of ten hours:\n%s", n, s.log)
		}
		s.net.enforced("good.example", day)
		s.mustHold(t, "good.example")
		settle(2 * time.Minute)
		look(2000)
		if !strings.Contains(s.log.String(), "s2000.example") {
			t.Error("still silent after the outage")
		}
	})
}

func TestTheRefresherDoesNotSpinWhenNothingCanBeWritten(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		s.mustHold(t, "example.com")
		s.disk.set(func(d *faultyStore) { d.full = true })
		for i := range maxPending {
			r := &cache.Record{Domain: fmt.Sprintf("x%d.example", i), Mode: policy.ModeNone}
			if err := s.writer.enqueue(&pending{domain: r.Domain, record: r, entry: s.entryOf(r)}); err != nil {
				t.Fatalf("after %d: %v", i, err)
			}
		}
		before, _ := s.net.asked("example.com")
		settle(2 * day)
		if n, _ := s.net.asked("example.com"); n-before > 2*24*6+1 {
			t.Errorf("%d TXT lookups in two days", n-before)
		}
		s.disk.set(func(d *faultyStore) { d.full = false })
		settle(time.Hour)
	})
}

func TestTheRefresherDoesNotSpinOverAPolicyWhoseDeletionWaitsForTheDisk(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", time.Hour)
		s.mustHold(t, "example.com")
		s.disk.set(func(d *faultyStore) { d.full = true })
		if _, _, err := s.Forget(t.Context(), "example.com"); err == nil {
			t.Fatal("it is on disk")
		}
		settle(31 * time.Minute) // now it is due
		synctest.Wait()
		before := s.fetch.round.Load()
		settle(time.Minute)
		synctest.Wait()
		if n := s.fetch.round.Load() - before; n > 10 {
			t.Errorf("%d turns in a minute", n)
		}
		s.disk.set(func(d *faultyStore) { d.full = false })
		settle(time.Minute)
	})
}

func TestARecordThatCannotBeStoredKeepsNoOtherFromTheDisk(t *testing.T) {
	inSite(t, func(o *Options) {
		o.Prepare = func(p *policy.Policy) []byte {
			if p.MX[0] == "mx.odd.example" {
				return []byte("\x00\x01\xffSTS\xfe") // what values begin with
			}
			return prepare(p)
		}
	}, func(t *testing.T, s *site) {
		s.net.enforced("odd.example", 30*day)
		s.net.enforced("example.com", 30*day)
		s.mustHold(t, "odd.example")
		s.mustHold(t, "odd.example")
		if _, n := s.net.asked("odd.example"); n != 1 || s.Stats().NotKept != 1 {
			t.Errorf("%d fetches, %d not kept", n, s.Stats().NotKept)
		}
		s.mustHold(t, "example.com")
		if _, err := s.disk.Store.Get("example.com"); err != nil {
			t.Error(err)
		}
		if !strings.Contains(s.log.String(), "odd.example") {
			t.Errorf("the log does not name it:\n%s", s.log)
		}
	})
}
