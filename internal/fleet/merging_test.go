package fleet

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

const domain = "a.example"

// announce writes a policy to the engine as another relay would, fetched so long ago.
func announce(t *testing.T, e engine, id string, ago time.Duration, text string) {
	t.Helper()
	other := newRelay("other", e, nil)
	p, err := policy.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	fetched := time.Now().Add(-ago)
	if err := other.write(t.Context(), &keeper.Foreign{Domain: domain, ID: id, Text: []byte(text), Fetched: fetched, Expires: fetched.Add(p.MaxAge)}); err != nil {
		t.Fatal(err)
	}
}

// holding runs a relay that holds an enforced policy with two mx patterns, fetched an hour
// ago, and whose next fetch is not due.
func holding(t *testing.T, test func(t *testing.T, e *fakeEngine, w *world, s *site)) {
	inFleet(t, 1, func(t *testing.T, e *fakeEngine, w *world, sites []*site) {
		w.set(domain, host{id: "1", text: text("enforce", 30*day, "mx1.a.example", "mx2.a.example")})
		if got := sites[0].lookup(t, domain); got != "enforce[mx1.a.example mx2.a.example]" {
			t.Fatalf("first: %q", got)
		}
		settle(time.Hour)
		test(t, e, w, sites[0])
	})
}

// recheck has the relay look at the domain while another one holds the right to ask for its
// TXT record.
func recheck(t *testing.T, e *fakeEngine, s *site) {
	t.Helper()
	e.set(func(e *fakeEngine) { e.put("t:c:{"+domain+"}", "other", "60000") })
	s.lookup(t, domain)
	settle(time.Minute)
}

func held(t *testing.T, s *site) string {
	t.Helper()
	r, err := s.keeper.Get(domain)
	if err != nil {
		return err.Error()
	}
	p, err := policy.Parse(r.Text)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s %s %s", r.ID, p.Mode, p.MX)
}

func TestMerging1TheNewestFetchWins(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, e *fakeEngine, w *world, sites []*site) {
		announce(t, e, "2", time.Hour, text("enforce", day, "new.a.example"))
		announce(t, e, "1", 2*time.Hour, text("enforce", day, "old.a.example"))
		if f, ok := sites[0].Find(t.Context(), domain); !ok || f.ID != "2" {
			t.Errorf("found %+v", f)
		}
		announce(t, e, "3", 30*time.Minute, text("enforce", day, "newest.a.example"))
		if f, ok := sites[0].Find(t.Context(), domain); !ok || f.ID != "3" || f.Relay != "other" {
			t.Errorf("found %+v", f)
		}
	})
}

func TestMerging1APolicyFetchedAheadOfOurClockIsRefusedCountedAndNamed(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, e *fakeEngine, w *world, sites []*site) {
		s := sites[0]
		announce(t, e, "1", -50*time.Second, text("enforce", day, "mx.a.example"))
		if _, ok := s.Find(t.Context(), domain); !ok {
			t.Error("less than a minute ahead is refused")
		}
		announce(t, e, "2", -day, text("enforce", 30*day, "mx.a.example"))
		if s.lookup(t, domain) != "" || s.Stats().Refused[ReasonAhead] == 0 || !strings.Contains(s.log.String(), "ahead of our clock") {
			t.Errorf("%v\n%s", s.Stats().Refused, s.log)
		}
		// A stamp that nobody believes keeps no policy out.
		announce(t, e, "3", time.Hour, text("enforce", day, "mx.a.example"))
		if f, ok := s.Find(t.Context(), domain); !ok || f.ID != "3" {
			t.Errorf("found %+v", f)
		}
	})
}

