package tlsmap_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
)

// daneLab has an enforced policy for each of the names.
func daneLab(t *testing.T, names ...string) *lab {
	l := newLab(t, 0)
	for _, name := range names {
		l.policies.held[name] = enforced("mx." + name)
	}
	return l
}

var daneMaps = []string{"postfix-dane", "postfix-dane-tlsrpt", "QUERY", "querywithtlsrpt"}

func TestRFC8461_2_WhereDANEProtectsTheReplyIsBareDANEOnly(t *testing.T) {
	l := daneLab(t, "dane.example", "sick.example", "undecided.example", "plain.example")
	for _, m := range daneMaps {
		for range 2 {
			for name, want := range map[string]string{
				"dane.example":      "OK dane-only",
				"sick.example":      "OK dane-only",
				"undecided.example": "TEMP could not find out whether DANE protects the domain; see: sts-tlsmap -explain undecided.example",
				"unknown.example":   "NOTFOUND ",
			} {
				if got := l.ask(m, name); got != want {
					t.Errorf("map %s, %s: %q, want %q", m, name, got, want)
				}
			}
			if got := l.ask(m, "plain.example"); !strings.HasPrefix(got, "OK secure match=mx.plain.example servername=hostname") ||
				strings.Contains(got, "policy_type=sts") != strings.Contains(strings.ToLower(m), "tlsrpt") {
				t.Errorf("map %s: %q", m, got)
			}
		}
	}
}

func TestWhereLookupsFailAtSomeHostsTheReplyNamesTheOthers(t *testing.T) {
	l := daneLab(t)
	for _, domain := range []string{"mixed.example", "dead.example"} {
		l.policies.held[domain] = enforced("*." + domain)
	}
	for range 2 { // no such reply is kept
		for _, tt := range []struct{ mapName, domain, want string }{
			{"postfix", "mixed.example", "OK secure match=.mixed.example servername=hostname"},
			{"postfix-dane", "mixed.example", "OK dane-only"},
			{"postfix-dane-tlsrpt", "mixed.example", "OK secure match=mx2.mixed.example servername=hostname policy_type=sts policy_domain=mixed.example " +
				"mx_host_pattern=mx2.mixed.example { policy_string = version: STSv1 } { policy_string = mode: enforce } { policy_string = mx: *.mixed.example } "},
			{"postfix-dane", "dead.example", "OK secure match=mx2.dead.example:mx.deep.dead.example servername=hostname"},
			{"postfix-tlsrpt", "dead.example", "OK secure match=.dead.example servername=hostname policy_type=sts policy_domain=dead.example mx_host_pattern=*.dead.example "},
		} {
			if got := l.ask(tt.mapName, tt.domain); !strings.HasPrefix(got, tt.want) {
				t.Errorf("map %s, %s: %q, want %q", tt.mapName, tt.domain, got, tt.want)
			}
		}
	}
}

func TestACachedPlainReplyIsNotUsedForADANEMap(t *testing.T) {
	l := daneLab(t)
	l.policies.held["dane.example"] = l.policies.held["enforce.example"]
	for range 3 {
		if got := l.ask("postfix", "dane.example"); !strings.HasPrefix(got, "OK secure") {
			t.Errorf("postfix: %q", got)
		}
		if got := l.ask("postfix-dane", "dane.example"); got != "OK dane-only" {
			t.Errorf("postfix-dane: %q", got)
		}
	}
}

func TestDANEIsLookedUpOnlyOnDANEMapsUnderAnAppliedPolicy(t *testing.T) {
	l := daneLab(t)
	l.SetExempt([]string{"exempt.example"})
	for _, name := range []string{"testing.example", "none.example", "unknown.example", "unreadable.example", "broken.example", "exempt.example", ".enforce.example", "[192.0.2.1]"} {
		for _, m := range daneMaps {
			l.ask(m, name)
		}
	}
	for _, m := range []string{"postfix", "postfix-tlsrpt", "strict", "rehearsal"} {
		l.ask(m, "enforce.example")
	}
	if l.hops.asked != nil {
		t.Errorf("asked for %v", l.hops.asked)
	}
	for range 3 {
		l.ask("postfix-dane", "enforce.example")
	}
	if len(l.hops.asked) != 1 {
		t.Errorf("asked for %v", l.hops.asked)
	}
}

func TestACheckThatOutlivesItsLookupKeepsTheHostsOfThePolicy(t *testing.T) {
	l := daneLab(t)
	l.ask("postfix-dane", "stored.example")
	clear(l.policies.held["stored.example"].match) // as the keeper reads the next policy into the same memory
	if !l.hops.listed("mx.stored.example") || l.hops.listed("mx.other.example") {
		t.Error("the check asks for hosts of another policy")
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
		l := daneLab(t)
		l.ask("postfix-dane", key)
		if len(l.hops.asked) != 1 || l.hops.asked[0] != want {
			t.Errorf("%s: asked for %+v, want %+v", key, l.hops.asked, want)
		}
	}
}

func TestAnUnknownServiceNameDefersMail(t *testing.T) {
	l := daneLab(t)
	if got := l.ask("postfix-dane", "[enforce.example]:no-such-service"); !strings.HasPrefix(got, "TEMP ") || l.hops.asked != nil {
		t.Errorf("%q, asked for %v", got, l.hops.asked)
	}
}

func TestTheProbeBeginsWithTheFirstQuestionToADANEMap(t *testing.T) {
	l := daneLab(t)
	l.ask("postfix", "enforce.example")
	if l.hops.verdicts != 0 {
		t.Error("probed for a plain map")
	}
	for range 3 {
		l.ask("QUERY", "unknown.example")
	}
	if l.hops.verdicts != 1 {
		t.Errorf("%d probes begun", l.hops.verdicts)
	}
}

func TestDANELookupsEndWithTheLookupTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 20*time.Second)
		l.hops.takes = 30 * time.Second
		began := time.Now()
		if got := l.ask("postfix-dane", "enforce.example"); !strings.HasPrefix(got, "TEMP ") {
			t.Errorf("%q", got)
		}
		if d := time.Since(began); d != 20*time.Second {
			t.Errorf("it took %v", d)
		}
		began = time.Now()
		if got := l.ask("postfix-dane", "enforce.example"); !strings.HasPrefix(got, "OK secure") || time.Since(began) != 0 {
			t.Errorf("afterwards: %q in %v", got, time.Since(began))
		}
	})
}
