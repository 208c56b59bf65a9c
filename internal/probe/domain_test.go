package probe_test

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/probe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

// A testCase is a domain, and what a probe says of it.
type testCase struct {
	name    string
	domain  string
	hosts   []string // MX hosts; empty: the one of With
	with    testlab.With
	change  func(t *testing.T, lab *testlab.T, d *testlab.Domain)
	nextHop string

	want   probe.Verdict
	why    string                   // part of the reason
	result tlsrpt.ResultType        // begins the reason after the host
	policy probe.Verdict            // under_policy; empty: as want
	dane   probe.Verdict            // under_dane; empty: does not apply
	maps   map[string]probe.Verdict // with other maps
}

const (
	yes  = probe.Delivered
	no   = probe.Waits
	open = probe.NotKnown
	none = probe.DoesNotApply
)

var cases = []testCase{
	{name: "an honest domain", domain: "honest.test", want: yes, why: "certificate is valid until"},
	{name: "no STARTTLS", domain: "clear.test", with: testlab.With{MailFault: testlab.NoSTARTTLS}, want: no, result: tlsrpt.StartTLSNotSupported},
	{name: "STARTTLS refused", domain: "refused.test", with: testlab.With{MailFault: testlab.STARTTLSRefused}, want: no, result: tlsrpt.StartTLSNotSupported, why: "454 4.7.0"},
	{name: "garbage for TLS", domain: "garbage.test", with: testlab.With{MailFault: testlab.STARTTLSGarbage}, want: no, result: tlsrpt.ValidationFailure},
	{name: "hang-up for TLS", domain: "hangup.test", with: testlab.With{MailFault: testlab.STARTTLSHangUp}, want: no, result: tlsrpt.ValidationFailure},
	{name: "TLS 1.1", domain: "old.test", with: testlab.With{MailFault: testlab.MailOldTLS}, want: no, result: tlsrpt.ValidationFailure},
	{name: "a greeting that refuses", domain: "closed.test", with: testlab.With{MailFault: testlab.GreetingRefused}, want: no, why: "421"},
	{name: "expired", domain: "expired.test", with: testlab.With{MailCert: testlab.CertExpired}, want: no, result: tlsrpt.CertificateExpired},
	{name: "not yet valid", domain: "early.test", with: testlab.With{MailCert: testlab.CertNotYetValid}, want: no, result: tlsrpt.CertificateNotTrusted, why: "not valid before"},
	{name: "another name", domain: "name.test", with: testlab.With{MailCert: testlab.CertWrongName}, want: no, result: tlsrpt.CertificateHostMismatch, why: "somebody-else.invalid"},
	{name: "no DNS name", domain: "cn.test", with: testlab.With{MailCert: testlab.CertNoName}, want: no, result: tlsrpt.CertificateHostMismatch},
	{name: "self-signed", domain: "self.test", with: testlab.With{MailCert: testlab.CertSelfSigned}, want: no, result: tlsrpt.CertificateNotTrusted, why: "self-signed"},
	{name: "another authority", domain: "ca.test", with: testlab.With{MailCert: testlab.CertOtherCA}, want: no, result: tlsrpt.CertificateNotTrusted, why: "Untrusted Root"},
	{name: "the intermediate is missing", domain: "chain.test", with: testlab.With{MailCert: testlab.CertNoIntermediate}, want: no, result: tlsrpt.CertificateNotTrusted},
	{name: "nothing listens", domain: "down.test", change: func(_ *testing.T, _ *testlab.T, d *testlab.Domain) { d.Mail[0].Down() }, want: no, why: "connection refused"},
	{name: "an unlisted host", domain: "unlisted.test", with: testlab.With{MX: []string{"mx1.elsewhere.test"}}, want: no, why: "does not list it",
		maps: map[string]probe.Verdict{"postfix": no, "exim": no}},
	{name: "a wildcard", domain: "wild.test", with: testlab.With{MX: []string{"*.wild.test"}}, want: yes},
	{name: "a wildcard is one label to all but an older Postfix", domain: "deep.test", hosts: []string{"mx.two.deep.test"}, with: testlab.With{MX: []string{"*.deep.test"}}, want: no,
		maps: map[string]probe.Verdict{"postfix": yes, "exim": no, "sts": no}},
	{name: "another listed host's certificate", domain: "swap.test", hosts: []string{"mx1.swap.test"}, with: testlab.With{MX: []string{"mx1.swap.test", "mx2.swap.test"}},
		change: func(t *testing.T, lab *testlab.T, d *testlab.Domain) {
			d.Mail[0].PresentFor(testlab.CertGood, "mx2.swap.test")
		}, want: no, result: tlsrpt.CertificateHostMismatch,
		maps: map[string]probe.Verdict{"postfix": yes, "exim": no, "sts": no}},
	{name: "the second host is good", domain: "two.test", hosts: []string{"mx1.two.test", "mx2.two.test"},
		change: func(t *testing.T, lab *testlab.T, d *testlab.Domain) { d.Mail[0].Present(testlab.CertSelfSigned) }, want: yes, why: "mx2.two.test: "},
	{name: "no policy", domain: "plain.test", with: testlab.With{NoPolicy: true, MailFault: testlab.NoSTARTTLS}, want: yes, policy: none},
	{name: "mode none", domain: "none.test", with: testlab.With{Mode: "none", MailCert: testlab.CertSelfSigned}, want: yes, policy: none},
	{name: "an exempt domain", domain: "exempt.test", with: testlab.With{MailCert: testlab.CertSelfSigned}, want: yes, policy: no},
	{name: "no usable pattern", domain: "keyword.test", with: testlab.With{MX: []string{"hostname"}}, want: no, why: "the MTA can use none of its mx patterns"},
	{name: "the MX lookup fails", domain: "mxfail.test", change: func(_ *testing.T, lab *testlab.T, _ *testlab.Domain) {
		lab.DNS.Break("mxfail.test", "MX", testlab.ServFail)
	}, want: no, why: "MX lookup"},
	{name: "null MX", domain: "null.test", change: func(_ *testing.T, lab *testlab.T, _ *testlab.Domain) { lab.Set("null.test. 300 IN MX 0 .") }, want: open, why: "null MX",
		maps: map[string]probe.Verdict{"exim": no}},
	{name: "a policy that cannot be fetched", domain: "nofetch.test", with: testlab.With{PolicyFault: testlab.Status404, MailFault: testlab.NoSTARTTLS}, want: yes, policy: none},

	{name: "DANE-EE needs no name and no date", domain: "ee.signed.example", with: testlab.With{MailCert: testlab.CertExpired},
		change: tlsa(3, 1, 1), want: yes, why: "matches its TLSA records", policy: no, dane: yes},
	{name: "DANE-EE by the whole certificate", domain: "ee2.signed.example", with: testlab.With{MailCert: testlab.CertSelfSigned}, change: tlsa(3, 0, 2), want: yes, policy: no, dane: yes},
	{name: "DANE-EE by the whole key", domain: "ee3.signed.example", with: testlab.With{MailCert: testlab.CertSelfSigned}, change: tlsa(3, 1, 0), want: yes, policy: no, dane: yes},
	{name: "DANE-TA names the authority", domain: "ta.signed.example", with: testlab.With{MailCert: testlab.CertOtherCA}, change: tlsa(2, 0, 1), want: yes, policy: no, dane: yes},
	{name: "DANE-TA needs the name", domain: "taname.signed.example", with: testlab.With{MailCert: testlab.CertWrongName}, change: tlsa(2, 1, 1), want: no, result: tlsrpt.CertificateHostMismatch, dane: no},
	{name: "DANE-TA needs the dates", domain: "tadate.signed.example", with: testlab.With{MailCert: testlab.CertExpired}, change: tlsa(2, 1, 1), want: no, result: tlsrpt.CertificateExpired, dane: no},
	{name: "DANE-TA with the authority in the DNS only", domain: "tadns.signed.example", change: func(t *testing.T, lab *testlab.T, d *testlab.Domain) {
		lab.Set(matching(t, d.Mail[0], 2, 0, 0))
		c, err := lab.Issue(testlab.CertGood, d.Mail[0].Name)
		if err != nil {
			t.Fatal(err)
		}
		c.Certificate = c.Certificate[:1]
		d.Mail[0].PresentCertificate(c)
	}, want: yes, dane: yes},
	{name: "DANE-TA is not the host's own certificate", domain: "talone.signed.example", with: testlab.With{MailCert: testlab.CertSelfSigned}, change: tlsa(2, 0, 1), want: no, policy: no, dane: no},
	{name: "TLSA records that do not match", domain: "mismatch.signed.example", change: tlsaOther, want: no, result: tlsrpt.CertificateNotTrusted, why: "no TLSA record matches", policy: yes, dane: no,
		maps: map[string]probe.Verdict{"postfix-tlsrpt": yes, "exim": no}},
	{name: "DANE without a policy", domain: "alone.signed.example", with: testlab.With{NoPolicy: true}, change: tlsaOther, want: no, policy: none, dane: no,
		maps: map[string]probe.Verdict{"postfix-tlsrpt": yes}},
	{name: "DANE at some hosts: to Postfix the others do not count", domain: "some.signed.example", hosts: []string{"mx1.some.signed.example", "mx2.some.signed.example"},
		change: tlsaOther, want: no, why: "mx1.some", policy: yes, dane: yes, maps: map[string]probe.Verdict{"exim": yes}},
	{name: "TLSA records that are not usable", domain: "unusable.signed.example", change: func(_ *testing.T, lab *testlab.T, d *testlab.Domain) {
		lab.Set("_25._tcp." + d.Mail[0].Name + ". 300 IN TLSA 1 1 1 " + strings.Repeat("02", 32))
	}, want: yes, dane: yes},
	{name: "a TLSA lookup that fails", domain: "bogus.signed.example", change: func(_ *testing.T, lab *testlab.T, d *testlab.Domain) {
		lab.DNS.Break("_25._tcp."+d.Mail[0].Name, "TLSA", testlab.ServFail)
	}, want: no, result: tlsrpt.DNSSECInvalid, policy: yes, dane: no},
	{name: "an unsigned MX that was forged", domain: "forged.test", hosts: []string{"mx1.attacker.example"}, with: testlab.With{MX: []string{"mx1.forged.test"}},
		change: tlsa(3, 1, 1), want: no, why: "does not list it", dane: yes},
	{name: "a smart host in brackets", domain: "smart.test", nextHop: "[mx1.smart.test]", change: func(t *testing.T, lab *testlab.T, d *testlab.Domain) {
		lab.Domain("mx1.smart.test", testlab.With{Mail: d.Mail})
		d.Mail[0].Present(testlab.CertSelfSigned)
	}, want: no, result: tlsrpt.CertificateNotTrusted},
}

