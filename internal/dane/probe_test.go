package dane

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

func TestOnlyProofMarksTheResolverAsNotValidating(t *testing.T) {
	yes := &Lookup{Security: Secure, Answer: &resolver.Answer{Other: []string{"a. b. 1 1 1 1 1"}}}
	no := &Lookup{Security: Insecure, Answer: &resolver.Answer{Other: []string{"a. b. 1 1 1 1 1"}}}
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
			if got := c.Check(t.Context(), NextHop{Host: "example.com"}, everyHost); got.State != NotValidating || f.questions() != 0 {
				t.Errorf("%+v after %d questions", got, f.questions())
			}
			if r := c.Look(t.Context(), NextHop{Host: "example.com"}, everyHost); r.Finding.State != NotValidating || r.MX == nil {
				t.Errorf("report %+v", r)
			}
		})
	}
}

func TestAnUnansweredProbeChangesNothingAndIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake().set("signed.test", "SOA", reply{delay: time.Hour})
		daneDomain(f, "example.com")
		c := checker(f)
		if p := c.Probe(t.Context()); p.Verdict != NoVerdict || p.Began.IsZero() {
			t.Errorf("probe %+v", p)
		}
		if got := c.Check(t.Context(), NextHop{Host: "example.com"}, everyHost); got.State != Usable {
			t.Errorf("%+v", got)
		}
		f.set("signed.test", "SOA", secure("ns.test. h.test. 1 1 1 1 1"))
		time.Sleep(probeRetry)
		c.Check(t.Context(), NextHop{Host: "other.example"}, everyHost)
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

func TestTheResolverIsProbedWithoutAnyLookupsOnceDANEIsInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := checker(f)
		ctx, end := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); c.Run(ctx) }()
		defer func() { end(); <-ended }()
		time.Sleep(time.Hour)
		if n := f.count("signed.test", "SOA"); n != 0 {
			t.Errorf("%d probes while nobody has asked for DANE", n)
		}
		c.Verdict()
		synctest.Wait()
		f.change(func(f *fake) { f.blind = true; f.generation++ })
		if v := c.Stats().Verdict; v != NoVerdict {
			t.Errorf("the numbers have the verdict of another resolver: %v", v)
		}
		time.Sleep(probeLook + time.Second)
		if v := c.Stats().Verdict; v != NoAD {
			t.Errorf("a new resolv.conf: %v", v)
		}
		f.change(func(f *fake) { f.blind = false })
		time.Sleep(probeRetry + probeLook)
		if v := c.Stats().Verdict; v != Validates {
			t.Errorf("a resolver that was repaired: %v", v)
		}
		f.change(func(f *fake) { f.blind = true })
		time.Sleep(probeEvery + probeLook)
		if v := c.Stats().Verdict; v != NoAD {
			t.Errorf("one that stopped to validate: %v", v)
		}
	})
}

// TestNoStateWeakensWhenTheResolverStopsValidating goes through the ways
// in which validation can end while the daemon runs.
func TestNoStateWeakensWhenTheResolverStopsValidating(t *testing.T) {
	hops := []NextHop{{Host: "example.com"}, {Host: "mx.example.com", Bracketed: true}}
	for name, change := range map[string]func(f *fake){
		"it stops":                               func(f *fake) { f.blind = true },
		"another one, that does not":             func(f *fake) { f.blind = true; f.generation++ },
		"another one, not on this host":          func(f *fake) { f.untrusted = true; f.generation++ },
		"another one, that vouches for anything": func(f *fake) { f.liar = true; f.generation++ },
		"it stops, and the probe is not answered": func(f *fake) {
			f.blind = true
			f.answers["signed.test SOA"] = reply{delay: time.Hour}
			f.answers["unsigned.test SOA"] = reply{delay: time.Hour}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				daneDomain(f, "example.com")
				c := checker(f)
				c.Probe(t.Context())
				for _, n := range hops {
					if got := c.Check(t.Context(), n, everyHost); got.State != Usable {
						t.Fatalf("at first: %+v", got)
					}
				}
				f.change(change)
				for range 50 {
					time.Sleep(3 * time.Minute)
					for _, n := range hops {
						if got := c.Check(t.Context(), n, everyHost); !got.State.protects() && got.State != Undecided {
							t.Fatalf("%v: %+v", n, got)
						}
					}
				}
				f.change(func(f *fake) { f.blind, f.untrusted, f.liar = false, false, false; f.generation++ })
				time.Sleep(time.Hour)
				for _, n := range hops {
					if got := c.Check(t.Context(), n, everyHost); got.State != Usable {
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
			time.Sleep(time.Nanosecond)
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

func TestADomainMayGiveUpDANE(t *testing.T) {
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
				if got := c.Check(t.Context(), NextHop{Host: "example.com"}, everyHost); got.State != Usable {
					t.Fatalf("at first: %+v", got)
				}
				f.change(change)
				time.Sleep(maxKeep)
				if got := c.Check(t.Context(), NextHop{Host: "example.com"}, everyHost); got.State.protects() || got.State == Undecided {
					t.Errorf("%+v", got)
				}
			})
		})
	}
}

