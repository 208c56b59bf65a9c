package enforce

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

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

// aliasPutsOff tells of a domain whose policy lists an alias of a provider's
// host, for which that has no certificate. Exim remembers a host that fails by
// the name where an alias leads.
func aliasPutsOff(t *testing.T, w *world) {
	v := w.withExim(t, stage.EximOptions{})
	report(t, w.newAlias(t, "alias-sent").fails(t, v))
}

// triesAgain tells of each way for TLS to fail, and of a connection that is
// refused, for an enforced domain and by the site's own transport.
func triesAgain(t *testing.T, w *world) {
	v := w.withExim(t, stage.EximOptions{}) // which has nothing else in its queue
	for name, with := range map[string]testlab.With{
		"again-bad.test":     {MailCert: testlab.CertSelfSigned},
		"again-none.test":    {MailFault: testlab.NoSTARTTLS},
		"again-refused.test": {MailFault: testlab.STARTTLSRefused},
		"again-hang-up.test": {MailFault: testlab.STARTTLSHangUp},
		"off-enforced.test":  {},
		"off-plain.test":     {NoPolicy: true},
	} {
		d := w.lab.Domain(name, with)
		if strings.HasPrefix(name, "off-") {
			w.lab.Set(d.Mail[0].Name + ". 300 IN A 198.18.77.77") // where nobody listens
		}
		m := v.exim.Send(t, name)
		check(t, m, m.Outcome(t), deferred(""), d.Mail...)
	}
	tries := func(domain string) (n int) {
		for _, line := range v.exim.Log(t) {
			if strings.Contains(line, " == ") && strings.Contains(line, "@"+domain) && !strings.Contains(line, putOff) {
				n++
			}
		}
		return n
	}
	ctx, cancel := context.WithTimeout(t.Context(), followTime)
	defer cancel()
	waiting := []string{"again-bad.test", "again-none.test", "again-refused.test", "again-hang-up.test"}
	if err := stage.Await(ctx, func() bool {
		v.exim.Run(t, "-q")
		waiting = slices.DeleteFunc(waiting, func(domain string) bool { return tries(domain) > 1 })
		return len(waiting) == 0
	}); err != nil {
		t.Errorf("not tried again: %q", waiting)
	}
	for _, domain := range []string{"off-enforced.test", "off-plain.test"} {
		if n := tries(domain); n != 1 {
			t.Errorf("%s was tried %d times", domain, n)
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

// aliasTime is how long new mail to the provider may be put off: the shipped
// retry rule has a second. Debian's has 15 minutes.
const aliasTime = 10 * time.Second

// fails has mail to the alias fail, and returns what becomes of the provider's
// mail after that, if none gets through. In a queue run the alias would fail
// once more, before the provider's or after.
func (a alias) fails(t *testing.T, v *world) (found []string) {
	t.Helper()
	defer a.host.Forget()
	m := v.exim.Send(t, a.alias.Name)
	if found := differences(m, m.Outcome(t), deferred(badCert), a.host); len(found) > 0 {
		return found
	}
	ctx, cancel := context.WithTimeout(t.Context(), aliasTime)
	defer cancel()
	if err := stage.Await(ctx, func() bool {
		m := v.exim.Send(t, a.provider.Name)
		found = differences(m, m.Outcome(t), verified(a.host), a.host)
		return len(found) == 0
	}); err != nil {
		return found
	}
	return nil
}
