package enforce

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// daneStories are about the resolver. After the last one the resolver validates
// again.
var daneStories = []story{
	{"Postfix believes the resolver without trust-ad, too", believesWithoutTrustAD},
	{"another resolver, not on this machine, makes no reply weaker", movesResolver},
	{"a resolver that stops validating makes no reply weaker", stopsValidating},
	{"mail waits while the resolver is down, and no reply is weaker", startsWithoutResolver},
}

const (
	notSigned    = "non DNSSEC destination"
	resolverDown = "Host not found, try again"
)

// heldTime limits the wait for the daemon to check a domain again after a
// failed lookup, whose result it keeps for half a minute.
const heldTime = time.Minute

// believesWithoutTrustAD is about Postfix alone: for DNSSEC it sets RES_TRUSTAD
// itself, whatever resolv.conf says. The daemon's default must agree.
func believesWithoutTrustAD(t *testing.T, w *world) {
	d := w.signed.domain(t, "alone-mismatch.signed.example")
	w.postfix.TrustAD(t, false)
	defer w.postfix.TrustAD(t, true)
	m := w.postfix.Send(t, d.Name)
	check(t, m, m.Outcome(t), deferred(noMatch), d.Mail...)
}

// elsewhere is the address of a resolver on another machine.
const elsewhere = "192.0.2.53"

// movesResolver changes the daemon's resolv.conf to a resolver on another
// machine, whose AD bit the daemon does not trust. Postfix still uses the
// validating one. Domains that had DANE keep it and get their mail.
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
			t.Fatalf("the daemon did not check %s again", failing.Name)
		}
		m := w.mta.Send(t, held.Name)
		check(t, m, m.Outcome(t), verified(held.Mail[0]), held.Mail...)
	})
	ctx, cancel := context.WithTimeout(t.Context(), heldTime)
	defer cancel()
	validates := func() bool { // by the last line about it in the log
		log := w.daemon.Log()
		return strings.LastIndex(log, "the resolver validates") > strings.LastIndex(log, "is not believed")
	}
	if err := stage.Await(ctx, validates); err != nil {
		t.Error("the daemon does not find that the resolver validates again")
	}
}

// keeps reports whether the daemon logged that the domain keeps DANE, with that
// verdict on the resolver.
func (w *world) keeps(t *testing.T, d *testlab.Domain, verdict string) bool {
	for line := range strings.Lines(w.daemon.Log()) {
		if strings.Contains(line, "keeps its DANE state") && strings.Contains(line, "domain="+d.Name+" ") && strings.Contains(line, verdict) {
			return true
		}
	}
	return false
}

// stopsValidating has a resolver that stops validating. Domains that had DANE
// keep it; Postfix finds them unsigned and defers.
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
		t.Fatalf("the daemon did not check %s again", failing.Name)
	}
	m = w.mta.Send(t, failing.Name)
	check(t, m, m.Outcome(t), deferred(notSigned), failing.Mail...)

	// A domain that never had DANE follows its policy.
	never := w.lab.Domain("never-dane.test", testlab.With{MailCert: testlab.CertSelfSigned})
	m = w.mta.Send(t, never.Name)
	check(t, m, m.Outcome(t), deferred(selfSigned), never.Mail...)
}

// startsWithoutResolver starts the daemon before its resolver, with policies on
// disk.
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

// domain returns the domain of a DANE row.
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
