package fleet

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

var errDown = errors.New("connection refused")

func foreign(domain string, fetched time.Time) *keeper.Foreign {
	return &keeper.Foreign{Domain: domain, ID: "1", Text: []byte(text("enforce", 7*day, "mx."+domain)), Fetched: fetched, Expires: fetched.Add(7 * day)}
}

// Down, hung or slow: each relay behaves as one without a fleet.
func TestWithTheEngineAwayEachRelayIsAsGoodAsOneAlone(t *testing.T) {
	for name, trouble := range map[string]func(*fakeEngine){
		"down": func(e *fakeEngine) { e.away = errDown },
		"hung": func(e *fakeEngine) { e.takes = time.Hour },
		"slow": func(e *fakeEngine) { e.takes = 150 * time.Millisecond },
		"full": func(e *fakeEngine) { e.away = replyError("OOM command not allowed") },
	} {
		t.Run(name, func(t *testing.T) {
			inFleetOf(t, 1, promptly, func(t *testing.T, e *fakeEngine, w *world, sites []*site) {
				s := sites[0]
				w.set("held.example", host{id: "1", text: text("enforce", 7*day, "mx.held.example")})
				s.lookup(t, "held.example")
				settle(15 * time.Minute)
				e.set(trouble)
				for i := range 50 {
					domain := fmt.Sprintf("d%d.example", i)
					w.set(domain, host{id: "1", text: text("enforce", 7*day, "mx."+domain)})
					begun := time.Now()
					if got := s.lookup(t, domain); got == "" || time.Since(begun) > findWait {
						t.Errorf("%q after %s", got, time.Since(begun))
					}
					if s.lookup(t, "held.example") == "" {
						t.Error("a held policy is not answered")
					}
				}
				settle(time.Minute)
				if s.Stats().Trouble == "" || s.Stats().Pending == 0 || strings.Count(s.log.String(), "level=ERROR") != 1 {
					t.Errorf("%+v\n%s", s.Stats(), s.log)
				}
				s.lookup(t, "d1.example")
				settle(2 * day)
				if r, _ := s.keeper.Get("d1.example"); time.Since(r.Fetched) > 2*day {
					t.Errorf("fetched %s ago: refreshes do not go on", time.Since(r.Fetched))
				}
				e.set(func(e *fakeEngine) { e.away, e.takes = nil, 0 })
				settle(time.Minute)
				if stats := s.Stats(); stats.Trouble != "" || stats.Pending != 0 || strings.Count(s.log.String(), "level=ERROR") != 1 {
					t.Errorf("%+v\n%s", stats, s.log)
				}
				for i := range 50 {
					if _, ok := s.Find(t.Context(), fmt.Sprintf("d%d.example", i)); !ok {
						t.Errorf("d%d.example was not brought to the engine", i)
					}
				}
			})
		})
	}
}

func TestWhatAFlushedEngineHasLostIsBroughtToItAgain(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, e *fakeEngine, w *world, sites []*site) {
		w.set(domain, host{id: "1", text: text("enforce", 30*day, "mx.a.example")})
		for _, s := range sites {
			s.lookup(t, domain)
			settle(time.Second)
		}
		settle(time.Hour)
		e.set(func(e *fakeEngine) { clear(e.strings); clear(e.hashes) })
		for _, s := range sites { // the second sees that the first looks at the TXT record
			s.lookup(t, domain)
			settle(time.Second)
		}
		if _, ok := sites[0].Find(t.Context(), domain); !ok {
			t.Error("it is gone")
		}
		if _, fetches := w.asked(domain); fetches != 1 {
			t.Errorf("%d fetches", fetches)
		}
	})
}