// goneAt asks for a next-hop that has DANE, lets change happen, and returns what
// is found when the finding's life is over.
func goneAt(t *testing.T, f *fake, change func(f *fake)) Finding {
	t.Helper()
	daneDomain(f, "example.com")
	c := checker(f)
	c.Probe(t.Context())
	if got := c.Check(t.Context(), NextHop{Host: "example.com"}, everyHost); got.State != Usable {
		t.Fatalf("at first: %+v", got)
	}
	f.change(change)
	time.Sleep(maxKeep)
	got := c.Check(t.Context(), NextHop{Host: "example.com"}, everyHost)
	time.Sleep(probeTime) // a probe may still be waiting
	return got
}

func TestADenialIsNotBelievedFromAResolverThatSetsADOnAnything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got := goneAt(t, newFake(), func(f *fake) {
			f.liar = true
			f.answers[port25+"mx.example.com TLSA"] = insecure()
		})
		if got.State != Undecided || !got.Kept {
			t.Errorf("%+v", got)
		}
	})
}

// The MTA would take the attacker's TLSA records for the domain's.
func TestDANEIsNotUsedWithAResolverThatSetsADOnAnything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		daneDomain(f, "example.com")
		c, hop := checker(f), NextHop{Host: "example.com"}
		c.Probe(t.Context())
		if got := c.Check(t.Context(), hop, everyHost); got.State != Usable {
			t.Fatalf("at first: %+v", got)
		}
		forged(f, "example.com")
		f.change(func(f *fake) { f.liar = true; f.generation++ })
		c.Probe(t.Context())
		time.Sleep(maxKeep)
		if got := c.Check(t.Context(), hop, everyHost); got.State != Undecided || !got.Kept {
			t.Errorf("%+v", got)
		}
	})
}

func TestAbsenceIsNotBelievedWhileTheProbeIsUnanswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got := goneAt(t, newFake(), func(f *fake) {
			delete(f.answers, port25+"mx.example.com TLSA")
			f.answers["signed.test SOA"] = reply{delay: time.Hour}
		})
		if got.State != Usable || !got.Kept {
			t.Errorf("%+v", got)
		}
	})
}

func TestWithoutAnyProbeAnswerAbsenceIsBelieved(t *testing.T) {
	for name, c := range map[string]struct {
		change func(f *fake)
		want   State
	}{
		"absence with the AD bit":    {func(f *fake) { delete(f.answers, port25+"mx.example.com TLSA") }, Absent},
		"absence without the AD bit": {func(f *fake) { f.answers["example.com MX"] = insecure("0 .") }, Usable},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake().set("signed.test", "SOA", reply{}).set("unsigned.test", "SOA", reply{})
				if got := goneAt(t, f, c.change); got.State != c.want {
					t.Errorf("%+v", got)
				}
			})
		})
	}
}

// forged sets up a domain whose MX records are not signed, and point at a host
// of the attacker's with perfect TLSA records.
func forged(f *fake, domain string) {
	f.set(domain, "MX", reply{security: Insecure, data: []string{"10 mx.attacker.example."}, ttl: 5 * time.Minute, delay: time.Millisecond}).
		set("mx.attacker.example", "A", secure("192.0.2.1")).
		set(port25+"mx.attacker.example", "TLSA", secure(usableTLSA...))
}

