package enforce

import (
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// A disguise is a domain whose MX host is an alias of another one's, and whose
// policy lists the alias. Whoever answers there has a certificate for the
// alias only: mail to the domain is theirs, and that to the victim is not. In
// Exim the host has the same name for both, that where the alias leads.
type disguise struct {
	evil, victim *testlab.Domain
	host         *testlab.MailHost
}

// newDisguise makes the domains evil-NAME.test and victim-NAME.test.
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

// sharesNoBatch tells of a message to two enforced domains, whose host is one
// by its name in Exim, and another one by the name that each policy lists.
func sharesNoBatch(t *testing.T, w *world) {
	report(t, w.newDisguise(t, "batch").inOneMessage(t, w))
}

// keepsNoConnection tells of a queue for the two.
func keepsNoConnection(t *testing.T, w *world) {
	report(t, w.newDisguise(t, "kept").inOneQueue(t, w))
}

// inOneMessage returns what goes wrong with a message to both domains. The
// second of them may be put off, since the first one has seen the host fail.
func (d disguise) inOneMessage(t *testing.T, w *world) (found []string) {
	defer d.host.Forget()
	m := w.exim.Submit(t, []string{d.evil.Name, d.victim.Name}, foreground)
	found = append(found, differences(m[0], m[0].Outcome(t), verified(d.host), d.host)...)
	found = append(found, differences(m[1], m[1].Outcome(t), deferred(""), d.host)...)
	m = w.exim.Submit(t, []string{d.victim.Name, d.evil.Name}, foreground)
	return append(found, differences(m[0], m[0].Outcome(t), deferred(""), d.host)...)
}

// queueTries is how often a queue is made until Exim, which draws the order
// anew, has tried the message that the host is sound for first.
const queueTries = 8

// inOneQueue returns what goes wrong with a queue of messages to the domains
// in turn. Where Exim begins with the victim's, the host has failed before
// anything could be shown; another queue is made then.
func (d disguise) inOneQueue(t *testing.T, w *world) (found []string) {
	defer d.host.Forget()
	for try := range queueTries {
		m := w.queueAll(t, []*testlab.Domain{d.evil, d.victim, d.evil, d.victim})
		if try == 0 {
			w.exim.Run(t, "-qq") // sorts the messages by host first
		} else {
			w.exim.Run(t, "-qqf") // whatever their retry time
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

// aliases has the domains of a disguise meet.
func (p *probe) aliases(t *testing.T, v *world) []string {
	return append(p.batched.inOneMessage(t, v), p.kept.inOneQueue(t, v)...)
}
