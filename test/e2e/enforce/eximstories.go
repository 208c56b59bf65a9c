package enforce

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// eximStories are about Exim's own behaviour.
var eximStories = []story{
	{"each recipient of a message to several domains has the fate of its domain", severalDomains},
	{"the main log and the daemon's log say which domain and why", saysWhy},
	{"the case of a domain makes no difference", caseOfDomain},
	{"hosts with IPv6 addresses only are verified", overIPv6},
	{"an address literal gets its mail as before", toLiteral},
	{"an internationalized domain is protected", internationalized},
	{"a callout to an enforced domain is verified, or not made", callsOut},
	{"Exim accepts mail from any sender while the daemon is down", verifiesSenders},
	{"mail waits for a daemon that takes its time", waitsForSlowDiscovery},
	{"mail waits while the daemon does not answer", waitsForPausedDaemon},
	{"routed mail stays protected when the daemon is killed", killedAfterRouting},
	{"mail waits when Exim cannot expand the lookup key", questionFails},
	{"a truncated or invalid reply lets no mail through", brokenReplies},
	{"no domain harms another at a host that they share", sharesHost},
	{"an unverified connection is not used for an enforced domain", sharesNoConnection},
	{"mail to a domain whose host is this machine waits", leadsHere},
	{"an IPv6 address that cannot be reached holds up no mail", unreachableIPv6},
	{"domains of one message that share a bad host each have their fate", severalAtBadHost},
	{"an alias that fails does not delay mail to its target", aliasPutsOff},
	{"hosts whose TLS failed are tried in every queue run, and others are deferred as before", triesAgain},
	{"one dead address of a host holds up no mail", deadAddress},
	{"a message to two domains shares no connection with a host that an alias leads to", sharesNoBatch},
	{"no connection is kept for another domain at a host that an alias leads to", keepsNoConnection},
	{"options of the site's own transport still apply", ownOptions},
	{"mail flows without us after the package is removed", packageRemoved},
	{"each kind of Debian's machines sends its mail where it should", debianTypes},
	{"no line of the files for Debian can be left out", brokenDebian},
	{"a single configuration file does the same", singleFile},
	{"a smart host must satisfy its own policy", smartHosts},
	{"-recipe prints the shipped files without a warning", printsRecipe},
	{"the lines that -recipe prints protect Debian's one template", unsplit},
	{"-recipe disables lookups where they cannot protect mail", recipeForNoMail},
	{"-recipe warns if the daemon is down", recipeSeesDaemon},
	{"a resolver that stops validating leaves the policy to be enforced", losesDANE},
	{"a lookup takes little time", costs},
	{"no line of the recipe can be left out", brokenLines},
}

func severalDomains(t *testing.T, w *world) {
	sound := w.lab.Domain("several-sound.test", testlab.With{})
	bad := w.lab.Domain("several-bad.test", testlab.With{MailCert: testlab.CertSelfSigned})
	plain := w.lab.Domain("several-plain.test", testlab.With{NoPolicy: true, MailFault: testlab.NoSTARTTLS})
	shared := w.lab.Domain("several-shared.test", testlab.With{Mail: sound.Mail})
	m := w.exim.Submit(t, []string{sound.Name, bad.Name, plain.Name, shared.Name, sound.Name}, "-odf")
	hosts := []*testlab.MailHost{sound.Mail[0], bad.Mail[0], plain.Mail[0]}
	check(t, m[0], m[0].Outcome(t), verified(sound.Mail[0]), hosts...)
	check(t, m[1], m[1].Outcome(t), deferred(badCert), hosts...)
	check(t, m[2], m[2].Outcome(t), inClear(plain.Mail[0]), hosts...)
	check(t, m[3], m[3].Outcome(t), verified(sound.Mail[0]), hosts...)
	check(t, m[4], m[4].Outcome(t), verified(sound.Mail[0]), hosts...)
}

func saysWhy(t *testing.T, w *world) {
	d := w.lab.Domain("why.test", testlab.With{MX: []string{"mx.elsewhere.test"}})
	m := w.exim.Send(t, d.Name)
	o := m.Outcome(t)
	check(t, m, o, deferred("MTA-STS: why.test: "+unlisted), d.Mail...)
	for line := range strings.Lines(w.daemon.Log()) {
		if strings.Contains(line, "domain=why.test") && strings.Contains(line, unlisted) {
			return
		}
	}
	t.Errorf("the daemon's log has no line with the domain and %q", unlisted)
}

