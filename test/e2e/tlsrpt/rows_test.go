//go:build e2e

package tlsrpt

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// A row is one message to a domain, and what the domain's report says of it.
type row struct {
	what   string
	domain string
	with   testlab.With
	hosts  []string                      // MX hosts, if not the one from With
	bend   func(d *testlab.Domain) error // further changes to the domain

	tlsa   func(d *testlab.Domain) []string // TLSA records; only with DANE
	broken string                           // "NAME TYPE": its signature is missing; only with DANE

	noReports bool   // the domain does not ask for reports
	to        string // the domain as the sender writes it
	header    string // of the message

	status   string                                  // of the message; default "sent"
	want     func(d *testlab.Domain) []report.Result // nil: there is no report
	since311 string                                  // the reason in the details instead, since Postfix 3.11
	told     int                                     // sessions that Postfix tells of; 0: those of want; -1: none
	ours     bool                                    // want has what the daemon itself knows
}

const deferred = "deferred"

var (
	noPolicy = testlab.With{NoPolicy: true}
	unlisted = testlab.With{MX: []string{"mx1.elsewhere.test"}}
	day7     = 7 * 24 * time.Hour
)

var rows = []row{{
	what: "success under an enforced policy", domain: "honest.test",
	want: stsSucceeded,
}, {
	what: "success with a wildcard in the policy", domain: "wildcard.test", with: testlab.With{MX: []string{"*.wildcard.test", "other.test"}},
	want: func(d *testlab.Domain) []report.Result {
		return []report.Result{sts(d, 1, 0, "*.wildcard.test", "other.test")}
	},
}, {
	what: "the domain in another case", domain: "folded.test", to: "FOLDED.Test",
	want: stsSucceeded,
}, {
	what: "the domain with U-labels", domain: "xn--bcher-kva.test", to: "bücher.test",
	want: stsSucceeded,
}, {
	what: "mail by way of a smart host: the report is for it", domain: "smarthost.test", to: "behind.test",
	want: stsSucceeded,
}, {
	what: "a policy of 400 patterns, whose datagram has 50 KB", domain: "many.test", with: testlab.With{MX: patterns(400, "*.many.test")},
	want: func(d *testlab.Domain) []report.Result {
		return []report.Result{sts(d, 1, 0, patterns(400, "*.many.test")...)}
	},
}, {
	// The reply with the policy's attributes would be longer than Postfix reads.
	what: "a policy of 1,000 patterns, of which Postfix gets no attributes", domain: "thousand.test", with: testlab.With{MX: patterns(1000, "*.thousand.test")},
	want: noPolicySucceeded,
}, {
	what: "no STARTTLS", domain: "clear.test", with: testlab.With{MailFault: testlab.NoSTARTTLS}, status: deferred,
	want: stsFailed(tlsrpt.StartTLSNotSupported, ""),
}, {
	what: "STARTTLS refused with 454", domain: "refused.test", with: testlab.With{MailFault: testlab.STARTTLSRefused}, status: deferred,
	want: stsFailed(tlsrpt.StartTLSNotSupported, ""),
}, {
	what: "a certificate for another name", domain: "wrong-name.test", with: testlab.With{MailCert: testlab.CertWrongName}, status: deferred,
	want: stsFailed(tlsrpt.CertificateHostMismatch, ""),
}, {
	what: "a certificate whose name is in the subject only, which Postfix accepts", domain: "no-name.test", with: testlab.With{MailCert: testlab.CertNoName},
	want: stsSucceeded,
}, {
	what: "an expired certificate", domain: "expired.test", with: testlab.With{MailCert: testlab.CertExpired}, status: deferred,
	want: stsFailed(tlsrpt.CertificateExpired, ""),
}, {
	what: "a certificate that is not valid yet", domain: "early.test", with: testlab.With{MailCert: testlab.CertNotYetValid}, status: deferred,
	want: stsFailed(tlsrpt.ValidationFailure, "certificate_is_not_yet_valid"), since311: "certificate_is_not_yet_valid_or_the_system_clock_is_incorrect",
}, {
	what: "a self-signed certificate", domain: "self-signed.test", with: testlab.With{MailCert: testlab.CertSelfSigned}, status: deferred,
	want: stsFailed(tlsrpt.CertificateNotTrusted, "self-signed_certificate"),
}, {
	what: "an unknown CA, whose root is sent", domain: "other-ca.test", with: testlab.With{MailCert: testlab.CertOtherCA}, status: deferred,
	want: stsFailed(tlsrpt.CertificateNotTrusted, "self-signed_certificate_in_certificate_chain"),
}, {
	what: "an unknown CA, which is not sent", domain: "no-chain.test", with: testlab.With{MailCert: testlab.CertNoIntermediate}, status: deferred,
	want: stsFailed(tlsrpt.CertificateNotTrusted, "unable_to_get_local_issuer_certificate"),
}, {
	what: "an aborted handshake", domain: "hang-up.test", with: testlab.With{MailFault: testlab.STARTTLSHangUp}, status: deferred,
	want: stsFailed(tlsrpt.ValidationFailure, "tls-handshake-failure"),
}, {
	what: "data that is no TLS", domain: "garbage.test", with: testlab.With{MailFault: testlab.STARTTLSGarbage}, status: deferred,
	want: stsFailed(tlsrpt.ValidationFailure, "tls-handshake-failure"),
}, {
	what: "TLS 1.1 at most", domain: "old.test", with: testlab.With{MailFault: testlab.MailOldTLS}, status: deferred,
	want: stsFailed(tlsrpt.ValidationFailure, "tls-handshake-failure"),
}, {
	what: "the first MX host fails, the second one succeeds", domain: "two.test", hosts: []string{"mx1.two.test", "mx2.two.test"},
	bend: func(d *testlab.Domain) error { return d.Mail[0].Present(testlab.CertExpired) },
	want: func(d *testlab.Domain) []report.Result {
		return []report.Result{with(sts(d, 1, 1, names(d)...), detail(d.Mail[0], tlsrpt.CertificateExpired, ""))}
	},
}, {
	what: "no policy", domain: "plain.test", with: noPolicy,
	want: noPolicySucceeded,
}, {
	what: "no policy and a self-signed certificate: success all the same", domain: "plain-self-signed.test",
	with: testlab.With{NoPolicy: true, MailCert: testlab.CertSelfSigned},
	want: noPolicySucceeded,
}, {
	// Postfix tells of a success without a policy. The daemon probes.
	what: "a testing policy and a self-signed certificate", domain: "testing.test",
	with: testlab.With{Mode: "testing", MailCert: testlab.CertSelfSigned},
	want: func(d *testlab.Domain) []report.Result {
		return append(noPolicySucceeded(d), with(inTesting(d, 0, 1), tlsrpt.Detail{Sessions: 1, Failure: tlsrpt.Failure{Result: tlsrpt.CertificateNotTrusted,
			MXHost: d.Mail[0].Name, ReceivingIP: d.Mail[0].Addr, Reason: "the certificate is self-signed"}}))
	},
	told: 1, ours: true,
}, {
	what: "a testing policy and a good certificate", domain: "testing-good.test", with: testlab.With{Mode: "testing"},
	want: func(d *testlab.Domain) []report.Result { return append(noPolicySucceeded(d), inTesting(d, 1, 0)) },
	told: 1, ours: true,
}, {
	what: "a policy of mode none", domain: "none.test", with: testlab.With{Mode: "none"},
	want: noPolicySucceeded,
}, {
	what: "no policy and no STARTTLS: nothing", domain: "plain-clear.test", with: testlab.With{NoPolicy: true, MailFault: testlab.NoSTARTTLS},
}, {
	what: "a testing policy and no STARTTLS: nothing", domain: "testing-clear.test", with: testlab.With{Mode: "testing", MailFault: testlab.NoSTARTTLS},
}, {
	what: "a domain that asks for no reports: nothing", domain: "silent.test", noReports: true,
}, {
	what: "a sender who does not want TLS: nothing", domain: "not-required.test", header: "TLS-Required: No\n", with: testlab.With{MailCert: testlab.CertSelfSigned},
}, {
	what: "a policy host with a certificate for another name", domain: "policy-name.test", with: testlab.With{PolicyCert: testlab.CertWrongName},
	want: notFetched(tlsrpt.STSWebPKIInvalid,
		`the policy host's certificate is for another name: at ADDRESS it is for "somebody-else.invalid", not for mta-sts.policy-name.test`), told: 1, ours: true,
}, {
	what: "a policy host that answers 404", domain: "policy-404.test", with: testlab.With{PolicyFault: testlab.Status404},
	want: notFetched(tlsrpt.STSPolicyFetchError, "the policy host answered with HTTP status 404"), told: 1, ours: true,
}, {
	what: "a policy that cannot be read", domain: "policy-broken.test", with: testlab.With{Policy: "version: STSv1\nmode: perhaps\n"},
	want: notFetched(tlsrpt.STSPolicyInvalid, `broken policy file: line 2: mode "perhaps" is none of enforce, testing, none`), told: 1, ours: true,
}}

