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
			f := newFake().set("example.com", "MX", reply{security: Secure, data: []string{"10 mx.example.com."}, ttl: c.mx}).
				set("mx.example.com", "A", reply{security: Secure, data: []string{"192.0.2.1"}, ttl: c.a}).
				set(port25+"mx.example.com", "TLSA", reply{security: Secure, data: usableTLSA, ttl: c.tlsa})
			ch := checker(f)
			ask := func() { ch.Check(t.Context(), NextHop{Host: "example.com"}, everyHost); synctest.Wait() }
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

func TestFailedLookupsAreRetriedSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake().set("example.com", "MX", reply{security: Bogus})
		daneDomain(f, "half.example")
		f.set(port25+"mx.half.example", "TLSA", reply{security: Bogus})
		c := checker(f)
		for range 5 {
			if got := c.Check(t.Context(), NextHop{Host: "example.com"}, everyHost); got.State != Undecided {
				t.Errorf("%+v", got)
			}
			if got := c.Check(t.Context(), NextHop{Host: "half.example"}, everyHost); got.State != LookupFailed {
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
			if got := c.Check(t.Context(), NextHop{Host: d}, everyHost); got.State != Usable {
				t.Errorf("%s: %+v", d, got)
			}
		}
	})
}

func TestLookupsAtTheSameTimeShareOneCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		daneDomain(f, "example.com")
		f.set("example.com", "MX", reply{security: Secure, data: []string{"10 mx.example.com."}, delay: time.Second})
		c := checker(f)
		var waiting sync.WaitGroup
		for range 100 {
			waiting.Go(func() {
				if got := c.Check(t.Context(), NextHop{Host: "example.com"}, everyHost); got.State != Usable {
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

func TestACheckContinuesAfterItsLookupTimedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		daneDomain(f, "example.com")
		f.set("example.com", "MX", reply{security: Secure, data: []string{"10 mx.example.com."}, delay: 5 * time.Second, ttl: time.Hour})
		c := checker(f)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if got := c.Check(ctx, NextHop{Host: "example.com"}, everyHost); got.State != Undecided || got.Why == "" {
			t.Errorf("%+v", got)
		}
		time.Sleep(10 * time.Second)
		if got := c.Check(ctx, NextHop{Host: "example.com"}, everyHost); got.State != Usable {
			t.Errorf("%+v", got)
		}
	})
}

func TestChecksAreBoundedAndTheWaitForATurnEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		for i := range 2 * maxChecks {
			f.set(fmt.Sprintf("tarpit%d.example", i), "MX", reply{delay: time.Hour})
		}
		daneDomain(f, "example.com")
		c := checker(f)
		c.Probe(t.Context())
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var waiting sync.WaitGroup
		for i := range 2 * maxChecks {
			waiting.Go(func() { c.Check(ctx, NextHop{Host: fmt.Sprintf("tarpit%d.example", i)}, everyHost) })
		}
		waiting.Wait()
		if f.most > maxChecks || time.Since(began) > 20*time.Second {
			t.Errorf("%d questions at once, for %v", f.most, time.Since(began))
		}
		if got := c.Check(t.Context(), NextHop{Host: "example.com"}, everyHost); got.State != Usable {
			t.Errorf("afterwards: %+v", got)
		}
	})
}

func TestOneDomainWithManyPortsCannotTakeAllTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake().set("tarpit.example", "MX", reply{delay: time.Hour})
		daneDomain(f, "example.com")
		c := checker(f)
		c.Probe(t.Context())
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var waiting sync.WaitGroup
		for port := range 2 * maxChecks {
			waiting.Go(func() { c.Check(ctx, NextHop{Host: "tarpit.example", Port: uint16(port + 1)}, everyHost) })
		}
		synctest.Wait()
		if n := c.Stats().Checking; n != maxDomainChecks {
			t.Errorf("%d checks of one domain at once", n)
		}
		if got := c.Check(ctx, NextHop{Host: "example.com"}, everyHost); got.State != Usable {
			t.Errorf("another domain: %+v", got)
		}
		waiting.Wait()
		time.Sleep(checkTime)
		if n := c.Stats().Checking; n != 0 {
			t.Errorf("%d checks when all is over", n)
		}
	})
}

func TestFindingsOfAHostAreReturned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		daneDomain(f, "example.com")
		c := checker(f)
		for _, n := range []NextHop{{Host: "example.com"}, {Host: "example.com", Port: 587, Bracketed: true}, {Host: "other.example"}} {
			c.Check(t.Context(), n, everyHost)
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
		c.Check(t.Context(), NextHop{Host: fmt.Sprintf("d%d.example", i)}, everyHost)
	}
	if n := c.Stats().Held; n != maxFindings {
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
				f.set("example.com", "MX", reply{security: Bogus})
			}
			c.Check(t.Context(), NextHop{Host: "example.com"}, everyHost)
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
		f := newFake().set("bare.test", "A", secure("192.0.2.2")).set("mx.test", "A", secure("192.0.2.1")).
			set(port25+"mx.test", "TLSA", secure(usableTLSA...))
		c := New(Options{Resolver: f, Log: slog.New(slog.NewTextHandler(&log, nil)), Probe: ProbeNames{Signed: []string{"signed.test"}}})
		c.Probe(t.Context())
		const domains = 10 * logBurst
		ask := func() {
			for i := range domains {
				domain := fmt.Sprintf("d%d.example", i)
				f.set(domain, "MX", secure("10 mx.test.", "20 bare.test."))
				c.Check(t.Context(), NextHop{Host: domain}, everyHost)
			}
		}
		lines := func() int { return strings.Count(log.String(), "hosts with TLSA records only") }
		ask()
		if n := lines(); n != logBurst {
			t.Errorf("%d lines", n)
		}
		time.Sleep(time.Hour)
		ask()
		if n := lines(); n != 2*logBurst {
			t.Errorf("%d lines: those that were dropped are not logged later", n)
		}
	})
}
