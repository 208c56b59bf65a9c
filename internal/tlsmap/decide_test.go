package tlsmap

import (
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

// Every state, and one past the last of each.
const (
	policyStates = PolicyEnforced + 1
	daneStates   = dane.NotValidating + 1
)

// verdicts is the design's table, in its words: the reply of a map with DANE
// under an enforced policy.
var verdicts = map[dane.State]Verdict{
	dane.Usable:        DANEOnly,
	dane.LookupFailed:  DANEOnly,
	dane.Absent:        Secure,
	dane.UnsignedMX:    Secure,
	dane.Undecided:     Defer,
	dane.NoMail:        Secure,
	dane.NotValidating: Secure,
}

func TestTheDecisionInEveryCombination(t *testing.T) {
	n := 0
	for p := range policyStates {
		for d := range daneStates {
			for _, m := range []mta.Map{{}, {Testing: true}, {DANE: true}, {DANE: true, Testing: true}} {
				var want Verdict
				switch {
				case p == PolicyUnreadable:
					want = Defer
				case p == PolicyAbsent, p == PolicyNone, p == PolicyTesting && !m.Testing:
					want = StandAside
				case !m.DANE:
					want = Secure
				default:
					want = verdicts[d]
				}
				// What is no part of the decision changes nothing.
				for _, same := range []mta.Map{m, {DANE: m.DANE, Testing: m.Testing, TLSRPT: true, Servername: true, Enforce: true, Name: "x"}} {
					n++
					if got := Decide(p, &same, d); got != want {
						t.Errorf("policy %s, DANE %s, map %+v: %s, want %s", p, d, same, got, want)
					}
				}
			}
		}
	}
	if n != 5*7*4*2 {
		t.Errorf("%d combinations", n)
	}
}

func TestWhatIsUnknownIsDeferred(t *testing.T) {
	for _, m := range []mta.Map{{}, {DANE: true}, {DANE: true, Testing: true}} {
		if got := Decide(policyStates, &m, dane.Usable); got != Defer {
			t.Errorf("an unknown state of the policy: %s", got)
		}
	}
	if got := Decide(PolicyEnforced, &mta.Map{DANE: true}, daneStates); got != Defer {
		t.Errorf("an unknown state of DANE: %s", got)
	}
	var zero struct {
		p PolicyState
		d dane.State
		v Verdict
	}
	if got := Decide(zero.p, &mta.Map{}, zero.d); got != Defer {
		t.Errorf("a policy state that nobody set: %s", got)
	}
	if got := Decide(PolicyEnforced, &mta.Map{DANE: true}, zero.d); got != Defer || zero.v != Defer {
		t.Errorf("a DANE state that nobody set: %s", got)
	}
}

func TestRFC8461_5_OnlyEnforceIsApplied(t *testing.T) {
	for p, want := range map[PolicyState]Verdict{PolicyNone: StandAside, PolicyTesting: StandAside, PolicyEnforced: Secure} {
		if got := Decide(p, &mta.Map{}, dane.Undecided); got != want {
			t.Errorf("mode %s: %s, want %s", p, got, want)
		}
	}
}

func TestRFC8461_2_DANEIsNotOverridden(t *testing.T) {
	m := mta.Map{DANE: true}
	for _, d := range []dane.State{dane.Usable, dane.LookupFailed, dane.Undecided} {
		if got := Decide(PolicyEnforced, &m, d); got == Secure {
			t.Errorf("DANE %s: MTA-STS goes over it", d)
		}
	}
}

func TestEveryStateHasAName(t *testing.T) {
	names := make(map[string]bool)
	add := func(kind, s string) {
		if s == "" || s == "invalid" || s == "unknown" || names[kind+s] {
			t.Errorf("%s %q: none, or twice", kind, s)
		}
		names[kind+s] = true
	}
	for p := range policyStates {
		add("policy", p.String())
	}
	for d := range daneStates {
		add("DANE", d.String())
	}
	for v := range DANEOnly + 1 {
		add("verdict", v.String())
	}
	for k := range mta.KeyPolicyDomain + 1 {
		add("key", k.String())
	}
}
