package enforce

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// lookupTime limits one answer of the daemon.
const lookupTime = 30 * time.Second

// A row is one message to a domain.
type row struct {
	name   string // the expected behaviour
	domain string
	with   testlab.With
	hosts  []string                      // MX hosts, if not the one from With
	bend   func(d *testlab.Domain) error // further changes to the domain
	fate   func(*world, *testlab.Domain) fate

	// For rows with DANE:
	records func(*testing.T, *testlab.Domain) []string // records to set, in zone-file form
	broken  []string                                   // "NAME TYPE": SERVFAIL from the resolver
	nextHop string                                     // in transport_maps
	reply   string                                     // beginning of the map's reply
	byHosts string                                     // the same for a Postfix that matches by hosts; empty: reply
	ending  string                                     // of the map's reply

	held *holding // what the daemon must hold afterwards; nil: not checked
}

// A holding is the expected output of -cache. Without it, a policy that stops
// no mail looks like one that was never found.
type holding struct {
	words string // a regular expression
	code  int    // 0: the daemon holds a policy
}

// Postfix's log texts for mail that is not delivered.
const (
	notOffered = "TLS is required, but was not offered by host"
	selfSigned = "self-signed certificate"
	expired    = "certificate has expired"
	otherName  = "hostname mismatch"
	notListed  = "does not match STS MX pattern" // 3.10.5 and later
	noPolicy   = "policy table lookup error"
)

// noUsable is the daemon's reason for TEMP when the match list is empty.
const noUsable = "policy lists no usable MX host name"