func tlsa(usage, selector, matchingType int) func(*testing.T, *testlab.T, *testlab.Domain) {
	return func(t *testing.T, lab *testlab.T, d *testlab.Domain) {
		lab.Set(matching(t, d.Mail[0], usage, selector, matchingType))
	}
}

func tlsaOther(_ *testing.T, lab *testlab.T, d *testlab.Domain) { lab.Set(other(d.Mail[0])) }

func TestTheVerdictIsThatOfRFC8461And7672(t *testing.T) {
	lab := newLab(t)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for _, name := range c.hosts {
				c.with.Mail = append(c.with.Mail, lab.MailHost(name, ""))
			}
			d := lab.Domain(c.domain, c.with)
			if c.change != nil {
				c.change(t, lab, d)
			}
			if c.nextHop == "" {
				c.nextHop = c.domain
			}
			r := probe.New(options(t, lab, "postfix-dane-tlsrpt")).Domain(t.Context(), c.nextHop)
			if c.policy == "" {
				c.policy = c.want
			}
			if c.dane == "" {
				c.dane = none
			}
			if r.Verdict != c.want || r.UnderPolicy != c.policy || r.UnderDANE != c.dane || !strings.Contains(r.Reason, c.why) || !strings.Contains(r.Reason, string(c.result)) {
				t.Errorf("%s under policy, %s under DANE: %s because %s\nwant %s, %s: %s because %s %s",
					r.UnderPolicy, r.UnderDANE, r.Verdict, r.Reason, c.policy, c.dane, c.want, c.result, c.why)
			}
			for m, want := range c.maps {
				if r := probe.New(options(t, lab, m)).Domain(t.Context(), c.nextHop); r.Verdict != want {
					t.Errorf("map %s: %s because %s, want %s", m, r.Verdict, r.Reason, want)
				}
			}
			if want := c.maps["postfix"]; want != "" && want != c.want && r.OlderPostfix != want {
				t.Errorf("an older Postfix: %q, want %q", r.OlderPostfix, want)
			}
			for _, m := range d.Mail {
				if len(m.Messages()) > 0 || m.Asked("MAIL") > 0 {
					t.Error("a probe began a mail")
				}
			}
		})
	}
}