// noDANERows are further rows for the map without DANE.
var noDANERows = []row{{
	what: "an MX host that the policy does not list: nothing", domain: "unlisted.test", with: unlisted, status: deferred,
}}

// daneRows are further rows for the map with DANE. signed.example is signed.
var daneRows = []row{{
	what: "DANE success", domain: "match.signed.example", with: testlab.With{MailCert: testlab.CertSelfSigned}, tlsa: matching,
	want: func(d *testlab.Domain) []report.Result {
		return []report.Result{tlsa(d.Mail[0], 1, 0, digest(d.Mail[0]))}
	},
}, {
	what: "DANE success without a policy", domain: "alone.signed.example", with: testlab.With{NoPolicy: true, MailCert: testlab.CertSelfSigned}, tlsa: matching,
	want: func(d *testlab.Domain) []report.Result {
		return []report.Result{tlsa(d.Mail[0], 1, 0, digest(d.Mail[0]))}
	},
}, {
	what: "DANE mismatch", domain: "mismatch.signed.example", tlsa: other, status: deferred,
	want: tlsaFailed(tlsrpt.CertificateNotTrusted, tlsrpt.ReasonDANENoMatch),
}, {
	what: "DANE mismatch without a policy", domain: "alone-mismatch.signed.example", with: noPolicy, tlsa: other, status: deferred,
	want: tlsaFailed(tlsrpt.CertificateNotTrusted, tlsrpt.ReasonDANENoMatch),
}, {
	what: "DANE without STARTTLS", domain: "clear.signed.example", with: testlab.With{MailFault: testlab.NoSTARTTLS}, tlsa: other, status: deferred,
	want: tlsaFailed(tlsrpt.StartTLSNotSupported, ""),
}, {
	what: "DANE and an aborted handshake", domain: "hang-up.signed.example", with: testlab.With{MailFault: testlab.STARTTLSHangUp}, tlsa: other, status: deferred,
	want: tlsaFailed(tlsrpt.ValidationFailure, "tls-handshake-failure"),
}, {
	what: "DANE: the first MX host fails, the second one succeeds", domain: "two.signed.example", hosts: []string{"mx1.two.signed.example", "mx2.two.signed.example"},
	tlsa: func(d *testlab.Domain) []string {
		return []string{at25(d.Mail[0]) + otherDigest, at25(d.Mail[1]) + digest(d.Mail[1])}
	},
	want: func(d *testlab.Domain) []report.Result {
		return []report.Result{
			with(tlsa(d.Mail[0], 0, 1, otherDigest), detail(d.Mail[0], tlsrpt.CertificateNotTrusted, tlsrpt.ReasonDANENoMatch)),
			tlsa(d.Mail[1], 1, 0, digest(d.Mail[1])),
		}
	},
}, {
	what: "a TLSA lookup that fails: nothing", domain: "broken.signed.example", tlsa: matching,
	broken: "_25._tcp.mx1.broken.signed.example TLSA", status: deferred,
}, {
	what: "a signed domain without TLSA records", domain: "absent.signed.example",
	want: stsSucceeded,
}, {
	// Postfix tells of nothing. For this map the daemon looks MX records up itself.
	what: "an MX host that the policy does not list", domain: "unlisted.test", with: unlisted, status: deferred,
	want: func(d *testlab.Domain) []report.Result {
		return []report.Result{with(sts(d, 0, 1, unlisted.MX...), tlsrpt.Detail{Sessions: 1, Failure: tlsrpt.Failure{
			Result: tlsrpt.ValidationFailure, MXHost: d.Mail[0].Name, Reason: tlsrpt.ReasonMXMismatch}})}
	},
	told: -1, ours: true,
}}