func caseOfDomain(t *testing.T, w *world) {
	d := w.lab.Domain("upper.test", testlab.With{MailFault: testlab.NoSTARTTLS})
	m := w.exim.Send(t, "UPPER.test")
	check(t, m, m.Outcome(t), deferred(noTLS), d.Mail...)
}

// overIPv6 has hosts with IPv6 addresses only.
func overIPv6(t *testing.T, w *world) {
	sound, bad := w.lab.MailHost("mx1.six.test", "2001:db8::1"), w.lab.MailHost("mx1.six-bad.test", "2001:db8::2")
	if err := bad.Present(testlab.CertSelfSigned); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		domain string
		host   *testlab.MailHost
		want   fate
	}{{"six.test", sound, verified(sound)}, {"six-bad.test", bad, deferred(badCert)}} {
		d := w.lab.Domain(c.domain, testlab.With{Mail: []*testlab.MailHost{c.host}})
		m := w.exim.Send(t, d.Name)
		check(t, m, m.Outcome(t), c.want, d.Mail...)
	}
}

// toLiteral sends to address literals, which have no policy (RFC 8461, 3.4).
func toLiteral(t *testing.T, w *world) {
	h := w.lab.MailHost("mx.literal.test", "")
	six := w.lab.MailHost("mx.literal-six.test", fmt.Sprintf("2001:db8::1:%d", w.lab.DNS.Total())) // a new address each time
	for literal, h := range map[string]*testlab.MailHost{
		"[" + h.Addr.String() + "]":        h,
		"[IPv6:" + six.Addr.String() + "]": six,
	} {
		h.Behave(testlab.NoSTARTTLS)
		m := w.exim.Send(t, literal)
		check(t, m, m.Outcome(t), inClear(h), h)
	}
}

// internationalized sends to a domain in U-labels (RFC 6531).
func internationalized(t *testing.T, w *world) {
	for _, c := range []struct {
		ulabel, alabel string
		fault          testlab.MailFault
	}{{"bücher.test", "xn--bcher-kva.test", testlab.MailFine}, {"käse.test", "xn--kse-qla.test", testlab.NoSTARTTLS}} {
		d := w.lab.Domain(c.alabel, testlab.With{MailFault: c.fault})
		recipient := "leser@" + c.ulabel
		answers := w.exim.Talk(t, nil, "EHLO client.test", "MAIL FROM:<> SMTPUTF8",
			"RCPT TO:<"+recipient+">", "DATA", "Subject: test", "", "Hello.", ".", "QUIT")
		if strings.Count(answers, "\n250 OK id=") != 1 {
			t.Fatalf("Exim did not accept the message:\n%s", answers)
		}
		m := &stage.Message{Recipient: recipient, MTA: w.exim}
		o := m.Outcome(t)
		got := d.Mail[0].Messages() // addressed to the A-label or the U-label
		if c.fault == testlab.NoSTARTTLS {
			check(t, m, o, deferred(noTLS))
			if len(got) > 0 {
				t.Errorf("%s got the message", d.Mail[0].Name)
			}
			continue
		}
		if o.Status != "sent" || o.TLS != "Verified" {
			t.Errorf("%s: %s", recipient, o)
		}
		if len(got) != 1 {
			t.Errorf("%s got %d messages", d.Mail[0].Name, len(got))
		}
		for _, got := range got {
			if !got.TLS || got.SNI != d.Mail[0].Name {
				t.Errorf("%s got the message over TLS: %v, server name %q", d.Mail[0].Name, got.TLS, got.SNI)
			}
		}
	}
}

// ownOptions checks that options of the site's transport still apply.
func ownOptions(t *testing.T, w *world) {
	d := w.lab.Domain("own.test", testlab.With{})
	m := w.exim.Send(t, d.Name)
	check(t, m, m.Outcome(t), verified(d.Mail[0]), d.Mail...)
	for _, got := range d.Mail[0].Messages() {
		if got.Helo != ownHelo {
			t.Errorf("EHLO %q, want %q as in the site's transport", got.Helo, ownHelo)
		}
	}
}

// sessions returns a host's sessions once all have ended: Exim may exit before
// the host records one.
func sessions(t *testing.T, w *world, h *testlab.MailHost) []testlab.Session {
	t.Helper()
	await(t, w, func() bool { return len(h.Sessions()) == h.Connections() })
	return h.Sessions()
}

// await waits for an event in the lab.
func await(t *testing.T, w *world, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), followTime)
	defer cancel()
	if err := w.lab.Await(ctx, cond); err != nil {
		t.Fatal(err)
	}
}
