package enforce

import (
	"context"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// A story is a sequence in which a domain, an attacker or the daemon changes.
type story struct {
	name string
	tell func(*testing.T, *world)
}

// week is the max_age of policies that must not expire in a story.
const week = 7 * 24 * time.Hour

// followTime limits the time until a change at a domain takes effect.
const followTime = 30 * time.Second

var stories = []story{
	{"a known policy is enforced when an attacker takes away the TXT record",
		attack("record-away.test", fetchesAnew, takeRecord)},
	{"a known policy is enforced when an attacker takes away the policy host",
		attack("host-away.test", meetsNoHost, takePolicyHost)},
	{"a known policy is enforced when an attacker takes away the TXT record and the policy host",
		attack("all-away.test", meetsNoHost, takeRecord, takePolicyHost)},
	{"a known policy is enforced when an attacker puts a policy host in place with a certificate nobody trusts",
		attack("forged.test", meetsForger, forgePolicy)},
	{"a policy that the domain has changed is followed at the next retry", followsChange},
	{"a known policy is enforced from disk after kill -9", survivesKill},
	{"mail waits while the daemon is down and goes out when it is back", waitsForDaemon},
}

// attack returns a story: mail goes to a domain; then an attacker hides or
// forges its policy and strips STARTTLS, and the daemon is made to refresh the
// policy; then the attack ends.
func attack(domain string, meets meeting, steps ...func(*testing.T, *testlab.Domain)) func(*testing.T, *world) {
	return func(t *testing.T, w *world) {
		d := w.lab.Domain(domain, testlab.With{MaxAge: week})
		m := w.mta.Send(t, d.Name)
		check(t, m, m.Outcome(t), verified(d.Mail[0]), d.Mail...)

		for _, step := range steps {
			step(t, d)
		}
		d.Mail[0].Behave(testlab.NoSTARTTLS)
		w.lookAgain(t, d, meets)
		m = w.mta.Send(t, d.Name)
		o := m.Outcome(t)
		check(t, m, o, deferred(notOffered), d.Mail...)

		d.Mail[0].Behave(testlab.MailFine)
		check(t, m, m.Retry(t, o), verified(d.Mail[0]), d.Mail...)
	}
}

// A meeting is what the daemon must notice of an attack.
type meeting struct {
	code       int    // exit code of -refresh
	words      string // regular expression for its output
	handshakes bool   // a client connects to the policy host
	requests   bool   // and requests the policy
}

var (
	// The daemon fetches the policy even without a record.
	fetchesAnew = meeting{code: 0, words: `: ok, mode enforce, id 1, unchanged$`, handshakes: true, requests: true}
	meetsNoHost = meeting{code: 2, words: `: sts-policy-fetch-error: .*connection refused; the policy held stays in force \(mode enforce\)$`}
	// The daemon sees the certificate and sends no request.
	meetsForger = meeting{code: 2, words: `: sts-webpki-invalid: .*; the policy held stays in force \(mode enforce\)$`, handshakes: true}
)

// lookAgain makes the daemon check the record and fetch the policy now. The
// test shows nothing if the daemon does not notice the attack.
func (w *world) lookAgain(t *testing.T, d *testlab.Domain, want meeting) {
	t.Helper()
	record := "_mta-sts." + d.Name
	looked, begun, asked := w.lab.DNS.Asked(record, "TXT"), d.Policy.Handshakes(), d.Policy.Asked()
	out, code := w.daemon.Run(t, "-refresh", d.Name)
	if code != want.code || !regexp.MustCompile(want.words).MatchString(strings.TrimSpace(out)) {
		t.Errorf("-refresh exits with %d, want %d and %q:\n%s", code, want.code, want.words, out)
	}
	if w.lab.DNS.Asked(record, "TXT") == looked {
		t.Errorf("the daemon did not ask for %s", record)
	}
	if rose := d.Policy.Handshakes() > begun; rose != want.handshakes {
		t.Errorf("a client connected to the policy host: %t, want %t", rose, want.handshakes)
	}
	if rose := d.Policy.Asked() > asked; rose != want.requests {
		t.Errorf("the policy was requested: %t, want %t", rose, want.requests)
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

// followsChange moves a domain's mail to another host. The next attempt still
// uses the old policy and makes the daemon look for a new id. Nothing else
// asks.
func followsChange(t *testing.T, w *world) {
	d := w.lab.Domain("moving.test", testlab.With{MaxAge: week})
	m := w.mta.Send(t, d.Name)
	check(t, m, m.Outcome(t), verified(d.Mail[0]), d.Mail...)
	discovered := time.Now()

	moved := w.lab.MailHost("mx.new-provider.test", "")
	hosts := append(d.Mail, moved)
	if err := d.SetMX(moved); err != nil {
		t.Fatal(err)
	}
	d.SetPolicy(testlab.PolicyText("enforce", week, moved.Name), "2")
	if w.exim != nil { // the daemon caches the MX records for a minute or more
		w.daemon.Kill(t)
		w.daemon.Start(t)
	}
	// A policy checked less than recheck ago is not checked again. The store
	// counts whole seconds.
	awaitTrace(t, "time passes", func() bool { return time.Since(discovered) > recheck+time.Second })

	record := "_mta-sts." + d.Name
	looked, fetched := w.lab.DNS.Asked(record, "TXT"), d.Policy.Asked()
	m = w.mta.Send(t, d.Name)
	o := m.Outcome(t)
	if w.sendmail != nil && o.Status == "sent" { // it asks several times, and the new policy may come between
		check(t, m, o, verified(moved), hosts...)
		return
	}
	check(t, m, o, toNobodyUnlisted(w, d), hosts...)
	awaitTrace(t, "the daemon asks for the id after a failed delivery", func() bool {
		return w.lab.DNS.Asked(record, "TXT") > looked
	})
	awaitTrace(t, "the daemon fetches the new policy", func() bool { return d.Policy.Asked() > fetched })
	// Unlike a lookup, -cache does not cause a check.
	awaitTrace(t, "the daemon holds the new policy", func() bool {
		out, _ := w.daemon.Run(t, "-cache", d.Name)
		return strings.Contains(out, "mx: "+moved.Name)
	})
	check(t, m, m.Retry(t, o), verified(moved), hosts...)
}

// awaitTrace waits for an effect of a change at a domain.
func awaitTrace(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), followTime)
	defer cancel()
	if err := stage.Await(ctx, cond); err != nil {
		t.Fatalf("not within %s: %s", followTime, what)
	}
}

// survivesKill kills the daemon, which then has the policy on disk only.
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

// waitsForDaemon sends mail while the daemon is down.
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
