package tlsmap

import (
	"context"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

func TestWhatIsExplainedIsWhatIsAnswered(t *testing.T) {
	s, f, hops := daneServer(t, "dane.example", "sick.example", "undecided.example")
	hops.mx = map[string]*dane.MXSet{}
	for _, domain := range []string{"enforce.example", "stored.example", "dane.example", "sick.example", "undecided.example", "old.example", "keyword.example"} {
		hops.mx[domain] = &dane.MXSet{Hosts: []dane.MXHost{{Name: "mx." + domain}}}
	}
	hops.mx["dane.example"] = &dane.MXSet{Null: true}
	states := map[string]PolicyState{
		"enforce.example": PolicyEnforced, "stored.example": PolicyEnforced, "testing.example": PolicyTesting, "none.example": PolicyNone,
		"dane.example": PolicyEnforced, "sick.example": PolicyEnforced, "undecided.example": PolicyEnforced,
		"unknown.example": PolicyAbsent, "unreadable.example": PolicyUnreadable, "old.example": PolicyEnforced, "keyword.example": PolicyEnforced,
	}
	for domain, state := range states {
		var ready []byte
		if p := f.held[domain]; p != nil {
			ready = p.ready
		}
		for _, r := range s.table.Replies(Known{Domain: domain, Policy: state, Ready: ready, DANE: hops.finding(dane.NextHop{Host: domain}), MX: hops.mx[domain]}) {
			got := string(s.AppendReply(context.Background(), nil, []byte(r.Map), []byte(domain)))
			if got != r.Reply {
				t.Errorf("map %s, %s: explained %q, answered %q", r.Map, domain, r.Reply, got)
			}
			if r.Why == "" {
				t.Errorf("map %s, %s: no reason", r.Map, domain)
			}
			if want := ask(s, "postfix", domain); r.Map == "rehearsal" && want != "NOTFOUND " && r.Would != want {
				t.Errorf("map %s, %s: would be %q, want %q", r.Map, domain, r.Would, want)
			} else if r.Map != "rehearsal" && r.Would != "" {
				t.Errorf("map %s is no rehearsal, but would be %q", r.Map, r.Would)
			}
		}
	}
}

func TestTheReasonNamesWhatDecided(t *testing.T) {
	ready := Prepare(policyOf("mx.example.com"))
	first := mta.Map{Name: "x", Format: mta.FormatPostfix, DANE: true, Enforce: true}
	exim := mta.Map{Name: "x", Format: mta.FormatExim, Enforce: true}
	plain := mta.Map{Name: "x", Format: mta.FormatPostfix, Enforce: true}
	strict := mta.Map{Name: "x", Format: mta.FormatPostfix, Testing: true, Enforce: true}
	for _, tt := range []struct {
		m           mta.Map
		p           PolicyState
		d           dane.State
		reply, want string
	}{
		{plain, PolicyEnforced, 0, "OK secure match=mx.example.com", "enforced"},
		{plain, PolicyTesting, 0, "NOTFOUND ", "mode is testing"},
		{plain, PolicyNone, 0, "NOTFOUND ", "mode is none"},
		{plain, PolicyAbsent, 0, "NOTFOUND ", "no MTA-STS policy"},
		{plain, PolicyUnreadable, 0, "TEMP stored MTA-STS policy is damaged", "damaged"},
		{strict, PolicyTesting, 0, "OK secure ", "this map enforces"},
		{first, PolicyEnforced, dane.Usable, "OK dane-only", "DANE protects"},
		{first, PolicyEnforced, dane.LookupFailed, "OK dane-only", "lookup fails"},
		{first, PolicyEnforced, dane.Absent, "OK secure ", "DANE does not protect the domain: of a reason"},
		{first, PolicyEnforced, dane.UnsignedMX, "OK secure ", "not authenticated"},
		{first, PolicyEnforced, dane.NoMail, "OK secure ", "bounces by itself"},
		{first, PolicyEnforced, dane.NotValidating, "OK secure ", "without a resolver that validates: of a reason"},
		{first, PolicyEnforced, dane.Undecided, "TEMP could not find out whether DANE", "could not find out whether DANE protects the domain: of a reason"},
		{first, PolicyUnreadable, dane.Usable, "TEMP stored", "damaged"},
		{exim, PolicyTesting, 0, "NOTFOUND ", "mode is testing"},
		{exim, PolicyEnforced, 0, "OK mx.example.com", "the MX hosts that it lists"},
		{exim, PolicyUnreadable, 0, "TEMP MTA-STS: example.com: stored", "damaged"},
	} {
		reply, why := explain(&tt.m, Known{Domain: "example.com", Policy: tt.p, Ready: ready, DANE: dane.Finding{State: tt.d, Why: "of a reason"},
			MX: &dane.MXSet{Hosts: []dane.MXHost{{Name: "mx.example.com"}}}})
		if !strings.HasPrefix(reply, tt.reply) || !strings.Contains(why, tt.want) {
			t.Errorf("policy %s, DANE %s: %q because %q; want %q because %q", tt.p, tt.d, reply, why, tt.reply, tt.want)
		}
	}
}

func TestDANEOnlyIsSentBare(t *testing.T) {
	// Postfix rejects policy attributes on a policy that is not sts.
	m := mta.Map{Name: "x", Format: mta.FormatPostfix, DANE: true, TLSRPT: true, Servername: true, Enforce: true}
	ready := Prepare(&policy.Policy{MX: []string{"mx.example.com"}})
	if reply, _ := explain(&m, Known{Domain: "example.com", Policy: PolicyEnforced, Ready: ready, DANE: dane.Finding{State: dane.Usable}}); reply != "OK dane-only" {
		t.Errorf("%q", reply)
	}
}