func TestMerging2AHeldPolicyIsRenewedByTheSameOrAStricterOne(t *testing.T) {
	for name, renewal := range map[string]string{
		"the same":        text("enforce", 30*day, "mx1.a.example", "mx2.a.example"),
		"fewer patterns":  text("enforce", 30*day, "mx2.a.example"),
		"a longer life":   text("enforce", 60*day, "mx1.a.example", "mx2.a.example"),
		"in another form": "version: STSv1\r\nmode: enforce\r\nmax_age: 2592000\r\nmx: mx2.a.example\r\nmx: mx1.a.example\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			holding(t, func(t *testing.T, e *fakeEngine, w *world, s *site) {
				announce(t, e, "2", time.Minute, renewal)
				recheck(t, e, s)
				p, _ := policy.Parse([]byte(renewal))
				if got, want := held(t, s), fmt.Sprintf("2 enforce %s", p.MX); got != want {
					t.Errorf("held: %s; want %s", got, want)
				}
				if _, fetches := w.asked(domain); fetches != 1 || s.keeper.Stats().Adopted != 1 {
					t.Errorf("%d fetches, %d adopted", fetches, s.keeper.Stats().Adopted)
				}
			})
		})
	}
}

func TestMerging2AnyOtherChangeMakesAFetchOfOnesOwnDueAndTheHeldPolicyStays(t *testing.T) {
	for name, change := range map[string]string{
		"none":         text("none", 30*day),
		"testing":      text("testing", 30*day, "mx1.a.example", "mx2.a.example"),
		"another mx":   text("enforce", 30*day, "mx1.a.example", "mx.attacker.example"),
		"a short life": text("enforce", time.Minute*10, "mx1.a.example", "mx2.a.example"),
	} {
		t.Run(name, func(t *testing.T) {
			holding(t, func(t *testing.T, e *fakeEngine, w *world, s *site) {
				w.set(domain, host{id: "2", text: text("enforce", 30*day, "mx9.a.example"), fetchErr: policy.ResultFetch})
				announce(t, e, "2", time.Minute, change)
				recheck(t, e, s)
				if got := held(t, s); got != "1 enforce [mx1.a.example mx2.a.example]" {
					t.Errorf("held before the own fetch: %s", got)
				}
				if _, fetches := w.asked(domain); fetches != 2 || s.keeper.Stats().NotAdopted != 1 || !strings.Contains(s.log.String(), "another relay fetched a changed MTA-STS policy") {
					t.Errorf("%d fetches, %d counted\n%s", fetches, s.keeper.Stats().NotAdopted, s.log)
				}
				if got := s.lookup(t, domain); got != "enforce[mx1.a.example mx2.a.example]" {
					t.Errorf("answered: %s", got)
				}
				w.set(domain, host{id: "2", text: text("enforce", 30*day, "mx9.a.example")})
				settle(time.Hour)
				if got := held(t, s); got != "2 enforce [mx9.a.example]" {
					t.Errorf("held after the own fetch: %s", got)
				}
			})
		})
	}
}

// A domain whose hosts serve two texts under one id would be fetched at each recheck.
func TestMerging2AnotherTextUnderTheSameIDWaitsForTheNextFetch(t *testing.T) {
	holding(t, func(t *testing.T, e *fakeEngine, w *world, s *site) {
		changed := text("enforce", 30*day, "mx1.a.example", "mx2.a.example", "mx3.a.example")
		w.set(domain, host{id: "1", text: changed})
		announce(t, e, "1", time.Minute, changed)
		recheck(t, e, s)
		if _, fetches := w.asked(domain); fetches != 1 || held(t, s) != "1 enforce [mx1.a.example mx2.a.example]" {
			t.Errorf("%d fetches, held %s", fetches, held(t, s))
		}
		settle(day)
		if _, fetches := w.asked(domain); fetches != 2 || held(t, s) != "1 enforce [mx1.a.example mx2.a.example mx3.a.example]" {
			t.Errorf("a day later: %d fetches, held %s", fetches, held(t, s))
		}
	})
}

