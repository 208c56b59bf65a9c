package enforce

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// TestSendmail runs all rows and stories, and sendmail's own, with the sendmail in a root
// of test/e2e/setup. It is configured as -recipe says.
func TestSendmail(t *testing.T, root string) {
	w := &world{mapName: "sts", strict: ByHosts}
	stage.AddNetwork(t, hostNet)
	w.enterLab(t, netip.MustParsePrefix(hostNet), true)
	w.daemon = startDaemon(t, w.lab)
	w.sendmail = stage.StartSendmail(t, root, map[string]string{systemRoots: string(w.lab.CA.PEM())})
	w.mta = w.sendmail
	w.recipe = w.sendmail.Program(t, "-recipe", "sendmail")
	t.Logf("%s\n%s", w.sendmail.Name(), w.recipe)
	w.sendmail.Configure(t, w.recipe)
	w.share(t)
	played := slices.Concat(rows, sendmailRows)
	for _, r := range played {
		t.Run(r.name, func(t *testing.T) { w.play(t, r, w.domain(t, r)) })
	}
	t.Run("-waiting knows why each message waits", func(t *testing.T) { w.explainsQueue(t, played) })
	t.Run("-waiting leads somebody who knows nothing to cause and remedy", func(t *testing.T) { leadsToRemedy(t, w) })
	for _, s := range slices.Concat(stories, sendmailStories) {
		t.Run(s.name, func(t *testing.T) { s.tell(t, w) })
	}
}

// sendmail's log texts for mail that is not delivered.
const (
	stsNoTLS    = "STS other side does not support STARTTLS"
	stsBadCert  = "STS authentication failed"
	stsRefused  = "STS authentication failure"
	stsBroken   = "TLS handshake failed"
	stsBadName  = "not listed in SANs"
	stsUnlisted = "not found in MX list"
	stsNoPolicy = "STS lookup temp fail"
	stsBadTLSA  = "DANE check failed"
)

// sendmailsWords maps Postfix's log texts to sendmail's.
var sendmailsWords = map[string]string{
	notOffered: stsNoTLS, selfSigned: stsBadCert, expired: stsBadCert, otherName: stsBadName, notListed: stsUnlisted,
	noPolicy: stsNoPolicy, noMatch: stsBadTLSA,
}

// ofSendmail returns f with sendmail's log texts.
func (f fate) ofSendmail() fate {
	if words, ok := sendmailsWords[f.reason]; ok {
		f.reason = words
	}
	return f
}

// sendmailRows are rows for what only sendmail does.
var sendmailRows = []row{{
	name:   "a host that refuses STARTTLS gets nothing",
	domain: "refused.test",
	with:   testlab.With{MailFault: testlab.STARTTLSRefused},
	fate:   toNobody(stsRefused),
}, {
	name:   "a host that hangs up at STARTTLS gets nothing",
	domain: "hang-up.test",
	with:   testlab.With{MailFault: testlab.STARTTLSHangUp},
	fate:   toNobody(stsBroken),
}, {
	name:   "a listed host that is an alias gets nothing when its certificate has the other name",
	domain: "alias-other.test",
	hosts:  []string{"mx.hosted-other.test"},
	with:   testlab.With{MX: []string{"mx.alias-other.test"}},
	records: func(_ *testing.T, d *testlab.Domain) []string {
		return []string{"alias-other.test. 300 IN MX 10 mx.alias-other.test.", "mx.alias-other.test. 300 IN CNAME mx.hosted-other.test."}
	},
	fate: toNobody(otherName),
}, {
	name:   "the last pattern counts in the longest list that sendmail reads",
	domain: "l255.test",
	with:   testlab.With{MX: longList(255, "*.l255.test")},
	reply:  "OK secure match=mx0.",
	ending: ":.l255.test servername=hostname",
	fate:   toTheFirst,
}, {
	name:   "of a longer list sendmail gets the MX hosts",
	domain: "l256.test",
	with:   testlab.With{MX: longList(256, "*.l256.test")},
	reply:  "OK secure match=mx1.l256.test servername=hostname",
	fate:   toTheFirst,
}}

// longList returns patterns whose match list has n bytes, with last at its end.
func longList(n int, last string) (mx []string) {
	const names = 4
	rest := n - len(last[1:]) - names*len(":")
	for i := range names {
		size := rest / (names - i)
		mx = append(mx, fmt.Sprintf("mx%d.%s.example", i, strings.Repeat("x", size-len("mx0..example"))))
		rest -= size
	}
	return append(mx, last)
}

