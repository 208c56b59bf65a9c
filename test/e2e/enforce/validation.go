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
	{"another resolver, not on this machine, makes no reply weaker", movesResolver},
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

// elsewhere is the address of a resolver on another machine.
const elsewhere = "192.0.2.53"

// movesResolver tells of a daemon whose resolv.conf comes to name a resolver on
// another machine, whose AD bit is not believed. Postfix still asks the one that
// validates: domains that had DANE keep it, and their mail goes.
func movesResolver(t *testing.T, w *world) {
	held, failing := w.signed.domain(t, "match.signed.example"), w.signed.domain(t, "tlsa-fails.signed.example")
	for _, d := range []*testlab.Domain{held, failing} {
		if reply := w.reply(t, d.Name); reply != replyDANE {
			t.Fatalf("the map's reply for %s is %q", d.Name, reply)
		}
	}
	t.Run("moved", func(t *testing.T) {
		stage.SetResolvConf(t, "nameserver "+elsewhere+"\n")
		ctx, cancel := context.WithTimeout(t.Context(), heldTime)
		defer cancel()
		err := stage.Await(ctx, func() bool {
			for _, d := range []*testlab.Domain{held, failing} {
				if reply := w.reply(t, d.Name); reply != replyDANE {
					t.Fatalf("the map's reply for %s is %q, and was %q", d.Name, reply, replyDANE)
				}
			}
			return w.keeps(t, failing, "is not believed")
		})
		if err != nil {
			t.Fatalf("the daemon did not look again at %s", failing.Name)
		}
		m := w.mta.Send(t, held.Name)
		check(t, m, m.Outcome(t), verified(held.Mail[0]), held.Mail...)
	})
	ctx, cancel := context.WithTimeout(t.Context(), heldTime)
	defer cancel()
	validates := func() bool { // as the last that the log has of it
		log := w.daemon.Log()
		return strings.LastIndex(log, "the resolver validates") > strings.LastIndex(log, "is not believed")
	}
	if err := stage.Await(ctx, validates); err != nil {
		t.Error("the daemon does not find that the resolver is the one of before")
	}
}

// keeps says whether the log has it that the domain keeps its DANE, for a
// verdict with those words.
func (w *world) keeps(t *testing.T, d *testlab.Domain, verdict string) bool {
	for line := range strings.Lines(w.daemon.Log()) {
		if strings.Contains(line, "keeps its DANE state") && strings.Contains(line, "domain="+d.Name+" ") && strings.Contains(line, verdict) {
			return true
		}
	}
	return false
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
		return w.keeps(t, failing, "does not validate")
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