func TestMerging2AnEnforcedPolicyProtectsAFirstContactWhoseDNSAndPolicyHostAreGone(t *testing.T) {
	for name, h := range map[string]host{
		"the same id":    {id: "1", text: "gone", fetchErr: policy.ResultFetch},
		"a failure":      {recordErr: policy.ResultDNS},
		"no answer":      {silent: true},
		"no record":      {recordErr: policy.ResultNoRecord},
		"a broken one":   {recordErr: policy.ResultRecordInvalid},
		"another id and": {id: "2", fetchErr: policy.ResultWebPKI},
	} {
		t.Run(name, func(t *testing.T) {
			inFleet(t, 1, func(t *testing.T, e *fakeEngine, w *world, sites []*site) {
				announce(t, e, "1", time.Hour, text("enforce", day, "mx.a.example"))
				w.set(domain, h)
				begun := time.Now()
				if got := sites[0].lookup(t, domain); got != "enforce[mx.a.example]" || time.Since(begun) > time.Second {
					t.Errorf("%q after %s", got, time.Since(begun))
				}
				if r, _ := sites[0].keeper.Get(domain); r.NotOnDisk != "" || time.Until(r.Expires).Round(time.Minute) != 23*time.Hour {
					t.Errorf("held: %+v", r)
				}
			})
		})
	}
}

// The policy of the fleet is answered, as by each relay that holds it; the question goes on
// behind the lookup, and what it says counts without another lookup.
func TestMerging2ATXTAnswerThatComesLateLeadsToAFetchOfOnesOwn(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, e *fakeEngine, w *world, sites []*site) {
		announce(t, e, "1", time.Hour, text("enforce", day, "old.a.example"))
		w.set(domain, host{id: "2", text: text("testing", day, "new.a.example"), slow: 2 * time.Second})
		begun := time.Now()
		if got := sites[0].lookup(t, domain); got != "enforce[old.a.example]" || time.Since(begun) > time.Second {
			t.Errorf("%q after %s", got, time.Since(begun))
		}
		settle(5 * time.Second)
		if got := held(t, sites[0]); got != "2 testing [new.a.example]" {
			t.Errorf("held: %s", got)
		}
	})
}

func TestMerging2WithoutAPolicyOfTheFleetASlowDNSIsWaitedFor(t *testing.T) {
	for _, mode := range []string{"", "testing"} {
		inFleet(t, 1, func(t *testing.T, e *fakeEngine, w *world, sites []*site) {
			if mode != "" {
				announce(t, e, "1", time.Hour, text(mode, day, "mx.a.example"))
			}
			w.set(domain, host{id: "1", text: text("enforce", day, "mx.a.example"), slow: 8 * time.Second})
			if got := sites[0].lookup(t, domain); got != "enforce[mx.a.example]" {
				t.Errorf("with %q at the engine: answered %q", mode, got)
			}
		})
	}
}

func TestMerging2WithAnotherIDTheOwnDiscoveryComesFirst(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, e *fakeEngine, w *world, sites []*site) {
		announce(t, e, "1", time.Hour, text("enforce", day, "old.a.example"))
		w.set(domain, host{id: "2", text: text("testing", day, "new.a.example")})
		if got := sites[0].lookup(t, domain); got != "testing[new.a.example]" {
			t.Errorf("answered %q", got)
		}
	})
}

// An attacker who forges another id and blocks the policy host gains nothing by the wait.
func TestMerging2WithAnotherIDAndAPolicyHostThatHangsTheLookupIsAnsweredInTime(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, e *fakeEngine, w *world, sites []*site) {
		announce(t, e, "1", time.Hour, text("enforce", day, "mx.a.example"))
		w.set(domain, host{id: "forged", hangs: true})
		if got := sites[0].lookup(t, domain); got != "enforce[mx.a.example]" {
			t.Errorf("answered %q", got)
		}
	})
}

func TestMerging2NoneAndTestingFromOutsideAreNotStoredAndStopNoDiscovery(t *testing.T) {
	for _, mode := range []string{"none", "testing"} {
		inFleet(t, 1, func(t *testing.T, e *fakeEngine, w *world, sites []*site) {
			announce(t, e, "1", time.Hour, text(mode, day, "mx.a.example"))
			w.set(domain, host{id: "1", fetchErr: policy.ResultFetch})
			if got := sites[0].lookup(t, domain); got != "" {
				t.Errorf("answered %q", got)
			}
			settle(7 * time.Minute)
			w.set(domain, host{id: "1", text: text("enforce", day, "mx.a.example")})
			if got := sites[0].lookup(t, domain); got != "enforce[mx.a.example]" {
				t.Errorf("%s: discovered %q", mode, got)
			}
		})
	}
}

