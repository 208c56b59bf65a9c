package enforce

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// A story is about a domain, an attacker or the daemon, one of which changes.
type story struct {
	name string
	tell func(*testing.T, *world)
}

// week is the max_age of policies that are not to run out in a story.
const week = 7 * 24 * time.Hour

// followTime is how long a change at a domain may take to be followed by
// retries of a message.
const followTime = 30 * time.Second

var stories = []story{
	{"a known policy is enforced when an attacker takes away the TXT record",
		attack("record-away.test", takeRecord)},
	{"a known policy is enforced when an attacker takes away the policy host",
		attack("host-away.test", takePolicyHost)},
	{"a known policy is enforced when an attacker takes away the TXT record and the policy host",
		attack("all-away.test", takeRecord, takePolicyHost)},
	{"a known policy is enforced when an attacker puts a policy host in place with a certificate nobody trusts",
		attack("forged.test", forgePolicy)},
	{"a policy that the domain has changed is followed at the next retry", followsChange},
	{"a known policy is enforced from disk after kill -9", survivesKill},
	{"mail waits while the daemon is down and goes out when it is back", waitsForDaemon},
}

// attack tells of a domain to which mail has gone, of an attacker who then
// hides or forges its policy, and strips STARTTLS; and gives up.
func attack(domain string, steps ...func(*testing.T, *testlab.Domain)) func(*testing.T, *world) {
	return func(t *testing.T, w *world) {
		d := w.lab.Domain(domain, testlab.With{MaxAge: week})
		m := w.mta.Send(t, d.Name)
		check(t, m, m.Outcome(t), verified(d.Mail[0]), d.Mail...)

		for _, step := range steps {
			step(t, d)
		}
		d.Mail[0].Behave(testlab.NoSTARTTLS)
		w.lookAgain(t, d)
		m = w.mta.Send(t, d.Name)
		o := m.Outcome(t)
		check(t, m, o, deferred(notOffered), d.Mail...)

		d.Mail[0].Behave(testlab.MailFine)
		check(t, m, m.Retry(t, o), verified(d.Mail[0]), d.Mail...)
	}
}

// lookAgain makes the daemon check the record and fetch the policy at once.
// What it makes of that is not looked at here; what counts is the mail after it.
func (w *world) lookAgain(t *testing.T, d *testlab.Domain) {
	t.Helper()
	record := "_mta-sts." + d.Name
	before := w.lab.DNS.Asked(record, "TXT")
	out, code := w.daemon.Run(t, "-refresh", d.Name)
	t.Logf("-refresh exits with %d: %s", code, out)
	if w.lab.DNS.Asked(record, "TXT") == before {
		t.Errorf("the daemon did not look at %s", record)
	}
}

func takeRecord(_ *testing.T, d *testlab.Domain) { d.RemoveRecord() }

func takePolicyHost(t *testing.T, d *testlab.Domain) {
	if err := d.Policy.Server.Down(); err != nil {
		t.Fatal(err)
	}
}

func forgePolicy(t *testing.T, d *testlab.Domain) {
	if err := d.Policy.Present(testlab.CertOtherCA); err != nil {
		t.Fatal(err)
	}
	d.SetPolicy(testlab.PolicyText("none", week), "forged")
}

// followsChange tells of a domain that moves its mail to another host. The
// first try after that is held against the old policy, and makes the daemon
// look for a new id.
func followsChange(t *testing.T, w *world) {
	d := w.lab.Domain("moving.test", testlab.With{MaxAge: week})
	m := w.mta.Send(t, d.Name)
	check(t, m, m.Outcome(t), verified(d.Mail[0]), d.Mail...)

	moved := w.lab.MailHost("mx.new-provider.test", "")
	hosts := append(d.Mail, moved)
	fetched := d.Policy.Asked()
	if err := d.SetMX(moved); err != nil {
		t.Fatal(err)
	}
	d.SetPolicy(testlab.PolicyText("enforce", week, moved.Name), "2")
	if w.exim != nil { // the daemon holds the MX records, for a minute at least
		w.daemon.Kill(t)
		w.daemon.Start(t)
	}
	m = w.mta.Send(t, d.Name)
	o := m.Outcome(t)
	check(t, m, o, toNobodyUnlisted(w, d), hosts...)

	ctx, cancel := context.WithTimeout(t.Context(), followTime)
	defer cancel()
	err := stage.Await(ctx, func() bool {
		reply, _ := w.daemon.Run(t, "-query", d.Name)
		return strings.Contains(reply, moved.Name)
	})
	if err != nil {
		t.Fatalf("the new policy is not followed; its host was asked %d times since", d.Policy.Asked()-fetched)
	}
	check(t, m, m.Retry(t, o), verified(moved), hosts...)
}

// survivesKill tells of a daemon that is killed, and when it is back finds
// nothing of the policy but what is on its disk.
func survivesKill(t *testing.T, w *world) {
	d := w.lab.Domain("kill.test", testlab.With{MaxAge: week})
	m := w.mta.Send(t, d.Name)
	check(t, m, m.Outcome(t), verified(d.Mail[0]), d.Mail...)

	w.daemon.Kill(t)
	takeRecord(t, d)
	takePolicyHost(t, d)
	d.Mail[0].Behave(testlab.NoSTARTTLS)
	w.daemon.Start(t)
	m = w.mta.Send(t, d.Name)
	o := m.Outcome(t)
	check(t, m, o, deferred(notOffered), d.Mail...)

	d.Mail[0].Behave(testlab.MailFine)
	check(t, m, m.Retry(t, o), verified(d.Mail[0]), d.Mail...)
}

// waitsForDaemon tells of mail while the daemon does not run.
func waitsForDaemon(t *testing.T, w *world) {
	d := w.lab.Domain("daemon-down.test", testlab.With{})
	w.daemon.Kill(t)
	m := w.mta.Send(t, d.Name)
	o := m.Outcome(t)
	check(t, m, o, deferred(noPolicy), d.Mail...)
	if n := d.Mail[0].Connections(); n != 0 {
		t.Errorf("%s got %d connections", d.Mail[0].Name, n)
	}

	w.daemon.Start(t)
	check(t, m, m.Retry(t, o), verified(d.Mail[0]), d.Mail...)
}
