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

// Exim remembers failures by address. See sharesHost for how one domain could
// harm another at the same host.

// unreachableIPv6 has a host with an unreachable IPv6 address: every message
// arrives over the other address.
func unreachableIPv6(t *testing.T, w *world) {
	d := w.lab.Domain("dual.test", testlab.With{})
	w.lab.Set(d.Mail[0].Name + ". 300 IN AAAA 2001:db8:ffff::1")
	for range 3 {
		m := w.exim.Send(t, d.Name)
		check(t, m, m.Outcome(t), verified(d.Mail[0]), d.Mail...)
	}
}

// deadAddress has a host that does not answer at one of two addresses, which
// Exim tries in random order.
func deadAddress(t *testing.T, w *world) {
	d := w.lab.Domain("two-addresses.test", testlab.With{})
	w.lab.Set(fmt.Sprintf("%s. 300 IN A %s", d.Mail[0].Name, d.Mail[0].Addr), d.Mail[0].Name+". 300 IN A 198.18.77.77")
	for range 6 {
		m := w.exim.Send(t, d.Name)
		check(t, m, m.Outcome(t), verified(d.Mail[0]), d.Mail...)
	}
}

// severalAtBadHost sends one message to enforced domains that share a host with
// a bad certificate. One of them has another host.
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

// aliasPutsOff has a domain whose policy lists an alias of a provider's host
// without a certificate for the alias. Exim remembers a failed host by the
// alias's target.
func aliasPutsOff(t *testing.T, w *world) {
	v := w.withExim(t, stage.EximOptions{})
	report(t, w.newAlias(t, "alias-sent").fails(t, v))
}

// triesAgain tries each kind of TLS failure, and a refused connection for an
// enforced domain and for one with the site's own transport.
func triesAgain(t *testing.T, w *world) {
	v := w.withExim(t, stage.EximOptions{}) // with an empty queue
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
			w.lab.Set(d.Mail[0].Name + ". 300 IN A 198.18.77.77") // no listener there
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
		t.Errorf("not retried: %q", waiting)
	}
	for _, domain := range []string{"off-enforced.test", "off-plain.test"} {
		if n := tries(domain); n != 1 {
			t.Errorf("%s was tried %d times", domain, n)
		}
	}
}

// An alias is a domain at a provider's host under a name that is not in the
// host's certificate.
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

// aliasTime is how long new mail to the provider may be deferred. The shipped
// retry rule has a second, Debian's 15 minutes.
const aliasTime = 10 * time.Second

// fails sends mail to the alias, which fails, and returns the failures of the
// provider's mail if none arrives. It runs no queue, which would retry the
// alias.
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