func TestMerging2AFailureThatIsRememberedAsksTheEngineOnceAMinute(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, e *fakeEngine, w *world, sites []*site) {
		s := sites[0]
		w.set(domain, host{id: "1", fetchErr: policy.ResultFetch})
		for range 240 { // less than four minutes
			s.lookup(t, domain)
			time.Sleep(970 * time.Millisecond)
		}
		records, fetches := w.asked(domain)
		if asked := s.Stats().Asked; asked != 4 || records != 1 || fetches != 1 {
			t.Errorf("the engine was asked %d times, the domain %d and %d", asked, records, fetches)
		}
		announce(t, e, "1", time.Minute, text("enforce", day, "mx.a.example"))
		settle(time.Minute)
		if got := s.lookup(t, domain); got != "enforce[mx.a.example]" {
			t.Errorf("answered %q", got)
		}
	})
}

// Most domains have no policy: a question a minute for each would be most of what the engine does.
func TestMerging2ADenialThatIsRememberedDoesNotAskTheEngine(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, e *fakeEngine, w *world, sites []*site) {
		s := sites[0]
		w.set(domain, host{recordErr: policy.ResultNoRecord})
		for range 50 {
			s.lookup(t, domain)
			time.Sleep(time.Second) // less than the TTL in all
		}
		if asked := s.Stats().Asked; asked != 1 {
			t.Errorf("the engine was asked %d times", asked)
		}
		announce(t, e, "1", time.Second, text("enforce", day, "mx.a.example"))
		settle(time.Minute)
		if got := s.lookup(t, domain); got != "enforce[mx.a.example]" {
			t.Errorf("after the TTL: answered %q", got)
		}
	})
}

func TestMerging3NobodyExtendsTheLifeOfAnothersPolicy(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, e *fakeEngine, w *world, sites []*site) {
		s := sites[0]
		announce(t, e, "1", 0, text("enforce", time.Hour, "mx.a.example"))
		stolen, _ := e.get("t:p:{a.example}")
		settle(time.Hour + time.Minute)
		e.set(func(e *fakeEngine) { e.put("t:p:{a.example}", stolen, "3600000") }) // played back
		if _, ok := s.Find(t.Context(), domain); ok || s.lookup(t, domain) != "" {
			t.Error("an expired policy is found")
		}

		b := []byte(stolen)
		copy(b[stampAt:], stampText(time.Now()))
		e.set(func(e *fakeEngine) { e.put("t:p:{a.example}", string(b), "3600000") })
		if _, ok := s.Find(t.Context(), domain); ok || s.Stats().Refused[ReasonForged] != 1 {
			t.Errorf("another stamp is believed ")
		}
	})
}

func TestMerging4AnAdoptionThatTwoFetchesDoNotConfirmIsAWarningAndTheOwnFetchWins(t *testing.T) {
	inFleetOf(t, 1, func(s *site) { s.compareOneIn = 1 }, func(t *testing.T, e *fakeEngine, w *world, sites []*site) {
		s := sites[0]
		w.set(domain, host{id: "1", text: text("enforce", 30*day, "true.a.example")})
		announce(t, e, "1", time.Minute, text("enforce", 30*day, "lie.a.example"))
		if got := s.lookup(t, domain); got != "enforce[lie.a.example]" {
			t.Fatalf("adopted %q", got)
		}
		settle(15 * time.Minute)
		if got := held(t, s); got != "1 enforce [true.a.example]" || s.Stats().Differ != 0 {
			t.Errorf("after the first fetch: %s, %d", got, s.Stats().Differ)
		}
		settle(65 * time.Minute)
		if _, fetches := w.asked(domain); fetches != 2 || s.Stats().Differ != 1 || !strings.Contains(s.log.String(), "relay=other") {
			t.Errorf("%d fetches, %d\n%s", fetches, s.Stats().Differ, s.log)
		}
	})
}

