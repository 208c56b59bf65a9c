package tlsmap

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// fakeHops knows next-hops by name. What it does not know is Absent.
type fakeHops struct {
	mu       sync.Mutex
	findings map[string]dane.Finding
	takes    time.Duration // of a first check
	known    map[dane.NextHop]bool
	asked    []dane.NextHop
	verdicts int
	mx       map[string]*dane.MXSet
	mxErr    error
	mxAsked  []string
}

func newFakeHops() *fakeHops {
	return &fakeHops{known: map[dane.NextHop]bool{}, findings: map[string]dane.Finding{
		"dane.example":      {State: dane.Usable},
		"sick.example":      {State: dane.LookupFailed},
		"undecided.example": {State: dane.Undecided, Why: "the MX lookup failed"},
	}}
}

func (f *fakeHops) finding(n dane.NextHop) dane.Finding {
	if found, ok := f.findings[n.Host]; ok {
		return found
	}
	return dane.Finding{State: dane.Absent}
}

func (f *fakeHops) Held(_ context.Context, n dane.NextHop) (dane.Finding, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.finding(n), f.known[n]
}

func (f *fakeHops) Check(ctx context.Context, n dane.NextHop) dane.Finding {
	f.mu.Lock()
	f.asked = append(f.asked, n)
	f.known[n] = true
	found, takes := f.finding(n), f.takes
	f.mu.Unlock()
	select {
	case <-time.After(takes):
		return found
	case <-ctx.Done():
		return dane.Finding{Why: "it took too long"}
	}
}

func (f *fakeHops) MX(ctx context.Context, domain string) (*dane.MXSet, error) {
	f.mu.Lock()
	f.mxAsked = append(f.mxAsked, domain)
	set, err, takes := f.mx[domain], f.mxErr, f.takes
	f.mu.Unlock()
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if set == nil && err == nil {
		set = &dane.MXSet{Implicit: true, Hosts: []dane.MXHost{{Name: domain}}}
	}
	return set, err
}

func (f *fakeHops) Verdict() dane.Probe {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.verdicts++
	return dane.Probe{}
}

// daneServer answers for maps with DANE, and has an enforced policy for each of
// the names.
func daneServer(t *testing.T, names ...string) (*Server, *fakePolicies, *fakeHops) {
	s, f := newTestServer(t)
	for _, name := range names {
		f.held[name] = &heldPolicy{mode: policy.ModeEnforce, ready: Prepare(policyOf("mx." + name))}
	}
	return s, f, s.hops.(*fakeHops)
}

var daneMaps = []string{"postfix-dane", "postfix-dane-tlsrpt", "QUERY", "querywithtlsrpt"}

func TestRFC8461_2_WhereDANEProtectsTheReplyIsBareDANEOnly(t *testing.T) {
	s, _, _ := daneServer(t, "dane.example", "sick.example", "undecided.example", "plain.example")
	for _, m := range daneMaps {
		for range 2 {
			for name, want := range map[string]string{
				"dane.example":      "OK dane-only",
				"sick.example":      "OK dane-only",
				"undecided.example": "TEMP could not find out whether DANE protects the domain; see: sts-tlsmap -explain undecided.example",
				"unknown.example":   "NOTFOUND ",
			} {
				if got := ask(s, m, name); got != want {
					t.Errorf("map %s, %s: %q, want %q", m, name, got, want)
				}
			}
			if got := ask(s, m, "plain.example"); !strings.HasPrefix(got, "OK secure match=mx.plain.example servername=hostname") ||
				strings.Contains(got, "policy_type=sts") != strings.Contains(strings.ToLower(m), "tlsrpt") {
				t.Errorf("map %s: %q", m, got)
			}
		}
	}
}

func TestOneReplyKeptForAPlainMapDoesNotAnswerForDANE(t *testing.T) {
	s, f, _ := daneServer(t)
	f.held["dane.example"] = f.held["enforce.example"]
	for range 3 {
		if got := ask(s, "postfix", "dane.example"); !strings.HasPrefix(got, "OK secure") {
			t.Errorf("postfix: %q", got)
		}
		if got := ask(s, "postfix-dane", "dane.example"); got != "OK dane-only" {
			t.Errorf("postfix-dane: %q", got)
		}
	}
}

