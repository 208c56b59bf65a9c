package enforce

import (
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// sharesHost has four domains at one host. Failures for two of them must not
// delay the others, although Exim remembers failed hosts for all mail.
func sharesHost(t *testing.T, w *world) {
	shared, soundHost := w.lab.MailHost("mx.provider.test", ""), w.lab.MailHost("mx.sound.test", "")
	if err := shared.Present(testlab.CertSelfSigned); err != nil {
		t.Fatal(err)
	}
	at := func(hosts ...*testlab.MailHost) []*testlab.MailHost { return hosts }
	unlistedDomain := w.lab.Domain("share-unlisted.test", testlab.With{Mail: at(shared), MX: []string{"mx.elsewhere.test"}})
	bad := w.lab.Domain("share-bad.test", testlab.With{Mail: at(shared)})
	plain := w.lab.Domain("share-plain.test", testlab.With{Mail: at(shared), NoPolicy: true})
	sound := w.lab.Domain("share-sound.test", testlab.With{Mail: at(shared, soundHost)})

	want := map[*testlab.Domain]fate{
		unlistedDomain: deferred(unlisted),
		bad:            deferred(badCert),
		plain:          {status: "sent", host: shared, tls: "Untrusted"},
		sound:          verified(soundHost),
	}
	order := []*testlab.Domain{unlistedDomain, bad, plain, sound}
	messages := w.queueAll(t, order)
	w.exim.Run(t, "-q")
	for i, d := range order {
		check(t, messages[i], messages[i].Outcome(t), want[d], shared, soundHost)
	}
	// The next queue run has new and deferred mail.
	next := w.queueAll(t, order[2:])
	w.exim.Run(t, "-q")
	for i, d := range order[2:] {
		check(t, next[i], next[i].Outcome(t), want[d], shared, soundHost)
	}
}

func (w *world) queueAll(t *testing.T, domains []*testlab.Domain) (messages []*stage.Message) {
	t.Helper()
	for _, d := range domains {
		messages = append(messages, w.exim.Queue(t, d.Name))
	}
	return messages
}

// sharesNoConnection has a queue for two domains at one host, one of them
// enforced, and an Exim that reuses connections.
func sharesNoConnection(t *testing.T, w *world) {
	for _, c := range []struct {
		name string
		cert testlab.CertKind
	}{{"kept-bad", testlab.CertSelfSigned}, {"kept-sound", testlab.CertGood}} {
		host := w.lab.MailHost("mx."+c.name+".test", "")
		if err := host.Present(c.cert); err != nil {
			t.Fatal(err)
		}
		plain := w.lab.Domain(c.name+"-plain.test", testlab.With{Mail: []*testlab.MailHost{host}, NoPolicy: true})
		enforced := w.lab.Domain(c.name+"-enforced.test", testlab.With{Mail: []*testlab.MailHost{host}})
		order := []*testlab.Domain{plain, enforced, plain, enforced, plain, enforced}
		messages := w.queueAll(t, order)
		w.exim.Run(t, "-qq") // sorts messages by host
		for i, d := range order {
			want := fate{status: "sent", host: host, tls: "Trusted"}
			switch {
			case d == enforced && c.cert == testlab.CertGood:
				want = verified(host)
			case d == enforced && i == 1:
				want = deferred(badCert) // tried, over its own connection
			case d == enforced:
				want = deferred("") // deferred without an attempt
			}
			o := messages[i].Outcome(t)
			if o.TLS == "Kept" {
				// Exim does not log verification on a reused connection. The
				// server name that the host received proves it: remote_smtp
				// sends none.
				o.TLS = "Verified"
			}
			check(t, messages[i], o, want, host)
		}
		kept := 0
		for _, s := range sessions(t, w, host) {
			kept = max(kept, s.Messages)
		}
		if kept < 2 {
			t.Errorf("%s: Exim reused no connection, so the test shows nothing", c.name)
		}
	}
}