func TestMerging4OnesOwnPolicyIsNotCompared(t *testing.T) {
	inFleetOf(t, 1, func(s *site) { s.compareOneIn = 1 }, func(t *testing.T, e *fakeEngine, w *world, sites []*site) {
		w.set(domain, host{id: "1", text: text("enforce", day, "mx.a.example")})
		sites[0].lookup(t, domain)
		settle(time.Second)
		if f, ok := sites[0].Find(t.Context(), domain); !ok || f.Compare || sites[0].compared.Len() != 0 {
			t.Errorf("%t, %+v", ok, f)
		}
	})
}

func TestMerging4AChangeOfTheDomainIsNoDifference(t *testing.T) {
	for name, now := range map[string]host{
		"another id":     {id: "2", text: text("enforce", 30*day, "new.a.example")},
		"the same":       {id: "1", text: text("enforce", 30*day, "mx.a.example")},
		"the same again": {id: "1", text: text("enforce", 30*day, "old.a.example")},
	} {
		inFleetOf(t, 1, func(s *site) { s.compareOneIn = 1 }, func(t *testing.T, e *fakeEngine, w *world, sites []*site) {
			s := sites[0]
			w.set(domain, host{id: "1", text: text("enforce", 30*day, "mx.a.example")})
			announce(t, e, "1", time.Minute, text("enforce", 30*day, "mx.a.example"))
			s.lookup(t, domain)
			w.set(domain, now)
			settle(12 * time.Minute)
			if name == "the same again" { // the first fetch saw a policy host that lags behind (RFC 8461, 8.1)
				w.set(domain, host{id: "1", text: text("enforce", 30*day, "mx.a.example")})
			}
			settle(2 * time.Hour)
			if _, fetches := w.asked(domain); fetches == 0 || s.Stats().Differ != 0 {
				t.Errorf("%s: %d fetches, %d", name, fetches, s.Stats().Differ)
			}
		})
	}
}

func TestMerging5AnExemptionEndsWithinSevenDays(t *testing.T) {
	inFleetOf(t, 2, promptly, func(t *testing.T, e *fakeEngine, w *world, sites []*site) {
		a, b := sites[0], sites[1]
		if err := a.Exempt(t.Context(), domain, 8*day, "root"); err == nil {
			t.Error("eight days are taken")
		}
		// Signed all the same, by a stolen relay.
		if err := a.give(t.Context(), orderExempt, "b.example", 8*day, "root"); err != nil {
			t.Fatal(err)
		}
		if err := a.Exempt(t.Context(), domain, 3*time.Hour, "root"); err != nil {
			t.Fatal(err)
		}
		settle(15 * time.Second)
		want := `exempt a.example 3h0m0s "root" at relay "mx0"`
		for _, s := range sites {
			if got := s.orderedSoFar(); len(got) != 1 || got[0] != want {
				t.Errorf("%s: %q", s.o.Name, got)
			}
		}
		if b.Stats().Refused[ReasonInvalid] == 0 || !strings.Contains(b.log.String(), `by="\"root\" at relay \"mx0\""`) {
			t.Errorf("%v\n%s", b.Stats().Refused, b.log)
		}
	})
}

func TestMerging5AnOlderExemptionPlayedBackIsIgnoredAlsoAfterARestart(t *testing.T) {
	inFleetOf(t, 1, promptly, func(t *testing.T, e *fakeEngine, w *world, sites []*site) {
		s := sites[0]
		if err := s.Exempt(t.Context(), domain, day, "root"); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		old := e.hashes["t:exempt"][domain]
		if err := s.Exempt(t.Context(), domain, 0, "root"); err != nil { // in the same second or not
			t.Fatal(err)
		}
		settle(time.Second)
		e.set(func(e *fakeEngine) { e.hashes["t:exempt"][domain] = old })
		settle(time.Minute)
		if got := s.orderedSoFar(); len(got) != 2 || !strings.HasPrefix(got[1], "exempt a.example -") {
			t.Errorf("ordered %q", got)
		}
		s.stop()
		again := newRelay("mx0", e, nil)
		again.o.Store = s.o.Store
		again.run(t)
		settle(time.Minute)
		if got := again.orderedSoFar(); len(got) != 0 {
			t.Errorf("after a restart: %q", got)
		}
		again.stop()
		s.run(t)
	})
}