func TestAForgedMXGetsNoDANEFromAResolverThatSetsADOnAnything(t *testing.T) {
	hop := NextHop{Host: "victim.example"}
	slowProbe := func(f *fake) {
		f.set("signed.test", "SOA", reply{security: Secure, data: []string{"ns.test. h.test. 1 1 1 1 1"}, delay: time.Second}).
			set("unsigned.test", "SOA", reply{security: Insecure, data: []string{"ns.test. h.test. 1 1 1 1 1"}, delay: time.Second})
	}
	for name, lie := range map[string]func(t *testing.T, f *fake, c *Checker){
		"from the start, the first lookup beside the first probe": func(t *testing.T, f *fake, c *Checker) {
			f.change(func(f *fake) { f.liar = true })
			c.Verdict()
		},
		"a new one, the first lookup beside its first probe": func(t *testing.T, f *fake, c *Checker) {
			c.Probe(t.Context())
			f.change(func(f *fake) { f.liar = true; f.generation++ })
		},
		"while it runs": func(t *testing.T, f *fake, c *Checker) {
			c.Probe(t.Context())
			if got := c.Check(t.Context(), hop, everyHost); got.State != UnsignedMX {
				t.Fatalf("at first: %+v", got)
			}
			f.change(func(f *fake) { f.liar = true })
			time.Sleep(5 * time.Minute)
			if v := c.Verdict().Verdict; v != Validates {
				t.Fatalf("it is known already: %v", v)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				forged(f, hop.Host)
				slowProbe(f)
				c := checker(f)
				lie(t, f, c)
				for range 20 {
					if got := c.Check(t.Context(), hop, everyHost); got.State != NotValidating {
						t.Fatalf("%+v", got)
					}
					time.Sleep(20 * time.Minute)
				}
			})
		})
	}
}

// TestAnUnconfirmedStateEndsWithTheNextProbe has the resolver begin to
// lie right after a probe, which then is believed once.
func TestAnUnconfirmedStateEndsWithTheNextProbe(t *testing.T) {
	for name, next := range map[string]func(c *Checker){
		"at the renewal":            func(c *Checker) { time.Sleep(6 * time.Minute) },
		"at once, when one is made": func(c *Checker) { c.Probe(context.Background()) },
		"an hour later":             func(c *Checker) { time.Sleep(time.Hour) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				forged(f, "victim.example")
				c := checker(f)
				c.Probe(t.Context())
				f.change(func(f *fake) { f.liar = true })
				time.Sleep(probeRetry / 2)
				hop := NextHop{Host: "victim.example"}
				if got := c.Check(t.Context(), hop, everyHost); got.State != Usable {
					t.Fatalf("each new domain costs a probe: %+v", got)
				}
				next(c)
				if got := c.Check(t.Context(), hop, everyHost); got.State != NotValidating {
					t.Errorf("%+v", got)
				}
			})
		})
	}
}

// An impatient gives up after a thousand questions about the resolver.
type impatient struct {
	*fake
	asked  atomic.Int32
	giveUp func()
}

func (i *impatient) TrustsAD() bool {
	if i.asked.Add(1) > 1000 {
		i.giveUp()
	}
	return i.fake.TrustsAD()
}

func TestAnUnconfirmedFindingIsCheckedOnceWhenADIsDistrusted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		f := &impatient{fake: newFake(), giveUp: cancel}
		daneDomain(f.fake, "example.com")
		c := New(Options{Resolver: f, Probe: checker(f.fake).prober.names})
		c.Probe(ctx)
		time.Sleep(time.Second)
		c.Check(ctx, NextHop{Host: "example.com"}, everyHost)
		f.change(func(f *fake) { f.liar = true })
		c.Probe(ctx)
		f.change(func(f *fake) { f.untrusted = true; f.generation++ })
		if got := c.Check(ctx, NextHop{Host: "example.com"}, everyHost); got.State != Usable || !got.Kept {
			t.Errorf("%+v", got)
		}
	})
}