var rows = []row{{
	name:   "an honest domain gets its mail over verified TLS",
	domain: "honest.test",
	fate:   toTheFirst,
}, {
	name:   "a host without STARTTLS gets nothing",
	domain: "clear.test",
	with:   testlab.With{MailFault: testlab.NoSTARTTLS},
	fate:   toNobody(notOffered),
}, {
	name:   "a host with a self-signed certificate gets nothing",
	domain: "self-signed.test",
	with:   testlab.With{MailCert: testlab.CertSelfSigned},
	fate:   toNobody(selfSigned),
}, {
	name:   "a host with a certificate for another name gets nothing",
	domain: "wrong-name.test",
	with:   testlab.With{MailCert: testlab.CertWrongName},
	fate:   toNobody(otherName),
}, {
	name:   "a host with an expired certificate gets nothing",
	domain: "expired.test",
	with:   testlab.With{MailCert: testlab.CertExpired},
	fate:   toNobody(expired),
}, {
	name:   "a host that the policy does not list gets nothing, however good its certificate",
	domain: "unlisted.test",
	with:   testlab.With{MX: []string{"mx1.elsewhere.test"}},
	fate:   toNobodyUnlisted,
}, {
	name:   "a wildcard stands for one label",
	domain: "wildcard.test",
	with:   testlab.With{MX: []string{"*.wildcard.test"}},
	fate:   toTheFirst,
}, {
	// Postfix before 3.10.5 matches `.deep.test` at any depth.
	name:   "a wildcard stands for no more than one label where Postfix can tell",
	domain: "deep.test",
	hosts:  []string{"mx.two.deep.test"},
	with:   testlab.With{MX: []string{"*.deep.test"}},
	fate: func(w *world, d *testlab.Domain) fate {
		if w.strict {
			return deferred(notListed)
		}
		return verified(d.Mail[0])
	},
}, {
	name:   "when the first host is bad, the second one gets the mail",
	domain: "two.test",
	hosts:  []string{"mx1.two.test", "mx2.two.test"},
	bend:   func(d *testlab.Domain) error { return d.Mail[0].Present(testlab.CertSelfSigned) },
	fate:   func(_ *world, d *testlab.Domain) fate { return verified(d.Mail[1]) },
}, {
	// Postfix before 3.10.5 accepts the certificate of any listed host at any
	// host of the domain.
	name:   "a host with the certificate of another listed host gets nothing where Postfix can tell",
	domain: "swapped.test",
	hosts:  []string{"mx1.swapped.test"},
	with:   testlab.With{MX: []string{"mx1.swapped.test", "mx2.swapped.test"}},
	bend: func(d *testlab.Domain) error {
		return d.Mail[0].PresentFor(testlab.CertGood, "mx2.swapped.test")
	},
	fate: func(w *world, d *testlab.Domain) fate {
		if w.strict {
			return deferred(otherName)
		}
		return verified(d.Mail[0])
	},
}, {
	name:   "a testing policy stops no mail",
	domain: "testing.test",
	with:   testlab.With{Mode: "testing", MailFault: testlab.NoSTARTTLS},
	fate:   toTheFirstInClear,
	held:   &holding{words: `(?m)^  mode +testing$`},
}, {
	name:   "a policy of mode none stops no mail",
	domain: "none.test",
	with:   testlab.With{Mode: "none", MailFault: testlab.NoSTARTTLS},
	fate:   toTheFirstInClear,
	held:   &holding{words: `(?m)^  mode +none$`},
}, {
	name:   "a domain without a policy gets its mail as before",
	domain: "plain.test",
	with:   testlab.With{NoPolicy: true, MailFault: testlab.NoSTARTTLS},
	fate:   toTheFirstInClear,
	held:   &holding{words: `(?m)^  not found +no-record; `, code: 1},
}, {
	name:   "a domain whose policy host was never reached gets its mail as before",
	domain: "host-down.test",
	with:   testlab.With{MailFault: testlab.NoSTARTTLS},
	bend:   func(d *testlab.Domain) error { return d.Policy.Server.Down() },
	fate:   toTheFirstInClear,
	held:   &holding{words: `(?m)^  not found +sts-policy-fetch-error; `, code: 1},
}, {
	// To Postfix, match=hostname would mean any host named by DNS.
	name:   "a policy whose only mx is the word hostname lets nothing through",
	domain: "keyword.test",
	with:   testlab.With{MX: []string{"hostname"}},
	fate:   toNobody(noPolicy),
	reply:  "TEMP MTA-STS " + noUsable,
}, {
	// Postfix takes them for addresses, and then defers with "IP address mismatch".
	name:   "addresses and names that end in a number do not stop mail to the hosts beside them",
	domain: "ipmx.test",
	with:   testlab.With{MX: append(addressPatterns, "*.ipmx.test")},
	fate:   toTheFirst,
	reply:  "OK secure match=.ipmx.test servername=hostname",
}, {
	name:   "IPv6 addresses do not cost the hosts beside them their protection",
	domain: "ipv6mx.test",
	with:   testlab.With{MX: []string{"2001:db8::1", "[IPv6:2001:db8::1]", "*.ipv6mx.test"}},
	fate:   toTheFirst,
	reply:  "OK secure match=.ipv6mx.test servername=hostname",
}, {
	name:   "a policy that lists nothing but addresses lets nothing through",
	domain: "only-ip.test",
	with:   testlab.With{MX: addressPatterns},
	fate:   toNobody(noPolicy),
	reply:  "TEMP MTA-STS " + noUsable,
}, {
	// The reply with the policy's attributes would be longer than Postfix reads.
	name:   "a policy with a thousand hosts gets its mail",
	domain: "thousand.test",
	with:   testlab.With{MX: append(thousandPatterns(), "*.thousand.test")},
	fate:   toTheFirst,
	reply:  "OK secure match=mx000.",
	ending: ":.thousand.test servername=hostname",
}}

// addressPatterns are mx patterns that list no host.
var addressPatterns = []string{"212.114.86.56", "010.0.0.01", "1.2.3.4.", "MX.123"}

// thousandPatterns are as many as a policy may have, with one more, of 57 bytes each.
func thousandPatterns() (mx []string) {
	for i := range 999 {
		mx = append(mx, fmt.Sprintf("mx%03d.%s.example", i, strings.Repeat("x", 43)))
	}
	return mx
}

func toTheFirst(_ *world, d *testlab.Domain) fate        { return verified(d.Mail[0]) }
func toTheFirstInClear(_ *world, d *testlab.Domain) fate { return inClear(d.Mail[0]) }

// toNobodyUnlisted is the fate if the policy lists no MX host.
func toNobodyUnlisted(w *world, _ *testlab.Domain) fate {
	if w.strict {
		return deferred(notListed) // no connection
	}
	return deferred(otherName) // the certificate has no listed name
}

