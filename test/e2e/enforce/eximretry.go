package enforce

import (
	"context"
	"fmt"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// What Exim remembers of hosts that fail, it remembers of one address. What
// one domain at a host can do to another is in sharesHost.

// unreachableIPv6 tells of a host that has an IPv6 address which cannot be
// reached from here: every message gets through over the other one.
func unreachableIPv6(t *testing.T, w *world) {
	d := w.lab.Domain("dual.test", testlab.With{})
	w.lab.Set(d.Mail[0].Name + ". 300 IN AAAA 2001:db8:ffff::1")
	for range 3 {
		m := w.exim.Send(t, d.Name)
		check(t, m, m.Outcome(t), verified(d.Mail[0]), d.Mail...)
	}
}

// deadAddress tells of a host that does not answer at one of two addresses,
// which Exim tries in an order drawn at random.
func deadAddress(t *testing.T, w *world) {
	d := w.lab.Domain("two-addresses.test", testlab.With{})
	w.lab.Set(fmt.Sprintf("%s. 300 IN A %s", d.Mail[0].Name, d.Mail[0].Addr), d.Mail[0].Name+". 300 IN A 198.18.77.77")
	for range 6 {
		m := w.exim.Send(t, d.Name)
		check(t, m, m.Outcome(t), verified(d.Mail[0]), d.Mail...)
	}
}

// severalAtBadHost tells of one message to enforced domains that share a host
// with a bad certificate; one of them has another host as well.
func severalAtBadHost(t *testing.T, w *world) {
	bad, sound := w.lab.MailHost("mx.several-shared-bad.test", ""), w.lab.MailHost("mx.several-other.test", "")
	if err := bad.Present(testlab.CertSelfSigned); err != nil {
		t.Fatal(err)
	}
	alone := w.lab.Domain("several-alone.test", testlab.With{Mail: []*testlab.MailHost{bad}})
	both := w.lab.Domain("several-both.test", testlab.With{Mail: []*testlab.MailHost{bad, sound}})
	m := w.exim.Submit(t, []string{alone.Name, both.Name, alone.Name}, foreground)
	check(t, m[0], m[0].Outcome(t), deferred(badCert), bad, sound)
	check(t, m[1], m[1].Outcome(t), verified(sound), bad, sound)
	check(t, m[2], m[2].Outcome(t), deferred(badCert), bad, sound)
}

// tlsRule is a retry rule that has Exim try a host again at once that failed
// only because its TLS did.
const tlsRule = "* tls_required F,4d,1s\n"

// aliasPutsOff tells of a limit, and of the way around it that docs/exim.md
// gives: Exim remembers a host that fails by the name where an alias leads. A
// domain whose policy lists an alias of a provider's host, for which that has
// no certificate, has the provider's own enforced mail put off.
func aliasPutsOff(t *testing.T, w *world) {
	for _, c := range []struct {
		name, rule string
		want       string
	}{{"without the rule", "", "deferred"}, {"with the rule", tlsRule, "sent"}} {
		v := w.withExim(t, stage.EximOptions{Files: map[string]string{"/etc/exim4/conf.d/retry/20_local": c.rule}})
		d := w.newAlias(t, "alias-"+c.want)
		m := v.exim.Send(t, d.alias.Name)
		check(t, m, m.Outcome(t), deferred(badCert), d.host)
		m = v.exim.Queue(t, d.provider.Name)
		if c.rule == "" {
			v.exim.Run(t, "-q")
			check(t, m, m.Outcome(t), deferred("retry time not reached"), d.host)
			continue
		}
		ctx, cancel := context.WithTimeout(t.Context(), followTime)
		defer cancel()
		if err := stage.Await(ctx, func() bool {
			v.exim.Run(t, "-q")
			return len(d.host.Messages()) > 0
		}); err != nil {
			t.Errorf("%s: the provider gets no mail", c.name)
		}
	}
}

// An alias is a domain at a provider under another name than the provider's
// certificate has.
type alias struct {
	alias, provider *testlab.Domain
	host            *testlab.MailHost
}

func (w *world) newAlias(t *testing.T, name string) alias {
	t.Helper()
	host := w.lab.MailHost("mx."+name+"-provider.test", "")
	at := []*testlab.MailHost{host}
	evil := name + ".test"
	a := alias{
		alias:    w.lab.Domain(evil, testlab.With{Mail: at, MX: []string{"mx." + evil}}),
		provider: w.lab.Domain(name+"-provider.test", testlab.With{Mail: at}),
		host:     host,
	}
	w.lab.Set(evil+". 300 IN MX 10 mx."+evil+".", "mx."+evil+". 300 IN CNAME "+host.Name+".")
	return a
}