func TestACheckThatEndsBeforeTheProbeIsUndecided(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := func(e reply) reply { e.delay = 4900 * time.Millisecond; return e }
		f := newFake()
		f.set("victim.example", "MX", slow(insecure("10 mx.attacker.example."))).
			set("mx.attacker.example", "A", slow(secure("192.0.2.1"))).
			set(port25+"mx.attacker.example", "TLSA", slow(secure(usableTLSA...)))
		c := checker(f)
		c.Probe(t.Context())
		time.Sleep(5 * time.Minute)
		f.change(func(f *fake) {
			f.liar = true
			f.answers["unsigned.test SOA"] = slow(f.answers["unsigned.test SOA"])
		})
		hop := NextHop{Host: "victim.example"}
		for _, want := range []State{Undecided, NotValidating, NotValidating} {
			if got := c.Check(t.Context(), hop, everyHost); got.State != want {
				t.Errorf("%+v, want %v", got, want)
			}
			time.Sleep(failKeep)
		}
		time.Sleep(time.Minute)
	})
}

func TestNewDANEDomainsShareAProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := checker(f)
		for i := range 50 {
			domain := fmt.Sprintf("d%d.example", i)
			daneDomain(f, domain)
			if got := c.Check(t.Context(), NextHop{Host: domain}, everyHost); got.State != Usable {
				t.Fatalf("%+v", got)
			}
			time.Sleep(time.Second)
		}
		if n := f.count("signed.test", "SOA"); n != 1 {
			t.Errorf("%d probes for fifty domains", n)
		}
		// One of unsigned hosts beside its signed one is no exception.
		daneDomain(f, "mixed.example")
		f.set("mixed.example", "MX", secure("10 mx.mixed.example.", "20 out.example.net.")).set("out.example.net", "A", insecure("192.0.2.9"))
		c.Check(t.Context(), NextHop{Host: "mixed.example"}, everyHost)
		c.Probe(t.Context())
		before, checks := f.count("signed.test", "SOA"), f.count("mixed.example", "MX")
		for range 120 {
			began := time.Now()
			c.Check(t.Context(), NextHop{Host: "mixed.example"}, everyHost)
			if time.Since(began) != 0 {
				t.Errorf("a lookup waited for %v", time.Since(began))
			}
			time.Sleep(30 * time.Second)
		}
		if n := f.count("mixed.example", "MX") - checks; n < 10 {
			t.Errorf("only %d renewals", n)
		}
		if n := f.count("signed.test", "SOA") - before; n > int(time.Hour/probeEvery) {
			t.Errorf("%d probes in an hour", n)
		}
	})
}

// TestAnOutageDoesNotEndDANE has the resolver away for
// longer than a finding lives, and then back without validation.
func TestAnOutageDoesNotEndDANE(t *testing.T) {
	for name, back := range map[string]func(f *fake){
		"it does not validate": func(f *fake) { f.blind = true },
		"the same, and the probe is not answered": func(f *fake) {
			f.blind = true
			f.answers["signed.test SOA"], f.answers["unsigned.test SOA"] = reply{}, reply{}
		},
		"it is not believed":        func(f *fake) { f.untrusted = true; f.generation++ },
		"it vouches for anything":   func(f *fake) { f.liar = true },
		"and denies the TLSA":       func(f *fake) { f.liar = true; f.answers[port25+"mx.example.com TLSA"] = insecure() },
		"it validates, as it did":   func(*fake) {},
		"another one that does not": func(f *fake) { f.blind = true; f.generation++ },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				daneDomain(f, "example.com")
				c := checker(f)
				c.Probe(t.Context())
				hop := NextHop{Host: "example.com"}
				if got := c.Check(t.Context(), hop, everyHost); got.State != Usable {
					t.Fatalf("at first: %+v", got)
				}
				mx := f.answers["example.com MX"]
				f.set("example.com", "MX", reply{})
				for range 10 {
					time.Sleep(6 * time.Minute)
					if got := c.Check(t.Context(), hop, everyHost); got.State != Undecided {
						t.Fatalf("in the outage: %+v", got)
					}
				}
				f.set("example.com", "MX", mx)
				f.change(back)
				want := Usable
				if f.liar { // so would be anything, once that is known
					want = Undecided
				}
				var got Finding
				for range 20 {
					time.Sleep(time.Minute)
					if got = c.Check(t.Context(), hop, everyHost); got.State != want && got.State != Usable {
						t.Fatalf("afterwards: %+v", got)
					}
				}
				if got.State != want {
					t.Errorf("in the end: %+v", got)
				}
			})
		})
	}
}