func toNobody(reason string) func(*world, *testlab.Domain) fate {
	return func(*world, *testlab.Domain) fate { return deferred(reason) }
}

// domain sets up the domain of a row.
func (w *world) domain(t *testing.T, r row) *testlab.Domain {
	t.Helper()
	for _, name := range r.hosts {
		r.with.Mail = append(r.with.Mail, w.lab.MailHost(name, ""))
	}
	d := w.lab.Domain(r.domain, r.with)
	if w.played == nil {
		w.played, w.sent = make(map[string]*testlab.Domain), make(map[string]bool)
	}
	w.played[d.Name] = d
	if r.bend != nil {
		if err := r.bend(d); err != nil {
			t.Fatal(err)
		}
	}
	if r.records != nil {
		w.lab.Set(r.records(t, d)...)
	}
	return d
}

// play sends the message of a row.
func (w *world) play(t *testing.T, r row, d *testlab.Domain) {
	w.sent[d.Name] = true
	m := w.mta.Send(t, d.Name)
	o := m.Outcome(t)
	check(t, m, o, w.fateOf(r, d), d.Mail...)
	w.checkHeld(t, r)
	w.checkProbe(t, r, o)
	if r.reply == "" || w.exim != nil || w.sendmail != nil && !slices.ContainsFunc(sendmailRows, func(s row) bool { return s.domain == r.domain }) {
		return
	}
	want := r.reply
	if w.strict {
		want = cmp.Or(r.byHosts, want)
	}
	if reply := w.reply(t, cmp.Or(r.nextHop, d.Name)); !strings.HasPrefix(reply, want) || !strings.HasSuffix(reply, r.ending) {
		t.Errorf("the map's reply is %q, want %q...%q", reply, want, r.ending)
	}
}

// checkHeld checks what the daemon holds of the row's domain.
func (w *world) checkHeld(t *testing.T, r row) {
	t.Helper()
	if r.held == nil {
		return
	}
	out, code := w.daemon.Run(t, "-cache", r.domain)
	if code != r.held.code || !regexp.MustCompile(r.held.words).MatchString(out) {
		t.Errorf("-cache exits with %d, want %d and %q:\n%s", code, r.held.code, r.held.words, out)
	}
}

// probesDiffer are the domains where Exim departs from RFC 7672 or delivers by other
// routers, so that -probe says something else.
var probesDiffer = map[string]string{
	backupDomain:                    "Exim is an MX of the domain itself, and does not ask for its policy",
	"alias.signed.example":          "Exim asks for TLSA records at the alias's target only",
	"alias-mismatch.signed.example": "Exim asks for TLSA records at the alias's target only",
}

// checkProbe checks that -probe foretells what the MTA has done.
func (w *world) checkProbe(t *testing.T, r row, o stage.Outcome) {
	t.Helper()
	t.Setenv("SSL_CERT_FILE", stage.Path("lab.pem"))
	out, _ := w.daemon.Run(t, "-probe", cmp.Or(r.nextHop, r.domain), "-map", w.mapName, "-json")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	var got struct{ Verdict, Reason string }
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &got); err != nil {
		t.Fatalf("-probe printed %q: %v", out, err)
	}
	want := map[string]string{"sent": "would be delivered", "deferred": "would wait", "bounced": "unknown"}[o.Status]
	if why := probesDiffer[r.domain]; w.exim != nil && why != "" {
		t.Logf("-probe: %s because %s; but %s", got.Verdict, got.Reason, why)
	} else if got.Verdict != want {
		t.Errorf("-probe: %s because %s; the MTA's mail is %s: %s", got.Verdict, got.Reason, o.Status, o.Reason)
	}
}

// fateOf returns the expected fate of a row's message.
func (w *world) fateOf(r row, d *testlab.Domain) fate {
	if w.exim != nil {
		if f, ok := eximsFates[r.domain]; ok {
			return f(w, d)
		}
	}
	return r.fate(w, d)
}

// reply asks the daemon as Postfix does.
func (w *world) reply(t *testing.T, key string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lookupTime)
	defer cancel()
	at, err := endpoint.Parse("inet:" + stage.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	reply, err := socketmap.Query(ctx, at, w.mapName, key)
	if err != nil {
		t.Fatal(err)
	}
	return reply
}