// play sends the messages of the rows and compares the reports.
func (w *world) play(t *testing.T, rows []row, domains []*testlab.Domain) {
	messages := make([]*stage.Message, len(rows))
	for i, r := range rows {
		messages[i] = w.postfix.SendWith(t, cmp.Or(r.to, r.domain), r.header)
	}
	for i, r := range rows {
		if o := messages[i].Outcome(t); o.Status != cmp.Or(r.status, "sent") {
			t.Errorf("%s: %s\n%s", r.what, o, o.Log)
		}
	}
	w.flush(t, "last.test")
	for i, r := range rows {
		t.Run(r.what, func(t *testing.T) { w.compare(t, r, domains[i]) })
	}
	w.checkSessions(t)
}

// compare compares a domain's report with the row.
func (w *world) compare(t *testing.T, r row, d *testlab.Domain) {
	var want []report.Result
	if r.want != nil {
		want = r.want(d)
	}
	if r.since311 != "" && w.postfix != nil && w.postfix.AtLeast("3.11.0") {
		want[0].Details[0].Reason = r.since311
	}
	told := r.told
	for _, p := range want {
		if r.told == 0 {
			told += int(p.Summary.Successful + p.Summary.Failed)
		}
	}
	w.sessions += max(told, 0)
	if r.ours {
		if os.Getenv(hasty) == "" {
			t.Skip("another program under test: it holds failures of policy fetches back for ten minutes")
		}
		await(t, "the daemon's own knowledge is in the report", func() bool { return len(w.report(t, d.Name)) >= len(want) })
	}
	w.midnight(t)
	got := w.report(t, d.Name)
	byPolicy := func(x, y report.Result) int {
		return cmp.Or(cmp.Compare(x.Policy.Type, y.Policy.Type), cmp.Compare(x.Policy.Domain, y.Policy.Domain))
	}
	slices.SortFunc(got, byPolicy)
	slices.SortFunc(want, byPolicy)
	if asText(got) != asText(want) {
		t.Errorf("%s, the report of %s:\n%swant:\n%s", w.mta.Name(), d.Name, asText(got), asText(want))
	}
}