func TestAKeptStateIsLoggedOnceForEachVerdict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		f := newFake()
		domains := 2 * logBurst
		for i := range domains {
			daneDomain(f, fmt.Sprintf("d%d.example", i))
		}
		c := New(Options{Resolver: f, Log: slog.New(slog.NewTextHandler(&log, nil)), Probe: ProbeNames{Signed: []string{"signed.test"}, Unsigned: []string{"unsigned.test"}}})
		c.Probe(t.Context())
		ask := func(n int) {
			for i := range n {
				c.Check(t.Context(), NextHop{Host: fmt.Sprintf("d%d.example", i)}, everyHost)
			}
			synctest.Wait()
		}
		lines := func() int { return strings.Count(log.String(), `msg="next-hop keeps its DANE state`) }
		ask(domains)
		f.change(func(f *fake) { f.blind = true; f.generation++ })
		time.Sleep(time.Hour) // the findings are over
		c.Probe(t.Context())
		ask(domains)
		if n := lines(); n != logBurst || !strings.Contains(log.String(), "domain=d7.example") || !strings.Contains(log.String(), "next=") {
			t.Errorf("%d lines:\n%s", n, &log)
		}
		if n := c.Stats().Kept; n != domains {
			t.Errorf("%d are counted", n)
		}
		log.Reset()
		for range 60 {
			time.Sleep(time.Minute)
			ask(5)
		}
		if n := lines(); n > 0 {
			t.Errorf("%d lines that were there before:\n%s", n, &log)
		}
		f.change(func(f *fake) { f.untrusted = true; f.generation++ })
		for range 10 {
			time.Sleep(time.Minute)
			ask(5)
		}
		if n := lines(); n != 5 {
			t.Errorf("%d lines for another verdict:\n%s", n, &log)
		}
		f.change(func(f *fake) { f.untrusted, f.blind = false, false; f.generation++ })
		time.Sleep(time.Hour)
		c.Probe(t.Context())
		ask(domains)
		if n := c.Stats().Kept; n != 0 {
			t.Errorf("%d are counted when it validates again", n)
		}
	})
}

func TestAnEarlierProbeConfirmsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		daneDomain(f, "example.com")
		c := checker(f)
		c.Probe(t.Context())
		if got := c.Check(t.Context(), NextHop{Host: "example.com"}, everyHost); got.State != Usable {
			t.Fatalf("at first: %+v", got)
		}
		// One has seen a resolver that validates, and is not over yet.
		f.set("unsigned.test", "SOA", reply{security: Insecure, delay: time.Second})
		time.Sleep(probeEvery)
		c.Verdict()
		synctest.Wait()
		f.change(func(f *fake) { f.blind = true })
		time.Sleep(time.Nanosecond)
		if got := c.Check(t.Context(), NextHop{Host: "example.com"}, everyHost); !got.State.protects() {
			t.Errorf("the state became %+v", got)
		}
	})
}

func TestAProbeThatHasDecidedDoesNotWaitLongForOneSlowName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(Options{Resolver: newFake().set("slow.test", "SOA", reply{delay: time.Hour}),
			Probe: ProbeNames{Signed: []string{"signed.test"}, Unsigned: []string{"slow.test", "unsigned.test"}}})
		began := time.Now()
		if p := c.Probe(t.Context()); p.Verdict != Validates || time.Since(began) > settleTime {
			t.Errorf("%v after %v", p.Verdict, time.Since(began))
		}
	})
}

func TestProbesAtTheSameTimeAreOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake().set("signed.test", "SOA", reply{security: Secure, data: []string{"ns.test. h.test. 1 1 1 1 1"}, delay: time.Second})
		c := checker(f)
		var waiting sync.WaitGroup
		for range 10 {
			waiting.Go(func() {
				c.Verdict()
				time.Sleep(time.Nanosecond) // the first one began before it was asked for
				if p := c.Probe(t.Context()); p.Verdict != Validates {
					t.Errorf("verdict %v", p.Verdict)
				}
			})
		}
		waiting.Wait()
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
	if want := 5 + 9 + 8 + 4; len(seen) != want || seen["invalid"] {
		t.Error(fmt.Sprint(len(seen)), "different names, want", want, seen)
	}
}