func TestATestingPolicyIsJudgedAsIfItWereEnforced(t *testing.T) {
	lab := newLab(t)
	lab.Domain("good.test", testlab.With{Mode: "testing"})
	lab.Domain("bad.test", testlab.With{Mode: "testing", MailCert: testlab.CertSelfSigned})
	p := probe.New(options(t, lab, "postfix-dane-tlsrpt"))
	for domain, want := range map[string]probe.Verdict{"good.test": yes, "bad.test": no} {
		r := p.Domain(t.Context(), domain)
		if r.Verdict != yes || r.UnderPolicy != none || r.IfEnforced != want || r.Policy != "testing" {
			t.Errorf("%s: %+v", domain, r)
		}
	}
}

func TestASessionIsThatOfAnMTA(t *testing.T) {
	lab := newLab(t)
	d := lab.Domain("honest.test", testlab.With{})
	probe.New(options(t, lab, "postfix-dane-tlsrpt")).Domain(t.Context(), "honest.test")
	if err := lab.Await(t.Context(), func() bool { return len(d.Mail[0].Sessions()) > 0 }); err != nil {
		t.Fatal(err)
	}
	s := d.Mail[0].Sessions()[0]
	if s.Err != "" || !s.TLS || s.SNI != "mx1.honest.test" || d.Mail[0].Asked("EHLO") != 1 || d.Mail[0].Asked("QUIT") != 1 {
		t.Errorf("%+v, EHLO %d times", s, d.Mail[0].Asked("EHLO"))
	}
}

