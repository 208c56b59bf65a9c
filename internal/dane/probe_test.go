package dane

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

func TestOnlyAPositiveProofSpeaksAgainstTheResolver(t *testing.T) {
	soa := &dns.SOA{}
	yes := &Lookup{Security: Secure, Answer: &resolver.Answer{Records: []dns.RR{soa}}}
	no := &Lookup{Security: Insecure, Answer: &resolver.Answer{Records: []dns.RR{soa}}}
	empty := &Lookup{Security: Insecure, Answer: &resolver.Answer{}}
	failed := &Lookup{Security: Bogus}
	type ls = []*Lookup
	for i, c := range []struct {
		signed, unsigned ls
		want             Verdict
	}{
		{ls{yes, yes}, ls{no, no}, Validates},
		{ls{no, yes}, ls{empty, failed}, Validates},
		{ls{failed, yes}, ls{failed, failed}, Validates},
		{ls{yes, yes}, ls{yes, no}, Validates},
		{ls{yes, yes}, ls{yes, failed}, Validates},
		{ls{yes, yes}, ls{yes, yes}, FalseAD},
		{ls{failed, failed}, ls{yes, yes}, FalseAD},
		{ls{no, no}, ls{no, no}, NoAD},
		{ls{no, no}, ls{failed, failed}, NoAD},
		{ls{no, failed}, ls{no, no}, NoVerdict},
		{ls{no, empty}, ls{no, no}, NoVerdict},
		{ls{failed, failed}, ls{no, failed}, NoVerdict},
		{ls{failed, failed}, ls{failed, failed}, NoVerdict},
		{nil, nil, NoVerdict},
	} {
		if got := judge(c.signed, c.unsigned); got != c.want {
			t.Errorf("row %d: %v, want %v", i, got, c.want)
		}
	}
}

// daneDomain sets up a domain that is protected by DANE.
func daneDomain(f *fake, domain string) {
	f.set(domain, "MX", secure("10 mx."+domain+".")).set("mx."+domain, "A", secure("192.0.2.1")).
		set(port25+"mx."+domain, "TLSA", secure(usableTLSA...))
}

func TestAResolverProvenNotToValidateIsNotAskedForDANE(t *testing.T) {
	for name, set := range map[string]func(f *fake){
		"no AD at all":     func(f *fake) { f.blind = true },
		"AD on everything": func(f *fake) { f.liar = true },
		"AD not believed":  func(f *fake) { f.untrusted = true },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			daneDomain(f, "example.com")
			set(f)
			c := checker(f)
			if p := c.Probe(t.Context()); !p.Verdict.proof() {
				t.Fatalf("verdict %v", p.Verdict)
			}
			if got := c.Check(t.Context(), NextHop{Host: "example.com"}); got.State != NotValidating || f.questions() != 0 {
				t.Errorf("%+v after %d questions", got, f.questions())
			}
			if r := c.Look(t.Context(), NextHop{Host: "example.com"}); r.State != NotValidating || r.MX == nil {
				t.Errorf("report %+v", r)
			}
		})
	}
}

func TestAProbeWithoutAnAnswerSwitchesNothingOffAndIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake().set("signed.test", "SOA", entry{delay: time.Hour})
		daneDomain(f, "example.com")
		c := checker(f)
		if p := c.Probe(t.Context()); p.Verdict != NoVerdict || p.When.IsZero() {
			t.Errorf("probe %+v", p)
		}
		if got := c.Check(t.Context(), NextHop{Host: "example.com"}); got.State != Usable {
			t.Errorf("%+v", got)
		}
		f.set("signed.test", "SOA", secure("ns.test. h.test. 1 1 1 1 1"))
		time.Sleep(probeRetry)
		c.Check(t.Context(), NextHop{Host: "other.example"})
		synctest.Wait()
		if v := c.Verdict().Verdict; v != Validates {
			t.Errorf("verdict %v", v)
		}
		n := f.count("signed.test", "SOA")
		for range 9 {
			time.Sleep(time.Minute)
			c.Verdict()
			synctest.Wait()
		}
		if f.count("signed.test", "SOA") != n {
			t.Error("a resolver that validates is probed all the time")
		}
		time.Sleep(probeEvery)
		c.Verdict()
		synctest.Wait()
		if f.count("signed.test", "SOA") != n+1 {
			t.Error("a resolver that validates is never probed again")
		}
	})
}

func TestANewResolvConfIsProbedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := checker(f)
		if p := c.Probe(t.Context()); p.Verdict != Validates {
			t.Fatalf("verdict %v", p.Verdict)
		}
		f.change(func(f *fake) { f.generation++; f.blind = true })
		if v := c.Verdict().Verdict; v != NoVerdict {
			t.Errorf("the old resolver's verdict %v stands for the new one", v)
		}
		synctest.Wait()
		if v := c.Verdict().Verdict; v != NoAD {
			t.Errorf("verdict %v", v)
		}
		f.change(func(f *fake) { f.blind = false })
		time.Sleep(probeRetry)
		c.Verdict()
		synctest.Wait()
		if v := c.Verdict().Verdict; v != Validates {
			t.Errorf("a resolver that was repaired is still held for %v", v)
		}
	})
}

// TestNoStateGetsWeakerBecauseTheResolverStopsToValidate goes through the ways
// in which validation can end while the daemon runs.
func TestNoStateGetsWeakerBecauseTheResolverStopsToValidate(t *testing.T) {
	hops := []NextHop{{Host: "example.com"}, {Host: "mx.example.com", Bracketed: true}}
	for name, change := range map[string]func(f *fake){
		"it stops":                               func(f *fake) { f.blind = true },
		"another one, that does not":             func(f *fake) { f.blind = true; f.generation++ },
		"another one, not on this host":          func(f *fake) { f.untrusted = true; f.generation++ },
		"another one, that vouches for anything": func(f *fake) { f.liar = true; f.generation++ },
		"it stops, and the probe is not answered": func(f *fake) {
			f.blind = true
			f.answers["signed.test SOA"] = entry{delay: time.Hour}
			f.answers["unsigned.test SOA"] = entry{delay: time.Hour}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				daneDomain(f, "example.com")
				c := checker(f)
				c.Probe(t.Context())
				for _, n := range hops {
					if got := c.Check(t.Context(), n); got.State != Usable {
						t.Fatalf("at first: %+v", got)
					}
				}
				f.change(change)
				for range 50 {
					time.Sleep(3 * time.Minute)
					for _, n := range hops {
						if got := c.Check(t.Context(), n); !got.State.binds() && got.State != Undecided {
							t.Fatalf("%v: %+v", n, got)
						}
					}
				}
				f.change(func(f *fake) { f.blind, f.untrusted, f.liar = false, false, false; f.generation++ })
				time.Sleep(time.Hour)
				for _, n := range hops {
					if got := c.Check(t.Context(), n); got.State != Usable {
						t.Errorf("in the end: %+v", got)
					}
				}
				time.Sleep(probeTime) // a probe may still be waiting
			})
		})
	}
}

func TestTheLogHasEachChangeOfTheVerdictOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		f := newFake()
		c := New(Options{Resolver: f, Log: slog.New(slog.NewTextHandler(&log, nil)), Probe: ProbeNames{Signed: []string{"signed.test"}}})
		for _, change := range []func(f *fake){
			func(f *fake) { f.untrusted = true },
			func(f *fake) { f.untrusted = false },
			func(f *fake) { f.blind = true },
			func(f *fake) { f.blind = false; f.untrusted = true },
		} {
			f.change(change)
			for range 3 {
				c.Probe(t.Context())
				c.Verdict()
			}
		}
		var levels []string
		for line := range strings.Lines(log.String()) {
			_, level, _ := strings.Cut(line, "level=")
			levels = append(levels, strings.Fields(level)[0])
		}
		if got := strings.Join(levels, " "); got != "ERROR INFO ERROR ERROR" || strings.Count(log.String(), "is not believed") != 2 {
			t.Errorf("%s\n%s", got, &log)
		}
	})
}

