package tlsmap_test

import (
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

func TestRepliesAreExplainedAsTheyAreGiven(t *testing.T) {
	l := daneLab(t, "dane.example", "sick.example", "undecided.example")
	l.policies.held["long.example"] = enforced(longPolicy(900).MX...)
	for _, domain := range []string{"enforce.example", "stored.example", "dane.example", "sick.example", "undecided.example", "keyword.example", "long.example"} {
		l.hops.mx[domain] = &dane.MXSet{Hosts: []dane.MXHost{{Name: "mx." + domain}}}
	}
	l.hops.mx["dane.example"] = &dane.MXSet{Null: true}
	mx := map[string]*policy.Policy{
		"keyword.example": policyOf("hostname"), "dane.example": policyOf("mx.dane.example"), "long.example": longPolicy(900),
	}
	states := map[string]tlsmap.PolicyState{
		"enforce.example": tlsmap.PolicyEnforced, "stored.example": tlsmap.PolicyEnforced, "testing.example": tlsmap.PolicyTesting, "none.example": tlsmap.PolicyNone,
		"dane.example": tlsmap.PolicyEnforced, "unknown.example": tlsmap.PolicyAbsent, "unreadable.example": tlsmap.PolicyUnreadable,
		"keyword.example": tlsmap.PolicyEnforced, "long.example": tlsmap.PolicyEnforced,
	}
	for domain, state := range states {
		p := mx[domain]
		if p == nil {
			p = policyOf("mx."+domain, "*.example.net")
		}
		k := tlsmap.Known{Domain: domain, State: state, Policy: p, DANE: l.hops.finding(dane.NextHop{Host: domain}), MX: l.hops.mx[domain]}
		for _, r := range l.table.Replies(k) {
			if got := l.ask(r.Map, domain); got != r.Reply {
				t.Errorf("map %s, %s: explained %.200q, answered %.200q", r.Map, domain, r.Reply, got)
			}
			if r.Why == "" {
				t.Errorf("map %s, %s: no reason", r.Map, domain)
			}
			if want := l.ask("postfix", domain); r.Map == "rehearsal" && want != "NOTFOUND " && r.Would != want {
				t.Errorf("map %s, %s: would be %q, want %q", r.Map, domain, r.Would, want)
			} else if !strings.HasSuffix(r.Map, "rehearsal") && r.Would != "" {
				t.Errorf("map %s is no rehearsal, but would be %q", r.Map, r.Would)
			}
		}
	}
}

func TestTheReasonNamesWhatDecided(t *testing.T) {
	first := mta.Map{Name: "x", Format: mta.FormatPostfix, DANE: true, Enforce: true}
	exim := mta.Map{Name: "x", Format: mta.FormatExim, Enforce: true}
	plain := mta.Map{Name: "x", Format: mta.FormatPostfix, Enforce: true}
	strict := mta.Map{Name: "x", Format: mta.FormatPostfix, Testing: true, Enforce: true}
	for _, tt := range []struct {
		m           mta.Map
		p           tlsmap.PolicyState
		d           dane.State
		reply, want string
	}{
		{plain, tlsmap.PolicyEnforced, 0, "OK secure match=mx.example.com", "enforced"},
		{plain, tlsmap.PolicyTesting, 0, "NOTFOUND ", "mode is testing"},
		{plain, tlsmap.PolicyNone, 0, "NOTFOUND ", "mode is none"},
		{plain, tlsmap.PolicyAbsent, 0, "NOTFOUND ", "no MTA-STS policy"},
		{plain, tlsmap.PolicyUnreadable, 0, "TEMP stored MTA-STS policy is damaged", "damaged"},
		{strict, tlsmap.PolicyTesting, 0, "OK secure ", "this map enforces"},
		{first, tlsmap.PolicyEnforced, dane.Usable, "OK dane-only", "DANE protects"},
		{first, tlsmap.PolicyEnforced, dane.LookupFailed, "OK dane-only", "lookup fails"},
		{first, tlsmap.PolicyEnforced, dane.Absent, "OK secure ", "DANE does not protect the domain: of a reason"},
		{first, tlsmap.PolicyEnforced, dane.UnsignedMX, "OK secure ", "does not protect the domain (RFC 7672, 2.2.1)"},
		{first, tlsmap.PolicyEnforced, dane.NoMail, "OK secure ", "bounces or defers by itself"},
		{first, tlsmap.PolicyEnforced, dane.NotValidating, "OK secure ", "without a resolver that validates: of a reason"},
		{first, tlsmap.PolicyEnforced, dane.Undecided, "TEMP could not find out whether DANE", "could not find out whether DANE protects the domain: of a reason"},
		{first, tlsmap.PolicyUnreadable, dane.Usable, "TEMP stored", "damaged"},
		{exim, tlsmap.PolicyTesting, 0, "NOTFOUND ", "mode is testing"},
		{exim, tlsmap.PolicyEnforced, 0, "OK mx.example.com", "the MX hosts that it lists"},
		{exim, tlsmap.PolicyUnreadable, 0, "TEMP MTA-STS: example.com: stored", "damaged"},
	} {
		r := explain(t, tt.m, tlsmap.Known{Domain: "example.com", State: tt.p, Policy: policyOf("mx.example.com"),
			DANE: dane.Finding{State: tt.d, Why: "of a reason"}, MX: &dane.MXSet{Hosts: []dane.MXHost{{Name: "mx.example.com"}}}})
		if !strings.HasPrefix(r.Reply, tt.reply) || !strings.Contains(r.Why, tt.want) {
			t.Errorf("policy %d, DANE %s: %q because %q; want %q because %q", tt.p, tt.d, r.Reply, r.Why, tt.reply, tt.want)
		}
	}
}

func TestDANEOnlyIsSentBare(t *testing.T) {
	// Postfix rejects policy attributes on a policy that is not sts.
	m := mta.Map{Name: "x", Format: mta.FormatPostfix, DANE: true, TLSRPT: true, Servername: true, Enforce: true}
	if r := explain(t, m, tlsmap.Known{Domain: "example.com", State: tlsmap.PolicyEnforced, Policy: policyOf("mx.example.com"), DANE: dane.Finding{State: dane.Usable}}); r.Reply != "OK dane-only" {
		t.Errorf("%q", r.Reply)
	}
}
