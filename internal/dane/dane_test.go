package dane

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestFindingsAreKeptForTheLeastTTLWithinBounds(t *testing.T) {
	for _, c := range []struct {
		mx, a, tlsa time.Duration
		want        time.Duration
	}{
		{20 * time.Minute, 10 * time.Minute, 15 * time.Minute, 10 * time.Minute},
		{5 * time.Minute, 10 * time.Minute, 15 * time.Minute, 5 * time.Minute},
		{20 * time.Minute, 10 * time.Minute, 2 * time.Minute, 2 * time.Minute},
		{0, 10 * time.Minute, 15 * time.Minute, minKeep},
		{24 * time.Hour, 24 * time.Hour, 24 * time.Hour, maxKeep},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake().set("example.com", "MX", entry{security: Secure, data: []string{"10 mx.example.com."}, ttl: c.mx}).
				set("mx.example.com", "A", entry{security: Secure, data: []string{"192.0.2.1"}, ttl: c.a}).
				set(port25+"mx.example.com", "TLSA", entry{security: Secure, data: usableTLSA, ttl: c.tlsa})
			ch := checker(f)
			ask := func() { ch.Check(t.Context(), NextHop{Host: "example.com"}); synctest.Wait() }
			ask()
			time.Sleep(c.want * 7 / 10)
			ask()
			if n := f.questions(); n != 3 {
				t.Errorf("TTLs %v: %d questions within the time", c, n)
			}
			time.Sleep(c.want * 3 / 10)
			ask()
			if n := f.questions(); n != 6 {
				t.Errorf("TTLs %v: %d questions after it", c, n)
			}
		})
	}
}

func TestWhatFailedIsTriedAgainSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake().set("example.com", "MX", entry{security: Bogus})
		daneDomain(f, "half.example")
		f.set(port25+"mx.half.example", "TLSA", entry{security: Bogus})
		c := checker(f)
		for range 5 {
			if got := c.Check(t.Context(), NextHop{Host: "example.com"}); got.State != Undecided {
				t.Errorf("%+v", got)
			}
			if got := c.Check(t.Context(), NextHop{Host: "half.example"}); got.State != LookupFailed {
				t.Errorf("%+v", got)
			}
		}
		if n := f.questions(); n != 4 {
			t.Errorf("%d questions", n)
		}
		daneDomain(f, "example.com")
		daneDomain(f, "half.example")
		time.Sleep(failKeep)
		for _, d := range []string{"example.com", "half.example"} {
			if got := c.Check(t.Context(), NextHop{Host: d}); got.State != Usable {
				t.Errorf("%s: %+v", d, got)
			}
		}
	})
}

func TestLookupsAtTheSameTimeShareOneCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		daneDomain(f, "example.com")
		f.set("example.com", "MX", entry{security: Secure, data: []string{"10 mx.example.com."}, delay: time.Second})
		c := checker(f)
		var waiting sync.WaitGroup
		for range 100 {
			waiting.Go(func() {
				if got := c.Check(t.Context(), NextHop{Host: "example.com"}); got.State != Usable {
					t.Errorf("%+v", got)
				}
			})
		}
		waiting.Wait()
		if n := f.questions(); n != 3 {
			t.Errorf("%d questions", n)
		}
	})
}

func TestALookupThatGivesUpIsUndecidedAndTheCheckGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		daneDomain(f, "example.com")
		f.set("example.com", "MX", entry{security: Secure, data: []string{"10 mx.example.com."}, delay: 5 * time.Second, ttl: time.Hour})
		c := checker(f)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if got := c.Check(ctx, NextHop{Host: "example.com"}); got.State != Undecided || got.Why == "" {
			t.Errorf("%+v", got)
		}
		if _, err := c.MX(ctx, "example.com"); err != context.DeadlineExceeded {
			t.Errorf("%v", err)
		}
		time.Sleep(10 * time.Second)
		if got := c.Check(ctx, NextHop{Host: "example.com"}); got.State != Usable {
			t.Errorf("%+v", got)
		}
	})
}

func TestANextHopInUseIsRenewedAheadAndNobodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		daneDomain(f, "example.com") // five minutes
		c := checker(f)
		ask := func() State {
			t.Helper()
			began := time.Now()
			got := c.Check(t.Context(), NextHop{Host: "example.com"})
			if time.Since(began) != 0 {
				t.Errorf("waited for %v", time.Since(began))
			}
			return got.State
		}
		ask()
		f.set("example.com", "MX", entry{security: Secure, data: []string{"10 mx.example.com."}, ttl: 5 * time.Minute, delay: time.Second})
		for range 100 {
			time.Sleep(30 * time.Second)
			if s := ask(); s != Usable {
				t.Errorf("state %v", s)
			}
		}
		if n := f.count("example.com", "MX"); n < 8 || n > 15 {
			t.Errorf("asked %d times in 50 minutes", n)
		}
		f.set("example.com", "MX", entry{security: Bogus})
		for n := f.count("example.com", "MX"); f.count("example.com", "MX") == n; synctest.Wait() {
			time.Sleep(15 * time.Second)
			if s := ask(); s != Usable {
				t.Fatalf("before the renewal: %v", s)
			}
		}
		if s := ask(); s != Usable {
			t.Errorf("a renewal that failed takes a live finding away: %v", s)
		}
		time.Sleep(5 * time.Minute)
		if s := ask(); s != Undecided {
			t.Errorf("a finding outlives its TTL: %v", s)
		}
	})
}