func TestADomainMayGiveDANEUp(t *testing.T) {
	for name, change := range map[string]func(f *fake){
		"its zone is no longer signed": func(f *fake) { f.answers["example.com MX"] = insecure("10 mx.example.com.") },
		"its TLSA records are gone":    func(f *fake) { delete(f.answers, port25+"mx.example.com TLSA") },
		"it takes no mail":             func(f *fake) { f.answers["example.com MX"] = insecure("0 .") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				daneDomain(f, "example.com")
				c := checker(f)
				if got := c.Check(t.Context(), NextHop{Host: "example.com"}); got.State != Usable {
					t.Fatalf("at first: %+v", got)
				}
				f.change(change)
				time.Sleep(maxKeep)
				if got := c.Check(t.Context(), NextHop{Host: "example.com"}); got.State.binds() || got.State == Undecided {
					t.Errorf("%+v", got)
				}
			})
		})
	}
}

func TestProvenAbsenceNeedsNoProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		daneDomain(f, "example.com")
		c := checker(f)
		c.Check(t.Context(), NextHop{Host: "example.com"})
		f.change(func(f *fake) { delete(f.answers, port25+"mx.example.com TLSA") })
		f.set("signed.test", "SOA", entry{delay: time.Hour})
		time.Sleep(maxKeep)
		if got := c.Check(t.Context(), NextHop{Host: "example.com"}); got.State != Absent {
			t.Errorf("%+v", got)
		}
		time.Sleep(probeTime)
	})
}

func TestAProbeThatBeganBeforeDoesNotSpeakForTheResolver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		daneDomain(f, "example.com")
		c := checker(f)
		c.Probe(t.Context())
		if got := c.Check(t.Context(), NextHop{Host: "example.com"}); got.State != Usable {
			t.Fatalf("at first: %+v", got)
		}
		// One has seen a resolver that validates, and is not over yet.
		f.set("unsigned.test", "SOA", entry{security: Insecure, delay: time.Second})
		time.Sleep(probeEvery)
		c.Verdict()
		synctest.Wait()
		f.change(func(f *fake) { f.blind = true })
		if got := c.Check(t.Context(), NextHop{Host: "example.com"}); !got.State.binds() {
			t.Errorf("the state became %+v", got)
		}
	})
}

func TestProbesAtTheSameTimeAreOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake().set("signed.test", "SOA", entry{security: Secure, data: []string{"ns.test. h.test. 1 1 1 1 1"}, delay: time.Second})
		c := checker(f)
		var waiting sync.WaitGroup
		for range 10 {
			waiting.Go(func() {
				c.Verdict()
				if p := c.Probe(t.Context()); p.Verdict != Validates {
					t.Errorf("verdict %v", p.Verdict)
				}
			})
		}
		waiting.Wait()
		// The first one began before it was asked for.
		if n := f.count("signed.test", "SOA"); n != 2 {
			t.Errorf("%d probes", n)
		}
	})
}

func TestVerdictsAndStatesHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for v := NoVerdict; v <= NotBelieved; v++ {
		seen[v.String()] = true
	}
	for s := Undecided; s <= NotValidating; s++ {
		seen[s.String()] = true
	}
	for h := HostUnknown; h <= HostFailed; h++ {
		seen[h.String()] = true
	}
	for s := Indeterminate; s <= Secure; s++ {
		seen[s.String()] = true
	}
	if want := 5 + 7 + 7 + 4; len(seen) != want || seen["invalid"] {
		t.Error(fmt.Sprint(len(seen)), "different names, want", want, seen)
	}
}
