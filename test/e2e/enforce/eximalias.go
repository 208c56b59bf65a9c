package enforce

import (
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// A disguise is a domain whose MX host is an alias of the victim's host and
// whose policy lists the alias. The host has a certificate for the alias only:
// it may receive the domain's mail but not the victim's. In Exim the host has
// the same name for both: the alias's target.
type disguise struct {
	evil, victim *testlab.Domain
	host         *testlab.MailHost
}

// newDisguise creates the domains evil-NAME.test and victim-NAME.test.
func (w *world) newDisguise(t *testing.T, name string) disguise {
	t.Helper()
	evil, victim := "evil-"+name+".test", "victim-"+name+".test"
	host := w.lab.MailHost("mx."+victim, "")
	if err := host.PresentFor(testlab.CertGood, "mx."+evil); err != nil {
		t.Fatal(err)
	}
	at := []*testlab.MailHost{host}
	d := disguise{
		evil:   w.lab.Domain(evil, testlab.With{Mail: at, MX: []string{"mx." + evil}}),
		victim: w.lab.Domain(victim, testlab.With{Mail: at}),
		host:   host,
	}
	w.lab.Set(evil+". 300 IN MX 10 mx."+evil+".", "mx."+evil+". 300 IN CNAME mx."+victim+".")
	return d
}

// sharesNoBatch sends one message to two enforced domains whose hosts have the
// same name in Exim and different names in the policies.
func sharesNoBatch(t *testing.T, w *world) {
	report(t, w.newDisguise(t, "batch").inOneMessage(t, w))
}

// keepsNoConnection queues messages to the same two domains.
func keepsNoConnection(t *testing.T, w *world) {
	report(t, w.newDisguise(t, "kept").inOneQueue(t, w))
}

// inOneMessage returns the failures of a message to both domains. The second
// domain may be deferred without an attempt, since the host failed for the
// first.
func (d disguise) inOneMessage(t *testing.T, w *world) (found []string) {
	defer d.host.Forget()
	m := w.exim.Submit(t, []string{d.evil.Name, d.victim.Name}, foreground)
	found = append(found, differences(m[0], m[0].Outcome(t), verified(d.host), d.host)...)
	found = append(found, differences(m[1], m[1].Outcome(t), deferred(""), d.host)...)
	m = w.exim.Submit(t, []string{d.victim.Name, d.evil.Name}, foreground)
	return append(found, differences(m[0], m[0].Outcome(t), deferred(""), d.host)...)
}

// queueTries limits how many queues are made until Exim, whose order is random,
// tries evil's message first.
const queueTries = 8

// inOneQueue returns the failures of a queue with messages to both domains. If
// Exim starts with the victim's message, the host fails before the test can
// show anything, and another queue is made.
func (d disguise) inOneQueue(t *testing.T, w *world) (found []string) {
	defer d.host.Forget()
	for try := range queueTries {
		m := w.queueAll(t, []*testlab.Domain{d.evil, d.victim, d.evil, d.victim})
		if try == 0 {
			w.exim.Run(t, "-qq") // sorts messages by host
		} else {
			w.exim.Run(t, "-qqf") // ignores retry times
		}
		first := m[0].Outcome(t)
		found = append(found, differences(m[1], m[1].Outcome(t), deferred(""), d.host)...)
		found = append(found, differences(m[3], m[3].Outcome(t), deferred(""), d.host)...)
		wrong := differences(m[0], first, verified(d.host), d.host)
		if len(found) > 0 || len(wrong) == 0 {
			return found
		}
		if try == queueTries-1 {
			return wrong
		}
	}
	return nil
}

func report(t *testing.T, found []string) {
	t.Helper()
	for _, f := range found {
		t.Error(f)
	}
}

// aliases runs both tests of disguises.
func (p *probe) aliases(t *testing.T, v *world) []string {
	return append(p.batched.inOneMessage(t, v), p.kept.inOneQueue(t, v)...)
}
