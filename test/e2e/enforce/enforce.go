// Package enforce sends mail through a real MTA that asks the real daemon, to
// honest and hostile domains, and checks what happens to each message (RFC
// 8461). Package mta runs its tests for each MTA.
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

// caFile has the lab's root certificate, for the daemon outside the root and
// for Postfix inside it.
const caFile = "/etc/ssl/certs/lab.pem"

// recheck is the daemon's [refresh] recheck: short, so that the next lookup
// checks a policy again without the default wait of five minutes.
const recheck = time.Second

// startDaemon starts the daemon, which trusts the lab's authority.
func startDaemon(t *testing.T, lab *testlab.T) *stage.Daemon {
	t.Helper()
	return stage.StartDaemon(t, testlab.DaemonConfig{
		CA:     stage.WriteCA(t, lab),
		Tables: fmt.Sprintf("[refresh]\nrecheck = %q\n", recheck),
	})
}

// A Matching is how a Postfix matches MX hosts with the policy.
type Matching bool

const (
	// ByNames: the certificate of any host must have a name in the match list,
	// where a pattern matches any number of labels.
	ByNames Matching = false
	// ByHosts: MX hosts and certificates are matched as in RFC 8461, 4.1 and
	// 4.2. Postfix does so since 3.10.5, if it gets the policy's attributes.
	ByHosts Matching = true
)

// A world is a small internet, an MTA in it, and its daemon.
type world struct {
	lab      *testlab.T
	signed   *signedWorld // nil if the map has no DANE
	daemon   *stage.Daemon
	postfix  *stage.Postfix // one of postfix and exim is set
	exim     *stage.Exim
	sendmail *stage.Sendmail
	recipe   string    // for sendmail
	mta      stage.MTA // the same as an interface
	mapName  string
	root     string                     // of Exim
	played   map[string]*testlab.Domain // domains of the rows, by name
	sent     map[string]bool            // those whose message was sent

	strict Matching
}

// Test runs all rows and stories with the Postfix in a root of test/e2e/setup.
// It asks the map mapName and matches hosts as given. With a DANE map, Postfix
// does DANE, and there are signed zones, a validating resolver and more rows.
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
	// With another Postfix or map, some expectations would be too weak.
	if got := Matching(strings.HasSuffix(mapName, "-tlsrpt") && w.postfix.AtLeast("3.10.5")); got != matching {
		t.Fatalf("Postfix %s with map %s matches by hosts: %t, want %t", w.postfix.Version, mapName, got, matching)
	}

	w.share(t)
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) { w.play(t, r, w.domain(t, r)) })
	}
	played := rows
	if dane {
		w.playSigned(t)
		played = slices.Concat(rows, daneRows)
	}
	t.Run("-waiting knows why each message waits", func(t *testing.T) { w.explainsQueue(t, played) })
	t.Run("-waiting leads somebody who knows nothing to cause and remedy", func(t *testing.T) { leadsToRemedy(t, w) })
	if dane {
		for _, s := range daneStories {
			t.Run(s.name, func(t *testing.T) { s.tell(t, w) })
		}
	}
	for _, s := range stories {
		t.Run(s.name, func(t *testing.T) { s.tell(t, w) })
	}
	if dane {
		t.Run("the maps answer to the names of another policy server", func(t *testing.T) { asksByAliases(t, w) })
	}
	t.Run("the lines that -recipe prints are all that Postfix needs", func(t *testing.T) { followsRecipe(t, w) })
}

// enterLab starts the lab with its hosts in the given network and returns the
// settings for Postfix. Without DANE the lab's DNS is the resolver; with DANE a
// validating unbound is in front of it.
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

// A fate is what should happen to a message.
type fate struct {
	status string // sent, deferred or bounced
	host   *testlab.MailHost
	tls    string // Postfix's verdict on the TLS connection, if sent
	sni    string // the server name (SNI) that the host received, if not its own name
	reason string // if not sent: part of Postfix's log
}

// verified: delivered to the host over TLS with a verified certificate.
func verified(host *testlab.MailHost) fate { return fate{status: "sent", host: host, tls: "Verified"} }

// inClear: delivered to the host without TLS.
func inClear(host *testlab.MailHost) fate { return fate{status: "sent", host: host} }

// deferred: not delivered, with that reason.
func deferred(reason string) fate { return fate{status: "deferred", reason: reason} }

// bounced: returned to the sender, with that reason.
func bounced(reason string) fate { return fate{status: "bounced", reason: reason} }

// check compares an outcome with the expected fate. It also checks at the hosts
// whether they received the message.
func check(t *testing.T, m *stage.Message, got stage.Outcome, want fate, hosts ...*testlab.MailHost) {
	t.Helper()
	report(t, differences(m, got, want, hosts...))
}

// differences returns the failures that check reports.
func differences(m *stage.Message, got stage.Outcome, want fate, hosts ...*testlab.MailHost) (found []string) {
	say := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	verified := want.tls == "Verified"
	switch m.MTA.(type) {
	case *stage.Exim:
		want = want.ofExim(got)
	case *stage.Sendmail:
		want = want.ofSendmail()
	}
	if got.Status != want.status || want.status == "sent" && got.TLS != want.tls || !strings.Contains(got.Log, want.reason) {
		say("%s: %s\nwant: %s\nlog:\n%s", m.MTA.Name(), got, want, got.Log)
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
			say("%s got the message over TLS: %v", h.Name, arrived.TLS)
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
	return fmt.Sprintf("%s, reason %q", f.status, f.reason)
}