// What rows want.

func stsSucceeded(d *testlab.Domain) []report.Result {
	return []report.Result{sts(d, 1, 0, names(d)...)}
}

func stsFailed(kind tlsrpt.ResultType, reason string) func(*testlab.Domain) []report.Result {
	return func(d *testlab.Domain) []report.Result {
		return []report.Result{with(sts(d, 0, 1, names(d)...), detail(d.Mail[0], kind, reason))}
	}
}

func tlsaFailed(kind tlsrpt.ResultType, reason string) func(*testlab.Domain) []report.Result {
	return func(d *testlab.Domain) []report.Result {
		return []report.Result{with(tlsa(d.Mail[0], 0, 1, otherDigest), detail(d.Mail[0], kind, reason))}
	}
}

func noPolicySucceeded(d *testlab.Domain) []report.Result {
	return []report.Result{{Policy: tlsrpt.Policy{Type: tlsrpt.TypeNone, Strings: []string{}, Domain: d.Name},
		Summary: report.Summary{Successful: 1}, Details: []tlsrpt.Detail{}}}
}

// notFetched is what Postfix says, and what the daemon adds. ADDRESS is the policy host's.
func notFetched(kind tlsrpt.ResultType, reason string) func(*testlab.Domain) []report.Result {
	return func(d *testlab.Domain) []report.Result {
		return append(noPolicySucceeded(d), report.Result{
			Policy:  tlsrpt.Policy{Type: tlsrpt.TypeSTS, Strings: []string{}, Domain: d.Name},
			Summary: report.Summary{Failed: 1}, Details: []tlsrpt.Detail{{Sessions: 1, Failure: tlsrpt.Failure{Result: kind,
				Reason: strings.ReplaceAll(reason, "ADDRESS", d.Policy.Server.Addr.String())}}}})
	}
}

