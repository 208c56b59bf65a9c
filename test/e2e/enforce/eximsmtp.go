package enforce

import (
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// Additional files of Debian's Exim.
const (
	ownMain = "/etc/exim4/conf.d/main/000_test"
	ownACL  = "/etc/exim4/conf.d/acl/90_test"
	ownFile = "/etc/sts-tlsmap/exim-transport"
	ownHelo = "own-name.relay.test"
)

// eximFiles returns an ACL that verifies senders, and recipients by callout for
// a certain sender.
func eximFiles() map[string]string {
	return map[string]string{
		ownMain: "MAIN_ACL_CHECK_RCPT = acl_test\n" +
			"MAIN_ALLOW_DOMAIN_LITERALS = true\n" +
			"MAIN_SMTPUTF8_ADVERTISE_HOSTS = *\n" +
			"queue_run_in_order = true\n",
		ownACL: "acl_test:\n" +
			"  require verify = sender\n" +
			"  accept ! sender_domains = callout.test\n" +
			"  require verify = recipient/callout=5s\n" +
			"  accept\n",
		ownFile: "  helo_data = " + ownHelo + "\n",
	}
}

// rcpt asks Exim whether it accepts mail and returns its reply.
func (w *world) rcpt(t *testing.T, from, to string, options ...string) string {
	t.Helper()
	lines := strings.Split(w.exim.Talk(t, options, "EHLO client.test", "MAIL FROM:<"+from+">", "RCPT TO:<"+to+">", "QUIT"), "\n")
	if len(lines) < 3 {
		t.Fatalf("Exim says %q", lines)
	}
	return strings.TrimSpace(lines[len(lines)-3]) // the line before the reply to QUIT
}

// callsOut has Exim verify recipients by callout, which it must do only at
// verified hosts.
func callsOut(t *testing.T, w *world) {
	w.lab.Domain("callout.test", testlab.With{NoPolicy: true})
	for _, c := range []struct {
		domain string
		with   testlab.With
		code   string
	}{
		{"callout-sound.test", testlab.With{}, "250"},
		{"callout-rejects.test", testlab.With{MailFault: testlab.RcptRejected}, "550"},
		{"callout-clear.test", testlab.With{MailFault: testlab.NoSTARTTLS}, "451"},
		{"callout-bad.test", testlab.With{MailCert: testlab.CertSelfSigned}, "451"},
		{"callout-unlisted.test", testlab.With{MX: []string{"mx.elsewhere.test"}}, "451"},
	} {
		d := w.lab.Domain(c.domain, c.with)
		if got := w.rcpt(t, "someone@callout.test", "secret@"+d.Name); !strings.HasPrefix(got, c.code) {
			t.Errorf("%s: Exim says %q, want %s", d.Name, got, c.code)
		}
		seen := sessions(t, w, d.Mail[0])
		if c.code != "451" && len(seen) == 0 {
			t.Errorf("%s received no callout", d.Mail[0].Name)
		}
		for _, s := range seen {
			if c.code != "451" && (!s.TLS || s.SNI != d.Mail[0].Name || len(s.Rcpt) != 1) {
				t.Errorf("%s received RCPT %q over TLS: %v, server name %q", d.Mail[0].Name, s.Rcpt, s.TLS, s.SNI)
			}
			if c.code == "451" && len(s.Rcpt) > 0 {
				t.Errorf("%s received RCPT %q", d.Mail[0].Name, s.Rcpt)
			}
		}
	}
}

// verifiesSenders sends from an enforced domain while the daemon is down.
func verifiesSenders(t *testing.T, w *world) {
	d := w.lab.Domain("sender.test", testlab.With{})
	w.daemon.Kill(t)
	got := w.rcpt(t, "someone@"+d.Name, "postmaster@relay.test")
	w.daemon.Start(t)
	if !strings.HasPrefix(got, "250") {
		t.Errorf("Exim says %q", got)
	}
}