func TestDANEIsAskedForOnDANEMapsUnderAnAppliedPolicyOnly(t *testing.T) {
	s, _, hops := daneServer(t)
	if err := s.SetExempt([]string{"exempt.example"}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"testing.example", "none.example", "unknown.example", "unreadable.example", "broken.example", "exempt.example", ".enforce.example", "[192.0.2.1]"} {
		for _, m := range daneMaps {
			ask(s, m, name)
		}
	}
	for _, m := range []string{"postfix", "postfix-tlsrpt", "strict", "rehearsal"} {
		ask(s, m, "enforce.example")
	}
	if hops.asked != nil {
		t.Errorf("asked for %v", hops.asked)
	}
	for range 3 {
		ask(s, "postfix-dane", "enforce.example")
	}
	if len(hops.asked) != 1 {
		t.Errorf("asked for %v", hops.asked)
	}
}

func TestTheNextHopKeepsItsFormForDANE(t *testing.T) {
	for key, want := range map[string]dane.NextHop{
		"enforce.example":              {Host: "enforce.example", Port: 25},
		"Enforce.Example.":             {Host: "enforce.example", Port: 25},
		"enforce.example:587":          {Host: "enforce.example", Port: 587},
		"[enforce.example]":            {Host: "enforce.example", Port: 25, Bracketed: true},
		"[enforce.example]:587":        {Host: "enforce.example", Port: 587, Bracketed: true},
		"[enforce.example]:submission": {Host: "enforce.example", Port: 587, Bracketed: true},
	} {
		s, _, hops := daneServer(t)
		ask(s, "postfix-dane", key)
		if len(hops.asked) != 1 || hops.asked[0] != want {
			t.Errorf("%s: asked for %+v, want %+v", key, hops.asked, want)
		}
	}
}

func TestAServiceWithoutAKnownPortIsNotProtectedByTheRecordsOfAnother(t *testing.T) {
	s, _, hops := daneServer(t)
	if got := ask(s, "postfix-dane", "[enforce.example]:no-such-service"); !strings.HasPrefix(got, "TEMP ") || hops.asked != nil {
		t.Errorf("%q, asked for %v", got, hops.asked)
	}
}

func TestWithoutACheckerDANEMapsDefer(t *testing.T) {
	s := NewServer(testMaps(t), Options{Policies: newFake()})
	if got := ask(s, "postfix-dane", "enforce.example"); !strings.HasPrefix(got, "TEMP ") {
		t.Errorf("%q", got)
	}
}

func TestTheProbeBeginsWithTheFirstQuestionToADANEMap(t *testing.T) {
	s, _, hops := daneServer(t)
	ask(s, "postfix", "enforce.example")
	if hops.verdicts != 0 {
		t.Error("probed for a plain map")
	}
	for range 3 {
		ask(s, "QUERY", "unknown.example")
	}
	if hops.verdicts != 1 {
		t.Errorf("%d probes begun", hops.verdicts)
	}
}

func TestTheDNSOfANextHopHasWhatIsLeftOfTheLookupsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, hops := newFake(), newFakeHops()
		hops.takes = 30 * time.Second
		s := NewServer(testMaps(t), Options{Policies: f, NextHops: hops, Timeout: 20 * time.Second})
		began := time.Now()
		if got := ask(s, "postfix-dane", "enforce.example"); !strings.HasPrefix(got, "TEMP ") {
			t.Errorf("%q", got)
		}
		if d := time.Since(began); d != 20*time.Second {
			t.Errorf("it took %v", d)
		}
		began = time.Now()
		if got := ask(s, "postfix-dane", "enforce.example"); !strings.HasPrefix(got, "OK secure") || time.Since(began) != 0 {
			t.Errorf("afterwards: %q in %v", got, time.Since(began))
		}
	})
}