func TestMerging5TheLaterOfTwoOrdersCountsAlsoIfTheClockOfTheFirstRelayIsAhead(t *testing.T) {
	ahead := func(s *site) {
		if promptly(s); s.o.Name == "mx0" {
			s.o.Now = func() time.Time { return time.Now().Add(30 * time.Second) }
		}
	}
	inFleetOf(t, 2, ahead, func(t *testing.T, e *fakeEngine, w *world, sites []*site) {
		if err := sites[0].Exempt(t.Context(), domain, day, "root"); err != nil {
			t.Fatal(err)
		}
		settle(15 * time.Second)
		if err := sites[1].Exempt(t.Context(), domain, 0, "root"); err != nil {
			t.Fatal(err)
		}
		settle(15 * time.Second)
		for _, s := range sites {
			if got := s.orderedSoFar(); len(got) != 2 || !strings.HasPrefix(got[1], "exempt a.example -") {
				t.Errorf("%s: %q", s.o.Name, got)
			}
		}
	})
}

func TestMerging5AForgetDropsOlderPoliciesOnceAndForbidsToAdoptThem(t *testing.T) {
	inFleetOf(t, 2, promptly, func(t *testing.T, e *fakeEngine, w *world, sites []*site) {
		a, b := sites[0], sites[1]
		w.set(domain, host{id: "1", text: text("enforce", 30*day, "mx.a.example")})
		a.lookup(t, domain)
		b.lookup(t, domain)
		settle(time.Minute)
		old, ok := e.get("t:p:{a.example}")
		if !ok {
			t.Fatal("not announced")
		}
		w.set(domain, host{recordErr: policy.ResultDNS})
		if err := a.Forget(t.Context(), domain, "root"); err != nil {
			t.Fatal(err)
		}
		settle(15 * time.Second)
		e.set(func(e *fakeEngine) { e.put("t:p:{a.example}", old, "3600000") })
		for _, s := range sites {
			if got := s.lookup(t, domain); got != "" {
				t.Errorf("%s answers %q", s.o.Name, got)
			}
		}
		settle(7 * time.Minute)
		w.set(domain, host{id: "2", text: text("enforce", 30*day, "mx.a.example")})
		for _, s := range sites {
			if got := s.lookup(t, domain); got == "" {
				t.Errorf("%s does not discover it again", s.o.Name)
			}
		}
		settle(6 * time.Hour)
		if got := held(t, b); got != "2 enforce [mx.a.example]" {
			t.Errorf("forgotten twice: %s", got)
		}
	})
}

func TestMerging5AForgetKeepsAPolicyThatWasFetchedAfterIt(t *testing.T) {
	holding(t, func(t *testing.T, e *fakeEngine, w *world, s *site) {
		r, err := s.keeper.Get(domain)
		if err != nil {
			t.Fatal(err)
		}
		for _, test := range []struct {
			before time.Time
			held   string
		}{{r.Fetched.Add(-time.Second), "1 enforce [mx1.a.example mx2.a.example]"}, {r.Fetched.Add(time.Second), "no policy is stored"}} {
			if err := s.keeper.ForgetBefore(t.Context(), domain, test.before); err != nil {
				t.Error(err)
			}
			if got := held(t, s); got != test.held {
				t.Errorf("held: %s; want %s", got, test.held)
			}
		}
	})
}

func TestMerging5AForgetKeepsAPolicyWhoseFetchIsUnderWay(t *testing.T) {
	holding(t, func(t *testing.T, _ *fakeEngine, w *world, s *site) {
		w.set(domain, host{id: "2", text: text("enforce", 30*day, "mx.a.example"), slow: 2 * time.Second})
		go s.keeper.RefreshHeld(t.Context(), domain)
		settle(time.Second)
		if err := s.keeper.ForgetBefore(t.Context(), domain, time.Now()); err != nil {
			t.Error(err)
		}
		if got := held(t, s); got != "2 enforce [mx.a.example]" {
			t.Errorf("held: %s", got)
		}
	})
}

