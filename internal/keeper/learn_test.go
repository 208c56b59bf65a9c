package keeper_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// foreign is a policy that another node fetched two hours ago.
func foreign(domain, mode string) keeper.Foreign {
	fetched := time.Now().Add(-2 * time.Hour)
	return keeper.Foreign{
		Domain: domain, ID: "1", Text: []byte(policyText(mode, 7*day, "mx."+domain)),
		Fetched: fetched, Expires: fetched.Add(7 * day),
	}
}

func TestAPolicyTakenOverKeepsItsExpiryAndIsFetchedAtOnce(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		f := foreign("a.test", "enforce")
		s.net.enforced("a.test", 30*day)
		gate := make(chan struct{})
		s.net.change("a.test", func(h *fakeHost) { h.gate = gate })
		l, err := s.Take(t.Context(), f)
		if err != nil || !l.Taken || l.Mode != "enforce" {
			t.Fatalf("%+v, %v", l, err)
		}
		r, err := s.Get("a.test")
		if err != nil || !r.Expires.Equal(f.Expires) || !r.Fetched.Equal(f.Fetched) || r.ID != "1" {
			t.Fatalf("%+v, %v", r, err)
		}
		s.mustHold(t, "a.test") // also before the fetch
		time.Sleep(2 * time.Second)
		synctest.Wait()
		close(gate)
		time.Sleep(time.Minute)
		if r, err = s.Get("a.test"); err != nil || !r.Fetched.After(f.Fetched.Add(time.Hour)) {
			t.Errorf("it is not fetched anew: %+v, %v", r, err)
		}
		if _, n := s.net.asked("a.test"); n != 1 {
			t.Errorf("%d fetches", n)
		}
	})
}

func TestAPolicyTakenOverIsNotExtendedWithoutAFetch(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		f := foreign("a.test", "enforce")
		s.net.set("a.test", fakeHost{id: "1", fetchErr: policy.ResultFetch})
		if l, err := s.Take(t.Context(), f); err != nil || !l.Taken {
			t.Fatalf("%+v, %v", l, err)
		}
		time.Sleep(day)
		if l, err := s.Take(t.Context(), f); err != nil || !l.Held { // once more
			t.Fatalf("%+v, %v", l, err)
		}
		r, err := s.Get("a.test")
		if err != nil || !r.Expires.Equal(f.Expires) || r.Failures == 0 {
			t.Errorf("expires %v, want %v; %d failures, %v", r.Expires, f.Expires, r.Failures, err)
		}
		time.Sleep(time.Until(f.Expires) + time.Second)
		if _, err := s.lookup(t, "a.test"); err == nil {
			t.Error("it counts after its end")
		}
	})
}

func TestInvalidPoliciesAreNotTakenOver(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		for want, bend := range map[string]func(*keeper.Foreign){
			"does not parse":          func(f *keeper.Foreign) { f.Text = []byte("version: STSv2\n") },
			"in the future":           func(f *keeper.Foreign) { f.Fetched = time.Now().Add(time.Hour) },
			"longer than its max_age": func(f *keeper.Foreign) { f.Expires = f.Expires.Add(time.Second) },
			"has expired":             func(f *keeper.Foreign) { f.Expires = time.Now() },
			"cannot be read, and is to be fetched": func(f *keeper.Foreign) {
				s.disk.set(func(d *faultyStore) { d.damaged[f.Domain] = true })
			},
		} {
			f := foreign("a.test", "enforce")
			bend(&f)
			if l, err := s.Take(t.Context(), f); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%+v, %v; want %q", l, err, want)
			}
		}
		s.disk.set(func(d *faultyStore) { clear(d.damaged) })
		if _, err := s.Get("a.test"); err != cache.ErrNotFound {
			t.Errorf("something is held: %v", err)
		}
		f := foreign("a.test", "enforce")
		f.ID = "no id; id=1"
		if l, err := s.Take(t.Context(), f); err != nil || !l.Taken {
			t.Errorf("%+v, %v", l, err)
		}
		if r, err := s.Get("a.test"); err != nil || r.ID != "" {
			t.Errorf("id %q, %v", r.ID, err)
		}
	})
}

func TestLearningIsPacedAndSkipsKnownDomains(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("a.test", 30*day)
		s.net.enforced("b.test", 30*day)
		begun := time.Now()
		for _, domain := range []string{"a.test", "b.test"} {
			if l, err := s.Learn(t.Context(), domain); err != nil || l.Mode != "enforce" || l.Held {
				t.Errorf("%+v, %v", l, err)
			}
		}
		if l, err := s.Learn(t.Context(), "none.test"); err != nil || l.Result != policy.ResultNoRecord {
			t.Errorf("%+v, %v", l, err)
		}
		if took := time.Since(begun); took < 2*time.Second/50 {
			t.Errorf("three discoveries in %v", took)
		}
		begun = time.Now()
		if l, err := s.Learn(t.Context(), "a.test"); err != nil || !l.Held {
			t.Errorf("%+v, %v", l, err)
		}
		if l, err := s.Learn(t.Context(), "none.test"); err != nil || l.Result != policy.ResultNoRecord {
			t.Errorf("%+v, %v", l, err)
		}
		if n, _ := s.net.asked("none.test"); n != 1 || time.Since(begun) > 0 {
			t.Errorf("%d TXT lookups, %v", n, time.Since(begun))
		}
	})
}