func TestChecksAreBoundedAndTheWaitForATurnEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		for i := range 2 * maxChecks {
			f.set(fmt.Sprintf("tarpit%d.example", i), "MX", entry{delay: time.Hour})
		}
		daneDomain(f, "example.com")
		c := checker(f)
		c.Probe(t.Context())
		began := time.Now()
		var waiting sync.WaitGroup
		for i := range 2 * maxChecks {
			waiting.Go(func() { c.Check(t.Context(), NextHop{Host: fmt.Sprintf("tarpit%d.example", i)}) })
		}
		waiting.Wait()
		if f.most > maxChecks || time.Since(began) > checkTime+time.Second {
			t.Errorf("%d questions at once, for %v", f.most, time.Since(began))
		}
		if got := c.Check(t.Context(), NextHop{Host: "example.com"}); got.State != Usable {
			t.Errorf("afterwards: %+v", got)
		}
	})
}

func TestWhatIsHeldOfAHostIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		daneDomain(f, "example.com")
		c := checker(f)
		for _, n := range []NextHop{{Host: "example.com"}, {Host: "example.com", Port: 587, Bracketed: true}, {Host: "other.example"}} {
			c.Check(t.Context(), n)
		}
		asked := f.questions()
		got := c.Findings("example.com")
		if len(got) != 2 || got[NextHop{Host: "example.com", Port: 25}].State != Usable || f.questions() != asked {
			t.Errorf("%v", got)
		}
		time.Sleep(maxKeep)
		if got := c.Findings("example.com"); len(got) != 0 {
			t.Errorf("what does not count any more: %v", got)
		}
	})
}

func TestANextHopIsWrittenAsAnMTAAsksForIt(t *testing.T) {
	for n, want := range map[NextHop]string{
		{Host: "a.test"}: "a.test", {Host: "a.test", Port: 25, Bracketed: true}: "[a.test]", {Host: "a.test", Port: 587, Bracketed: true}: "[a.test]:587",
	} {
		if n.String() != want {
			t.Errorf("%s, want %s", n, want)
		}
	}
}

func TestTheTableIsBounded(t *testing.T) {
	f := newFake()
	c := checker(f)
	for i := range maxFindings + 100 {
		c.Check(t.Context(), NextHop{Host: fmt.Sprintf("d%d.example", i)})
	}
	if n := c.found.held.Len(); n != maxFindings {
		t.Errorf("%d findings held", n)
	}
}

func TestTheLogSaysOnceWhichHostsAreLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		f := newFake()
		daneDomain(f, "example.com")
		f.set("example.com", "MX", secure("10 mx.example.com.", "20 bare.example.com.")).set("bare.example.com", "A", secure("192.0.2.2"))
		c := New(Options{Resolver: f, Log: slog.New(slog.NewTextHandler(&log, nil)), Probe: ProbeNames{Signed: []string{"signed.test"}}})
		for i := range 10 {
			if i%2 == 1 { // a failure in between is no reason to say it again
				f.set("example.com", "MX", entry{security: Bogus})
			}
			c.Check(t.Context(), NextHop{Host: "example.com"})
			f.set("example.com", "MX", secure("10 mx.example.com.", "20 bare.example.com."))
			time.Sleep(10 * time.Minute)
		}
		synctest.Wait()
		if n := strings.Count(log.String(), "hosts=[bare.example.com]"); n != 1 {
			t.Errorf("%d lines:\n%s", n, &log)
		}
	})
}

func TestNextHopsCannotFillTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		c := New(Options{Resolver: newFake(), Log: slog.New(slog.NewTextHandler(&log, nil))})
		lost := &Report{Hosts: []*Host{{MXHost: MXHost{Name: "bare.test"}, State: HostNoTLSA}}}
		if len(lost.lost()) != 1 {
			t.Fatalf("the report has lost %v", lost.lost())
		}
		hostile := func(n int) (said int) {
			for i := range n {
				hop := NextHop{Host: fmt.Sprintf("d%d.test", i)}
				if c.logLost(hop, lost) {
					said++
				}
				c.noWeaker(hop, Finding{State: Usable, bound: binding{state: Usable}}, Finding{State: Absent}, NoVerdict)
			}
			return said
		}
		if said := hostile(10 * logBurst); said != logBurst {
			t.Errorf("%d are taken for told, want %d: the others are told later", said, logBurst)
		}
		for _, words := range []string{"hosts with TLSA records only", "keeps its DANE state"} {
			if n := strings.Count(log.String(), words); n != logBurst {
				t.Errorf("%q: %d lines, want %d", words, n, logBurst)
			}
		}
		if n := c.Stats().LogLinesDropped; n != 2*9*logBurst {
			t.Errorf("%d dropped lines are counted", n)
		}
		time.Sleep(time.Second)
		if said := hostile(10 * logBurst); said != logsPerSecond {
			t.Errorf("a second later %d more, want %d", said, logsPerSecond)
		}
	})
}