func TestMerging5AForgetOfThisRelayAloneForbidsAdoptionForADay(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, e *fakeEngine, w *world, sites []*site) {
		s := sites[0]
		announce(t, e, "1", time.Minute, text("enforce", 30*day, "mx.a.example"))
		w.set(domain, host{recordErr: policy.ResultDNS})
		if s.lookup(t, domain) == "" {
			t.Fatal("not adopted")
		}
		if _, _, err := s.keeper.Forget(t.Context(), domain); err != nil {
			t.Fatal(err)
		}
		settle(23 * time.Hour)
		if got := s.lookup(t, domain); got != "" {
			t.Errorf("adopted again: %q", got)
		}
		settle(2 * time.Hour)
		if got := s.lookup(t, domain); got == "" {
			t.Error("not adopted after a day")
		}
	})
}

func TestMerging6AnUnknownFormatOrKeyCountsAsAbsentAndTwoKeysMayBeInForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEngine()
		second := newSigningKey([]byte(strings.Repeat("2", keyBytes)))
		signedBy := func(keys ...signingKey) *relay { return newRelay("r", e, func(r *relay) { r.keys = keys }) }
		put := func(r *relay, bend func(string) string) {
			e.put("t:p:{a.example}", bend(r.seal("p", domain, time.Now().Truncate(time.Second), "r", "1", text("enforce", day, "mx.a.example"))), "3600000")
		}
		same := func(s string) string { return s }
		for _, test := range []struct {
			name           string
			writer, reader *relay
			bend           func(string) string
			found          bool
		}{
			{"one key", signedBy(testKey), signedBy(testKey), same, true},
			{"another key", signedBy(second), signedBy(testKey), same, false},
			{"while the key is changed, new by old", signedBy(second, testKey), signedBy(testKey, second), same, true},
			{"while the key is changed, old by new", signedBy(testKey), signedBy(second, testKey), same, true},
			{"the format of a newer version", signedBy(testKey), signedBy(testKey), func(s string) string { return "2" + s[1:] }, false},
		} {
			put(test.writer, test.bend)
			_, ok := test.reader.Find(t.Context(), domain)
			if refused := test.reader.Stats().Refused; ok != test.found || !ok && refused[ReasonUnknown] != 1 {
				t.Errorf("%s: found %t, refused %v", test.name, ok, refused)
			}
		}
	})
}

// The value is bound to its type, prefix, key and fields.
func TestAValueOfAnotherKeyTypeOrPrefixIsForged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newRelay("r", newFakeEngine(), nil)
		sealed := f.seal("p", "a.example", time.Now(), "one", "two")
		foreign := newRelay("r", newFakeEngine(), func(r *relay) { r.o.Prefix = "other:" }).seal("p", "a.example", time.Now(), "one", "two")
		split := f.seal("p", "a.example", time.Now(), "on", "etwo")
		mixed := split[:len(split)-32] + sealed[len(sealed)-32:]
		var v value
		if reason, err := f.unseal("p", "a.example", sealed, 2, &v); err != nil || !slices.Equal(v.fields, []string{"one", "two"}) {
			t.Fatal(reason, err)
		}
		for name, got := range map[string]func() (Reason, error){
			"another domain": func() (Reason, error) { return f.unseal("p", "b.example", sealed, 2, &v) },
			"another type":   func() (Reason, error) { return f.unseal("exempt", "a.example", sealed, 2, &v) },
			"another prefix": func() (Reason, error) { return f.unseal("p", "a.example", foreign, 2, &v) },
			"fields moved":   func() (Reason, error) { return f.unseal("p", "a.example", mixed, 2, &v) },
		} {
			if reason, err := got(); err == nil || reason != ReasonForged {
				t.Errorf("%s: %q, %v", name, reason, err)
			}
		}
		for n := range len(sealed) {
			if _, err := f.unseal("p", "a.example", sealed[:n], 2, &v); err == nil {
				t.Errorf("%d bytes of %d are believed", n, len(sealed))
			}
		}
	})
}