func TestTheWatchdogsDomainNeverHasAPolicy(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced(keeper.ProbeDomain, 30*day)
		if _, err := s.Learn(t.Context(), keeper.ProbeDomain); err == nil {
			t.Error("it was discovered")
		}
		now := time.Now()
		_, err := s.Take(t.Context(), keeper.Foreign{
			Domain: keeper.ProbeDomain, ID: "1", Text: []byte(policyText("enforce", day, "mx.test")), Fetched: now, Expires: now.Add(time.Hour),
		})
		if err == nil {
			t.Error("it was taken over")
		}
		if _, err := s.lookup(t, keeper.ProbeDomain); !errors.Is(err, keeper.ErrNoPolicy) {
			t.Errorf("got %v", err)
		}
		if records, fetches := s.net.asked(keeper.ProbeDomain); records+fetches > 0 {
			t.Errorf("%d packets were sent", records+fetches)
		}
	})
}

// What comes from elsewhere may add or keep protection, never remove it.
func TestATakenOverPolicyNeverRemovesProtection(t *testing.T) {
	newer := func(mode, mx string) keeper.Foreign {
		now := time.Now()
		return keeper.Foreign{Domain: "a.test", ID: "2", Text: []byte(policyText(mode, 40*day, mx)), Fetched: now, Expires: now.Add(40 * day)}
	}
	for name, test := range map[string]struct {
		foreign func() keeper.Foreign
		taken   bool
		fetched bool // by ourselves
	}{
		"an older one":      {func() keeper.Foreign { return foreign("a.test", "enforce") }, false, false},
		"the same, renewed": {func() keeper.Foreign { return newer("enforce", "mx.a.test") }, true, true},
		"a shorter life": {func() keeper.Foreign {
			f := newer("enforce", "mx.a.test")
			f.Expires = f.Fetched.Add(day)
			return f
		}, false, true},
		"another mx":   {func() keeper.Foreign { return newer("enforce", "mx.evil.test") }, false, true},
		"mode none":    {func() keeper.Foreign { return newer("none", "mx.a.test") }, false, true},
		"mode testing": {func() keeper.Foreign { return newer("testing", "mx.a.test") }, false, true},
	} {
		inSite(t, nil, func(t *testing.T, s *site) {
			s.net.enforced("a.test", 30*day)
			held := s.mustHold(t, "a.test")
			settle(12 * time.Minute)
			l, err := s.Take(t.Context(), test.foreign())
			if err != nil || l.Taken != test.taken || l.Held == test.taken || l.Mode != "enforce" {
				t.Errorf("%s: %+v, %v", name, l, err)
			}
			settle(2 * time.Minute)
			if got := s.mustHold(t, "a.test"); got != held {
				t.Errorf("%s: %q is held, not %q", name, got, held)
			}
			if _, n := s.net.asked("a.test"); (n == 2) != test.fetched {
				t.Errorf("%s: %d fetches", name, n)
			}
		})
	}
}

func TestWithoutAHeldPolicyAForeignOneNeedsOurOwnRecord(t *testing.T) {
	for name, test := range map[string]struct {
		mode string
		host fakeHost
		want string // the mode then held; "" is none
	}{
		"the same id":                {"enforce", fakeHost{id: "1", fetchErr: policy.ResultFetch}, "enforce"},
		"the DNS fails":              {"enforce", fakeHost{recordErr: policy.ResultDNS}, "enforce"},
		"another id, found":          {"enforce", fakeHost{id: "2", text: policyText("none", day, "mx.a.test")}, "none"},
		"another id, not found":      {"enforce", fakeHost{id: "2", fetchErr: policy.ResultFetch}, "enforce"},
		"testing stops no discovery": {"testing", fakeHost{id: "1", text: policyText("enforce", day, "mx.a.test")}, "enforce"},
		"none is not stored":         {"none", fakeHost{id: "1", fetchErr: policy.ResultFetch}, ""},
	} {
		inSite(t, nil, func(t *testing.T, s *site) {
			s.net.set("a.test", test.host)
			if _, err := s.Take(t.Context(), foreign("a.test", test.mode)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			r, err := s.Get("a.test")
			if test.want == "" && err == nil || test.want != "" && r.Mode.String() != test.want {
				t.Errorf("%s: %v, %v", name, r.Mode, err)
			}
		})
	}
}