// sts is a domain's enforced policy with these patterns.
func sts(d *testlab.Domain, successful, failed uint64, patterns ...string) report.Result {
	text := strings.TrimSuffix(testlab.PolicyText("enforce", day7, patterns...), "\r\n")
	return report.Result{Policy: tlsrpt.Policy{Type: tlsrpt.TypeSTS, Strings: strings.Split(text, "\r\n"), Domain: d.Name, MXHosts: patterns},
		Summary: report.Summary{Successful: successful, Failed: failed}, Details: []tlsrpt.Detail{}}
}

// inTesting is a domain's testing policy.
func inTesting(d *testlab.Domain, successful, failed uint64) report.Result {
	r := sts(d, successful, failed, names(d)...)
	r.Policy.Strings[1] = "mode: testing"
	return r
}

// tlsa is the TLSA record of an MX host, which is the policy domain (RFC 8460, 1.1).
func tlsa(m *testlab.MailHost, successful, failed uint64, record string) report.Result {
	return report.Result{Policy: tlsrpt.Policy{Type: tlsrpt.TypeTLSA, Strings: []string{record}, Domain: m.Name},
		Summary: report.Summary{Successful: successful, Failed: failed}, Details: []tlsrpt.Detail{}}
}

func with(r report.Result, details ...tlsrpt.Detail) report.Result {
	r.Details = details
	return r
}

// detail is one session that failed at a host.
func detail(m *testlab.MailHost, kind tlsrpt.ResultType, reason string) tlsrpt.Detail {
	return tlsrpt.Detail{Sessions: 1, Failure: tlsrpt.Failure{Result: kind, SendingIP: netip.MustParseAddr("127.0.0.1"),
		MXHost: m.Name, HELO: m.Name, ReceivingIP: m.Addr, Reason: reason}}
}

// patterns returns n MX patterns, with the last one.
func patterns(n int, last string) (mx []string) {
	for i := range n - 1 {
		mx = append(mx, fmt.Sprintf("mx%03d.%s.example", i, strings.Repeat("x", 43)))
	}
	return append(mx, last)
}

// names returns the names of a domain's MX hosts.
func names(d *testlab.Domain) (names []string) {
	for _, m := range d.Mail {
		names = append(names, m.Name)
	}
	return names
}

const otherDigest = "3 1 1 0202020202020202020202020202020202020202020202020202020202020202"

// digest is the data of a TLSA record that matches a host's certificate, as RFC 8460, 4.5
// has it.
func digest(m *testlab.MailHost) string {
	record, err := m.TLSA(3, 1, 1)
	if err != nil {
		return err.Error()
	}
	fields := strings.Fields(record)
	return strings.ToUpper(strings.Join(fields[len(fields)-4:], " "))
}

func at25(m *testlab.MailHost) string { return fmt.Sprintf("_25._tcp.%s. 300 IN TLSA ", m.Name) }

func matching(d *testlab.Domain) []string { return []string{at25(d.Mail[0]) + digest(d.Mail[0])} }
func other(d *testlab.Domain) []string    { return []string{at25(d.Mail[0]) + otherDigest} }