func TestDomainsShareTheSessionOfAHost(t *testing.T) {
	lab := newLab(t)
	shared := lab.MailHost("mx.hoster.test", "")
	var domains []string
	for _, name := range []string{"a.test", "b.test", "c.test"} {
		lab.Domain(name, testlab.With{Mail: []*testlab.MailHost{shared}})
		domains = append(domains, name)
	}
	lab.Domain("plain.test", testlab.With{NoPolicy: true})
	o := options(t, lab, "postfix-dane-tlsrpt")
	o.Sparing = true
	var table probe.Table
	err := probe.New(o).Domains(t.Context(), append(domains, "plain.test"), func(r *probe.Result) error {
		if line := table.Add(r); line != "" {
			t.Error(line)
		}
		return nil
	})
	if err != nil || table.Domains != 4 || table.Enforced != 3 || table.Waiting+table.Unknown > 0 {
		t.Errorf("%v, %s", err, &table)
	}
	if n := shared.Connections(); n != 1 {
		t.Errorf("%d connections to the host that the domains share", n)
	}
}

func TestTheJSONHasAnObjectAHostAndTheDomainLast(t *testing.T) {
	lab := newLab(t)
	lab.Domain("two.test", testlab.With{Mail: []*testlab.MailHost{lab.MailHost("mx1.two.test", ""), lab.MailHost("mx2.two.test", "")}})
	var out bytes.Buffer
	if err := probe.New(options(t, lab, "postfix-dane-tlsrpt")).Domain(t.Context(), "two.test").WriteJSON(&out); err != nil {
		t.Fatal(err)
	}
	var keys [][]string
	for line := range strings.Lines(out.String()) {
		var object map[string]any
		if err := json.Unmarshal([]byte(line), &object); err != nil {
			t.Fatal(err)
		}
		var k []string
		for _, key := range []string{"domain", "host", "certificate", "verdict", "under_policy", "under_dane", "if_enforced", "reason", "hosts"} {
			if _, ok := object[key]; ok {
				k = append(k, key)
			}
		}
		keys = append(keys, k)
	}
	host := []string{"domain", "host", "certificate", "under_policy", "under_dane"}
	if len(keys) != 3 || !slices.Equal(keys[0], host) || !slices.Equal(keys[1], host) ||
		!slices.Equal(keys[2], []string{"domain", "verdict", "under_policy", "under_dane", "if_enforced", "reason", "hosts"}) {
		t.Errorf("%q\n%s", keys, out.String())
	}
}
