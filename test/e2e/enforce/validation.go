package enforce

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// daneStories are about the resolver. The last one ends with a daemon that is
// started anew and a resolver that validates.
var daneStories = []story{
	{"Postfix believes the resolver without trust-ad, too", believesWithoutTrustAD},
	{"a resolver that stops validating makes no reply weaker", stopsValidating},
	{"mail waits while the resolver is not there, and no reply is weaker", startsWithoutResolver},
}

const (
	notSigned    = "non DNSSEC destination"
	resolverDown = "Host not found, try again"
)

// heldTime is for the daemon to look again at a domain at which a lookup has
// failed: it holds that for half a minute.
const heldTime = time.Minute

// believesWithoutTrustAD is about Postfix alone: when it asks for DNSSEC, it
// sets RES_TRUSTAD by itself, and resolv.conf has no say. What the daemon
// believes by default has to be seen beside it.
func believesWithoutTrustAD(t *testing.T, w *world) {
	d := w.signed.domain(t, "alone-mismatch.signed.example")
	w.postfix.TrustAD(t, false)
	defer w.postfix.TrustAD(t, true)
	m := w.postfix.Send(t, d.Name)
	check(t, m, m.Outcome(t), deferred(noMatch), d.Mail...)
}

// stopsValidating tells of a resolver that from one moment to the next takes
// everything as it comes. Domains that had DANE keep it: Postfix, too, finds
// that nothing is signed any more, and waits.
func stopsValidating(t *testing.T, w *world) {
	held, failing := w.signed.domain(t, "mismatch.signed.example"), w.signed.domain(t, "tlsa-fails.signed.example")
	for _, d := range []*testlab.Domain{held, failing} {
		if reply := w.reply(t, d.Name); reply != replyDANE {
			t.Fatalf("the map's reply for %s is %q", d.Name, reply)
		}
	}
	w.signed.resolver.Restart(t, true)

	m := w.mta.Send(t, held.Name)
	check(t, m, m.Outcome(t), deferred(notSigned), held.Mail...)

	ctx, cancel := context.WithTimeout(t.Context(), heldTime)
	defer cancel()
	err := stage.Await(ctx, func() bool {
		if reply := w.reply(t, failing.Name); reply != replyDANE {
			t.Fatalf("the map's reply for %s is %q, and was %q", failing.Name, reply, replyDANE)
		}
		return strings.Contains(w.daemon.Log(t), "keeps its DANE state")
	})
	if err != nil {
		t.Fatalf("the daemon did not look again at %s", failing.Name)
	}
	m = w.mta.Send(t, failing.Name)
	check(t, m, m.Outcome(t), deferred(notSigned), failing.Mail...)

	// What never had DANE, and now cannot, is held to its policy.
	never := w.lab.Domain("never-dane.test", testlab.With{MailCert: testlab.CertSelfSigned})
	m = w.mta.Send(t, never.Name)
	check(t, m, m.Outcome(t), deferred(selfSigned), never.Mail...)
}

// startsWithoutResolver tells of a daemon that starts before its resolver, and
// has policies on its disk.
func startsWithoutResolver(t *testing.T, w *world) {
	early, late := w.signed.domain(t, "match.signed.example"), w.signed.domain(t, "authority.signed.example")
	w.daemon.Kill(t)
	w.signed.resolver.Stop()
	w.daemon.Start(t)
	if reply := w.reply(t, early.Name); !strings.HasPrefix(reply, replyWait) {
		t.Errorf("without a resolver the map's reply is %q", reply)
	}
	m := w.mta.Send(t, late.Name)
	o := m.Outcome(t)
	check(t, m, o, deferred(resolverDown))

	w.signed.resolver.Restart(t, false)
	if reply := w.reply(t, late.Name); reply != replyDANE {
		t.Errorf("with a resolver the map's reply is %q", reply)
	}
	check(t, m, m.Retry(t, o), verified(late.Mail[0]), late.Mail...)
}

// domain returns the domain of a row.
func (s *signedWorld) domain(t *testing.T, name string) *testlab.Domain {
	t.Helper()
	for _, d := range s.domains {
		if d.Name == name {
			return d
		}
	}
	t.Fatalf("no row has the domain %s", name)
	return nil
}