func TestPoliciesThatWaitForTheEngineAreBoundedAndTheNewestOfADomain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRelay("r", newFakeEngine(), nil)
		now := time.Now()
		for i := range maxPending + 100 {
			r.Announce(foreign(fmt.Sprintf("d%d.example", i), now))
		}
		r.Announce(foreign("d1.example", now.Add(time.Second)))
		r.Announce(foreign("d1.example", now.Add(-time.Second)))
		if s := r.Stats(); s.Pending != maxPending || s.Dropped != 100 || r.pending.byDomain["d1.example"].Fetched != now.Add(time.Second) {
			t.Errorf("%+v", s)
		}
		big := newRelay("r", newFakeEngine(), nil)
		for i := range 1000 {
			f := foreign(fmt.Sprintf("d%d.example", i), now)
			f.Text = make([]byte, policy.MaxText)
			big.Announce(f)
		}
		if big.pending.bytes > maxPendingBytes || big.Stats().Dropped == 0 {
			t.Errorf("%d bytes", big.pending.bytes)
		}
		for big.pending.take() != nil {
		}
		if big.pending.bytes != 0 {
			t.Errorf("%d bytes of nothing", big.pending.bytes)
		}
	})
}

func TestALeaseHeldElsewhereIsLookedAtAgainAndThenThePolicyIsFetchedInAnyCase(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, e *fakeEngine, w *world, sites []*site) {
		s := sites[0]
		w.set(domain, host{id: "1", text: text("enforce", 30*day, "mx.a.example")})
		s.lookup(t, domain)
		settle(time.Hour)
		s.lookup(t, domain)
		r, _ := s.keeper.Get(domain)
		settle(time.Until(r.FetchAt) - time.Second)
		e.set(func(e *fakeEngine) { e.put("t:l:{a.example}", "dead", "3600000") })
		settle(40 * time.Second)
		if _, fetches := w.asked(domain); fetches != 1 {
			t.Errorf("%d fetches in spite of the lease", fetches)
		}
		settle(70 * time.Second)
		if _, fetches := w.asked(domain); fetches != 2 {
			t.Errorf("%d fetches after the lease should have ended", fetches)
		}
	})
}

func TestAnEngineThatGivesNoLeaseStopsNoFetchHoweverManyAreDue(t *testing.T) {
	e := newFakeEngine()
	e.lie = func([]string, any) any { return nil }
	f := newRelay("a", e, nil)
	due, fetched := 2*maxPending, 0
	for range 2 {
		for i := range due {
			if _, ours := f.Lease(t.Context(), keeper.LeaseFetch, fmt.Sprintf("d%d.example", i), time.Minute); ours {
				fetched++
			}
		}
	}
	if fetched < due {
		t.Errorf("%d fetches at the second try of %d domains", fetched, due)
	}
}

func TestATXTQuestionThatFailsGivesTheRightToAskBack(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, e *fakeEngine, w *world, sites []*site) {
		w.set(domain, host{id: "1", text: text("enforce", 30*day, "mx.a.example")})
		for _, s := range sites {
			s.lookup(t, domain)
		}
		settle(time.Hour)
		before, _ := w.asked(domain)
		sites[0].lookup(t, domain)
		settle(time.Second)
		sites[1].lookup(t, domain)
		settle(time.Second)
		if records, _ := w.asked(domain); records != before+1 {
			t.Errorf("%d TXT questions; one of two relays is to ask", records-before)
		}
		settle(time.Hour)
		w.set(domain, host{recordErr: policy.ResultDNS})
		sites[0].lookup(t, domain)
		settle(time.Second)
		before, _ = w.asked(domain)
		sites[1].lookup(t, domain)
		settle(time.Second)
		if records, _ := w.asked(domain); records != before+1 {
			t.Errorf("%d TXT questions after one that failed", records-before)
		}
	})
}

// Issue 14: a changed id is in force at each relay at its own next recheck, without a second
// fetch unless patterns were added.
func TestAChangedIDIsFollowedByAllRelaysWithOneFetch(t *testing.T) {
	for added, fetches := range map[string]int{"": 2, "mx3.a.example": 1 + 10} {
		inFleet(t, 10, func(t *testing.T, e *fakeEngine, w *world, sites []*site) {
			w.set(domain, host{id: "1", text: text("enforce", 30*day, "mx1.a.example", "mx2.a.example")})
			for _, s := range sites {
				s.lookup(t, domain)
				settle(time.Second)
			}
			settle(time.Hour)
			mx := []string{"mx2.a.example"}
			if added != "" {
				mx = append(mx, added)
			}
			w.set(domain, host{id: "2", text: text("enforce", 30*day, mx...)})
			for range 2 {
				for _, s := range sites {
					s.lookup(t, domain)
					settle(time.Second)
				}
				settle(10 * time.Minute)
			}
			for _, s := range sites {
				if got := held(t, s); got != fmt.Sprintf("2 enforce %s", mx) {
					t.Errorf("%s holds %s", s.o.Name, got)
				}
			}
			if _, got := w.asked(domain); got > fetches {
				t.Errorf("added %q: %d fetches, want at most %d", added, got, fetches)
			}
		})
	}
}