var sendmailStories = []story{
	{"a forged CNAME does not lead mail to another domain, and its policy", followsNoCNAME},
	{"domains that share a bad host: only the one without a policy gets its mail", sharesBadHost},
	{"with a smart host, -recipe refuses, since mail to enforced domains would wait", refusesSmartHost},
	{"a domain with DANE is protected by its policy alone", ignoresDANE},
	{"with confDANE a failing TLSA lookup takes the policy away, and -recipe warns", warnsOfDANE},
}

// sharesBadHost sends one message to two domains at one host, in both orders, and then a
// message to each in one queue run, whose connections are kept. Before 8.18.2 the policy
// of the first domain counted for both.
func sharesBadHost(t *testing.T, w *world) {
	h := w.lab.MailHost("mx.shared.test", "")
	if err := h.Present(testlab.CertSelfSigned); err != nil {
		t.Fatal(err)
	}
	free := w.lab.Domain("free.test", testlab.With{NoPolicy: true, Mail: []*testlab.MailHost{h}})
	bound := w.lab.Domain("bound.test", testlab.With{Mail: []*testlab.MailHost{h}})
	for _, order := range [][]string{{free.Name, bound.Name}, {bound.Name, free.Name}} {
		messages := append(w.sendmail.Submit(t, order...), w.sendmail.Queue(t, order[0]), w.sendmail.Queue(t, order[1]))
		w.sendmail.RunQueue(t)
		for i, m := range messages {
			want := deferred(selfSigned)
			if order[i%2] == free.Name {
				want = fate{status: "sent", host: h, tls: "Untrusted"}
			}
			check(t, m, m.Outcome(t), want, h)
		}
	}
}

// refusesSmartHost has everything go to one host.
func refusesSmartHost(t *testing.T, w *world) {
	smart := w.lab.MailHost("smart.test", "")
	w.lab.Domain("smart.test", testlab.With{Mail: []*testlab.MailHost{smart}})
	w.lab.Domain("beyond.test", testlab.With{})
	w.sendmail.Configure(t, w.recipe+"define(`SMART_HOST', `smart.test')dnl\n")
	m := w.sendmail.Send(t, "beyond.test")
	check(t, m, m.Outcome(t), deferred(stsUnlisted), smart)
	out, err := w.onMachine("-recipe", "sendmail").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "this sendmail sends mail to smart.test, but asks for the policies of the recipients' domains") {
		t.Errorf("-recipe: %v\n%s", err, out)
	}
}

// ignoresDANE has a policy decide where TLSA records would decide otherwise.
func ignoresDANE(t *testing.T, w *world) {
	w.sendmail.Configure(t, w.recipe)
	bad, good := w.signed.domain(t, "match.signed.example"), w.signed.domain(t, "mismatch.signed.example")
	m := w.sendmail.Send(t, bad.Name)
	check(t, m, m.Outcome(t), deferred(selfSigned), bad.Mail...)
	m = w.sendmail.Send(t, good.Name)
	check(t, m, m.Outcome(t), verified(good.Mail[0]), good.Mail...)
}

// warnsOfDANE shows why confDANE stays off. When a later sendmail defers the second
// message, docs/sendmail.md and the recipe can recommend DANE.
func warnsOfDANE(t *testing.T, w *world) {
	w.sendmail.Configure(t, w.recipe+"define(`confDANE', `true')dnl\n")
	d := w.signed.domain(t, "mismatch.signed.example")
	m := w.sendmail.Send(t, d.Name)
	check(t, m, m.Outcome(t), deferred(noMatch), d.Mail...)
	d = w.signed.domain(t, "outside-bad.signed.example")
	m = w.sendmail.Send(t, d.Name)
	check(t, m, m.Outcome(t), fate{status: "sent", host: d.Mail[0], tls: "Untrusted"}, d.Mail...)
	if out := w.sendmail.Program(t, "-recipe", "sendmail"); !strings.Contains(out, "WARNING: confDANE is on") {
		t.Errorf("-recipe does not warn:\n%s", out)
	}
}

// followsNoCNAME makes a domain with an enforced policy an alias of one without.
func followsNoCNAME(t *testing.T, w *world) {
	d := w.lab.Domain("cnamed.test", testlab.With{})
	evil := w.lab.Domain("evil.test", testlab.With{NoPolicy: true, MailFault: testlab.NoSTARTTLS})
	w.lab.DNS.Remove(d.Name, dns.TypeMX)
	w.lab.Set(d.Name + ". 300 IN CNAME " + evil.Name + ".")
	m := w.sendmail.Send(t, d.Name)
	check(t, m, m.Outcome(t), deferred(notOffered), append(d.Mail, evil.Mail...)...)
}
