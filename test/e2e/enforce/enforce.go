// Package enforce sends mail through a real Postfix that asks the real daemon,
// to domains honest and hostile, and looks at what becomes of it: RFC 8461 seen
// from the outside. The tests of each Postfix are in packages of their own, so
// that go test runs them side by side, each on a stage of its own.
package enforce

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// caFile is where the daemon and Postfix find the lab's root certificate, the
// one outside and the other inside its root.
const caFile = "/etc/ssl/certs/lab.pem"

// recheck is the daemon's [refresh] recheck: the next lookup after a second
// checks a policy again, not the one five minutes later, after which a real
// Postfix retries.
const recheck = time.Second

// startDaemon starts the daemon, which trusts the lab's authority.
func startDaemon(t *testing.T, lab *testlab.T) *stage.Daemon {
	t.Helper()
	return stage.StartDaemon(t, testlab.DaemonConfig{
		CA:     stage.WriteCA(t, lab),
		Tables: fmt.Sprintf("[refresh]\nrecheck = %q\n", recheck),
	})
}

// A Matching is how a Postfix holds MX hosts against the policy.
type Matching bool

const (
	// ByNames: the certificate must have one of the names of a list, whatever
	// host has it, and a pattern matches any number of labels.
	ByNames Matching = false
	// ByHosts: MX hosts and their certificates are matched as RFC 8461, 4.1
	// and 4.2 say: by Postfix 3.10.5 and later, when it gets the policy's
	// attributes.
	ByHosts Matching = true
)

// A world is a small internet, a Postfix in it, and the daemon that it asks.
type world struct {
	lab     *testlab.T
	signed  *signedWorld // nil if the map is one without DANE
	daemon  *stage.Daemon
	postfix *stage.Postfix // one of these two
	exim    *stage.Exim
	mta     stage.MTA // and it is this
	mapName string
	root    string                     // of the Exim
	played  map[string]*testlab.Domain // the domains of rows, by name

	strict Matching
}

// Test runs all rows and stories with the Postfix in a root of test/e2e/setup,
// which asks the map mapName and matches hosts in that way. With a map for
// DANE, Postfix does DANE, and there are signed zones, a resolver that
// validates, and more rows.
func Test(t *testing.T, root, mapName string, matching Matching) {
	w := &world{mapName: mapName, strict: matching}
	dane := strings.Contains(mapName, "-dane")
	settings := w.enterLab(t, netip.MustParsePrefix("127.1.0.0/16"), dane)

	w.daemon = startDaemon(t, w.lab)
	w.postfix = stage.StartPostfix(t, root,
		map[string]string{caFile: string(w.lab.CA.PEM())},
		append(settings,
			"smtp_tls_CAfile = "+caFile,
			"smtp_tls_policy_maps = socketmap:inet:"+stage.Endpoint+":"+mapName)...)
	w.mta = w.postfix
	t.Logf("Postfix %s, map %s", w.postfix.Version, mapName)
	// A Postfix or a map that is not what the package is about would quietly
	// turn what must be deferred into what may be sent.
	if got := Matching(strings.HasSuffix(mapName, "-tlsrpt") && w.postfix.AtLeast("3.10.5")); got != matching {
		t.Fatalf("Postfix %s with map %s matches MX hosts by the policy: %t, want %t", w.postfix.Version, mapName, got, matching)
	}

	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) { w.play(t, r, w.domain(t, r)) })
	}
	if dane {
		w.playSigned(t)
		for _, s := range daneStories {
			t.Run(s.name, func(t *testing.T) { s.tell(t, w) })
		}
	}
	for _, s := range stories {
		t.Run(s.name, func(t *testing.T) { s.tell(t, w) })
	}
	if dane {
		t.Run("the maps answer by their names of another policy server", func(t *testing.T) { asksByAliases(t, w) })
	}
	t.Run("the lines that -recipe prints are all that Postfix needs", func(t *testing.T) { followsRecipe(t, w) })
}

// enterLab starts the lab, its hosts in that network, and returns what Postfix is to be told about it.
// Without DANE the lab's name server is the resolver; with DANE it is behind
// one that validates.
func (w *world) enterLab(t *testing.T, hosts netip.Prefix, dane bool) (settings []string) {
	address := stage.Resolver
	if dane {
		address = nameServer
	}
	w.lab = testlab.NewWith(t, testlab.Options{
		DNS:        address + ":53",
		Net:        hosts,
		PolicyPort: 443,
		MailPort:   25,
	})
	if !dane {
		return nil
	}
	w.signed = w.makeSignedWorld(t)
	return append(w.signed.settings,
		"smtp_tls_security_level = dane",
		"smtp_dns_support_level = dnssec")
}

// A fate is what becomes of a message.
type fate struct {
	status string // sent, deferred or bounced
	host   *testlab.MailHost
	tls    string // how Postfix saw the TLS with the host, if sent
	sni    string // the server name that the host got, if not its own
	reason string // if not sent: a part of what Postfix logs about why
}

// verified: delivered to the host over TLS, with its certificate verified.
func verified(host *testlab.MailHost) fate { return fate{status: "sent", host: host, tls: "Verified"} }

// inClear: delivered to the host without TLS, as nothing forbids it.
func inClear(host *testlab.MailHost) fate { return fate{status: "sent", host: host} }

// deferred: not delivered, for that reason.
func deferred(reason string) fate { return fate{status: "deferred", reason: reason} }

// bounced: returned to the sender, for that reason.
func bounced(reason string) fate { return fate{status: "bounced", reason: reason} }

// check compares an outcome with the fate wanted, and asks the mail hosts of
// the domain, and others that might have got the message, whether it is true.
func check(t *testing.T, m *stage.Message, got stage.Outcome, want fate, hosts ...*testlab.MailHost) {
	t.Helper()
	for _, d := range differences(m, got, want, hosts...) {
		t.Error(d)
	}
}

// differences says what check finds.
func differences(m *stage.Message, got stage.Outcome, want fate, hosts ...*testlab.MailHost) (found []string) {
	say := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	verified := want.tls == "Verified"
	if _, ok := m.MTA.(*stage.Exim); ok {
		want = want.ofExim(got)
	}
	if got.Status != want.status || want.status == "sent" && got.TLS != want.tls || !strings.Contains(got.Log, want.reason) {
		say("%s says %s\nwant: %s\nit logged:\n%s", m.MTA.Name(), got, want, got.Log)
	}
	for _, h := range hosts {
		var arrived *testlab.Message
		for _, at := range h.Messages() {
			if slices.ContainsFunc(at.To, func(to string) bool { return strings.EqualFold(to, m.Recipient) }) {
				arrived = &at
			}
		}
		switch {
		case h != want.host && arrived != nil:
			say("%s got the message (over TLS: %v)", h.Name, arrived.TLS)
		case h == want.host && arrived == nil:
			say("%s did not get the message", h.Name)
		case h == want.host && arrived.TLS != (want.tls != ""):
			say("%s got the message; over TLS: %v", h.Name, arrived.TLS)
		case h == want.host && verified && arrived.SNI != cmp.Or(want.sni, h.Name):
			say("%s got the server name %q (RFC 8461, 7.1; RFC 7672, 8.1)", h.Name, arrived.SNI)
		}
	}
	return found
}

func (f fate) String() string {
	if f.status == "sent" {
		return fmt.Sprintf("sent to %s, TLS %q", f.host.Name, f.tls)
	}
	return fmt.Sprintf("%s, since: %q", f.status, f.reason)
}