// Two relays that are served different texts under one id must not make each other fetch.
func TestRelaysThatAreServedDifferentTextsDoNotMakeEachOtherFetch(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, e *fakeEngine, w *world, sites []*site) {
		s := sites[0]
		w.set(domain, host{id: "1", text: text("enforce", 30*day, "mx1.a.example")})
		s.lookup(t, domain)
		settle(time.Hour)
		for range 60 { // ten hours
			announce(t, e, "1", 0, text("enforce", 30*day, "mx2.a.example"))
			recheck(t, e, s)
			settle(9 * time.Minute)
		}
		if _, fetches := w.asked(domain); fetches != 1 {
			t.Errorf("%d fetches", fetches)
		}
	})
}

// A hostile engine: whatever it returns, no reply weakens, and each lie is counted.
func TestAHostileEngineWeakensNothing(t *testing.T) {
	for name, test := range map[string]struct {
		lie    func(e *fakeEngine, s *site) any
		reason Reason
	}{
		"another domain's": {func(e *fakeEngine, s *site) any {
			return s.seal("p", "b.example", time.Now(), "r", "2", text("none", day))
		}, ReasonForged},
		"truncated": {func(e *fakeEngine, s *site) any { return s.seal("p", domain, time.Now(), "r", "2", "x")[:40] }, ReasonTruncated},
		"cut": {func(e *fakeEngine, s *site) any {
			v := s.seal("p", domain, time.Now(), "r", "2", "x")
			return v[:len(v)-1]
		}, ReasonForged},
		"a huge one": {func(e *fakeEngine, s *site) any { return strings.Repeat("1", 200<<10) }, ReasonUnknown},
		"a day ahead": {func(e *fakeEngine, s *site) any {
			return s.seal("p", domain, time.Now().Add(day), "r", "2", text("none", day))
		}, ReasonAhead},
		"no policy, signed": {func(e *fakeEngine, s *site) any { return s.seal("p", domain, time.Now(), "r", "2", "no policy") }, ReasonInvalid},
		"few fields":        {func(e *fakeEngine, s *site) any { return s.seal("p", domain, time.Now(), "r") }, ReasonInvalid},
		"signed none":       {func(e *fakeEngine, s *site) any { return s.seal("p", domain, time.Now(), "r", "2", text("none", day)) }, ""},
		"an old one": {func(e *fakeEngine, s *site) any {
			return s.seal("p", domain, time.Now().Add(-6*day), "r", "0", text("none", 7*day))
		}, ""},
		"a number":            {func(e *fakeEngine, s *site) any { return int64(7) }, ""},
		"a list":              {func(e *fakeEngine, s *site) any { return []any{nil, []any{}} }, ""},
		"nothing to anything": {func(e *fakeEngine, s *site) any { return nil }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			holding(t, func(t *testing.T, e *fakeEngine, w *world, s *site) {
				w.set(domain, host{recordErr: policy.ResultDNS}) // no word from the domain itself
				e.set(func(e *fakeEngine) {
					e.lie = func(args []string, reply any) any {
						if args[0] == "GET" {
							return test.lie(e, s)
						}
						return reply
					}
				})
				for range 3 {
					e.set(func(e *fakeEngine) { e.put("t:c:{a.example}", "other", "60000") })
					if got := s.lookup(t, domain); got != "enforce[mx1.a.example mx2.a.example]" {
						t.Fatalf("answered %q", got)
					}
					settle(6 * time.Minute)
				}
				if test.reason != "" && (s.Stats().Refused[test.reason] == 0 || !strings.Contains(s.log.String(), "reason="+string(test.reason))) {
					t.Errorf("%v\n%s", s.Stats().Refused, s.log)
				}
				if name == "signed none" && s.keeper.Stats().NotAdopted == 0 {
					t.Error("it is not counted")
				}
			})
		})
	}
}

func TestHashesOfAHostileEngineAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEngine()
		r := newRelay("r", e, nil)
		for _, kind := range []string{"exempt", "forget", "refresh", "relays"} {
			e.hashes["t:"+kind] = map[string]string{strings.Repeat("x", 300): "x"}
			for i := range maxRelays + 500 {
				name := fmt.Sprintf("d%d.example", i)
				e.hashes["t:"+kind][name] = r.seal(kind, name, time.Now(), "0", "r", "root")
			}
		}
		for range 3 {
			_, err := r.Relays(t.Context())
			if err = errors.Join(err, r.pass(t.Context())); err != nil {
				t.Error(err)
			}
		}
		r.orders.wg.Wait()
		for kind, known := range r.orders.stamps {
			if len(known) > 2*maxOrders {
				t.Errorf("%s: %d stamps", kind, len(known))
			}
		}
		if s := r.Stats(); s.Refused[ReasonTooMany] == 0 || s.Relays > maxRelays {
			t.Errorf("%+v", s)
		}
	})
}

func TestAClockThatDiffersFromTheEnginesIsSeen(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, e *fakeEngine, w *world, sites []*site) {
		e.set(func(e *fakeEngine) { e.off = -time.Hour })
		settle(20 * time.Minute)
		if off := sites[0].Stats().ClockOff; off.Round(time.Minute) != time.Hour {
			t.Errorf("off by %s", off)
		}
	})
}

func TestRelaysThatWereNotSeenForThreeDaysAreGone(t *testing.T) {
	inFleet(t, 3, func(t *testing.T, e *fakeEngine, w *world, sites []*site) {
		settle(2 * time.Hour)
		if n := sites[0].Stats().Relays; n != 3 {
			t.Errorf("%d relays", n)
		}
		sites[2].stop()
		settle(2 * day)
		if n := sites[0].Stats().Relays; n != 3 {
			t.Errorf("%d relays after two days", n)
		}
		settle(2 * day)
		if n := sites[0].Stats().Relays; n != 2 || len(e.hashes["t:relays"]) != 2 {
			t.Errorf("%d relays after four days, %d fields", n, len(e.hashes["t:relays"]))
		}
		sites[2].run(t)
	})
}

func TestCountsOfTheFleetAreVerified(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEngine()
		a, b := newRelay("a", e, nil), newRelay("b", e, nil)
		for range 2 {
			if err := errors.Join(a.PutReport(t.Context(), "r", "2026-11-30", domain, "id-a", "1", day), b.PutReport(t.Context(), "r", "2026-11-30", domain, "id-b", "2", day)); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := a.Report(t.Context(), "r", "2026-11-30", domain); err != nil || fmt.Sprint(got) != "map[id-a:1 id-b:2]" {
			t.Errorf("%v, %v", got, err)
		}
		if err := a.PutReport(t.Context(), "r", "2026-11-30", domain, "id-a", strings.Repeat("x", maxCounts+1), day); err == nil {
			t.Error("too many bytes are taken")
		}
		hash := e.hashes["t:r:{2026-11-30:a.example}"]
		hash["id-c"] = hash["id-b"] // another relay's
		if got, err := a.Report(t.Context(), "r", "2026-11-30", domain); err != nil || len(got) != 2 || a.Stats().Refused[ReasonForged] != 1 {
			t.Errorf("%v, %v", got, err)
		}
		e.away = errDown
		for range breakAfter {
			if ours, err := a.LeaseDelivery(t.Context(), "2026-11-30", domain, "id-a", time.Hour); ours || err == nil {
				t.Error("the right to deliver without an engine")
			}
		}
		if _, err := a.Report(t.Context(), "r", "2026-11-30", domain); err == nil {
			t.Error("counts without an engine")
		}
	})
}

func TestAnOrderThatFailsIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRelay("r", newFakeEngine(), func(r *relay) { r.failing = errors.New("the disk is full") }).run(t)
		settle(time.Second)
		if err := r.Forget(t.Context(), domain, "root"); err != nil {
			t.Fatal(err)
		}
		settle(time.Minute)
		r.mu.Lock()
		r.failing = nil
		r.mu.Unlock()
		settle(time.Minute)
		if got := r.orderedSoFar(); len(got) != 1 {
			t.Errorf("ordered %q", got)
		}
		r.stop()
	})
}
