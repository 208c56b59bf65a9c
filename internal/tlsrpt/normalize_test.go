package tlsrpt_test

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

func TestAnEventIsBroughtIntoTheFormOfAReport(t *testing.T) {
	failed := func(domain string, p tlsrpt.Policy, f ...tlsrpt.Failure) tlsrpt.Event {
		return tlsrpt.Event{Domain: domain, Policy: p, Failed: true, Failures: f}
	}
	sts, tlsa := tlsrpt.Policy{Type: tlsrpt.TypeSTS, Domain: "good.test"}, tlsrpt.Policy{Type: tlsrpt.TypeTLSA, Domain: "mx.good.test"}
	for _, tt := range []struct {
		what      string
		got, want tlsrpt.Event
	}{
		{"a domain is folded and loses its dot",
			tlsrpt.Event{Domain: "GOOD.Test.", Policy: tlsrpt.Policy{Type: tlsrpt.TypeNone, Domain: "GOOD.Test"}},
			tlsrpt.Event{Domain: "good.test", Policy: tlsrpt.Policy{Type: tlsrpt.TypeNone, Domain: "good.test"}}},
		{"a domain has A-labels",
			tlsrpt.Event{Domain: "Bücher.example", Policy: tlsrpt.Policy{Type: tlsrpt.TypeSTS}},
			tlsrpt.Event{Domain: "xn--bcher-kva.example", Policy: tlsrpt.Policy{Type: tlsrpt.TypeSTS, Domain: "xn--bcher-kva.example"}}},
		{"the policy domain of tlsa stays the MX host", failed("GOOD.test", tlsa), failed("good.test", tlsa)},
		{"a success has no failures",
			tlsrpt.Event{Domain: "good.test", Policy: sts, Failures: []tlsrpt.Failure{{Result: tlsrpt.CertificateExpired}}},
			tlsrpt.Event{Domain: "good.test", Policy: sts}},
		{"a self-signed certificate is not trusted",
			failed("good.test", sts, tlsrpt.Failure{Result: tlsrpt.ValidationFailure, Reason: "self-signed_certificate"}),
			failed("good.test", sts, tlsrpt.Failure{Result: tlsrpt.CertificateNotTrusted, Reason: "self-signed_certificate"})},
		{"a certificate of an unknown CA is not trusted",
			failed("good.test", sts, tlsrpt.Failure{Result: tlsrpt.ValidationFailure, Reason: "unable_to_get_local_issuer_certificate"}),
			failed("good.test", sts, tlsrpt.Failure{Result: tlsrpt.CertificateNotTrusted, Reason: "unable_to_get_local_issuer_certificate"})},
		{"an aborted handshake stays a validation failure",
			failed("good.test", sts, tlsrpt.Failure{Result: tlsrpt.ValidationFailure, Reason: "tls-handshake-failure"}),
			failed("good.test", sts, tlsrpt.Failure{Result: tlsrpt.ValidationFailure, Reason: "tls-handshake-failure"})},
		{"a DANE mismatch has a reason",
			failed("good.test", tlsa, tlsrpt.Failure{Result: tlsrpt.CertificateNotTrusted}),
			failed("good.test", tlsa, tlsrpt.Failure{Result: tlsrpt.CertificateNotTrusted, Reason: "dane-no-match"})},
		{"a reason is kept under DANE",
			failed("good.test", tlsa, tlsrpt.Failure{Result: tlsrpt.CertificateNotTrusted, Reason: "other"}),
			failed("good.test", tlsa, tlsrpt.Failure{Result: tlsrpt.CertificateNotTrusted, Reason: "other"})},
		{"no reason is made up under MTA-STS",
			failed("good.test", sts, tlsrpt.Failure{Result: tlsrpt.CertificateNotTrusted}),
			failed("good.test", sts, tlsrpt.Failure{Result: tlsrpt.CertificateNotTrusted})},
		{"what fits nowhere is a validation failure",
			failed("good.test", sts, tlsrpt.Failure{Result: "sunspots", Reason: "x"}),
			failed("good.test", sts, tlsrpt.Failure{Result: tlsrpt.ValidationFailure, Reason: "x"})},
		{"only MTA-STS has MX patterns",
			tlsrpt.Event{Domain: "good.test", Policy: tlsrpt.Policy{Type: tlsrpt.TypeTLSA, MXHosts: []string{"a.test"}}},
			tlsrpt.Event{Domain: "good.test", Policy: tlsrpt.Policy{Type: tlsrpt.TypeTLSA, Domain: "good.test"}}},
	} {
		if ok := tt.got.Normalize(); !ok || !reflect.DeepEqual(tt.got, tt.want) {
			t.Errorf("%s:\n%+v, %v\nnot\n%+v", tt.what, tt.got, ok, tt.want)
		}
	}
}

func TestAnEventOfNoMailDomainDoesNotCount(t *testing.T) {
	for _, domain := range []string{"", ".", "test", "../x", "a/b.test", "a.test\r\nb", "a.test\x00", "192.0.2.1", "[192.0.2.1]",
		"a..test", "-a.test", "\xff.test", "a b.test", strings.Repeat("a.", 127) + "test", strings.Repeat("ü", 600) + ".test"} {
		e := tlsrpt.Event{Domain: domain, Policy: tlsrpt.Policy{Type: tlsrpt.TypeSTS}}
		if e.Normalize() {
			t.Errorf("%q counts as %q", domain, e.Domain)
		}
		if e = (tlsrpt.Event{Domain: "a.test", Policy: tlsrpt.Policy{Domain: domain}}); domain != "" && e.Normalize() {
			t.Errorf("the policy of %q counts", domain)
		}
	}
}

func TestTheHELOIsTheFirstWordOfTheReply(t *testing.T) {
	for reply, want := range map[string]string{
		"250-mx.x.test\r\n250 STARTTLS":                  "mx.x.test",
		"250 MX.x.test":                                  "mx.x.test",
		"250-mx.x.test at your service, [192.0.2.1]\r\n": "mx.x.test",
		"mx.x.test": "mx.x.test",
		"localhost": "localhost",
		"250-mx.x.test Gr\xfc\xdfe\r\n250 STARTTLS": "mx.x.test",
		"250":                 "", // a number, no name
		"250-":                "",
		"250-[192.0.2.1]\r\n": "",
		"250-192.0.2.1 hello": "",
		"":                    "",
		"250-<script>\r\n":    "",
		"250-a\x00.test":      "",
		"250-" + strings.Repeat("a.", 127) + "test": "",
		"250-m\u00fcller.test\r\n250 STARTTLS":      "xn--mller-kva.test",
	} {
		if got := tlsrpt.HELO(reply); got != want {
			t.Errorf("%q: %q", reply, got)
		}
	}
}

func TestAddressesAreParsed(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "2001:DB8::1": "2001:db8::1", "::ffff:192.0.2.1": "192.0.2.1",
		"": "invalid IP", "fe80::1%eth0": "invalid IP", "0.0.0.0": "invalid IP", "::": "invalid IP", "::ffff:0.0.0.0": "invalid IP",
		"192.0.2.1:25": "invalid IP", "IPv6:::1": "invalid IP", "x": "invalid IP",
	} {
		if got := tlsrpt.Address(text); got.String() != want || got == (netip.Addr{}) != (want == "invalid IP") {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestPatternsAreHostNamesOrStandForOneLabel(t *testing.T) {
	for pattern, want := range map[string]string{
		"MX.test": "mx.test", "*.Example.net": "*.example.net", "*.example.net.": "*.example.net", "mail": "mail",
		"*": "", "*.": "", "a.*.net": "", "**.net": "", ".net": "", "": "", "*.192.0.2.1": "",
	} {
		if got, ok := tlsrpt.Pattern(pattern); ok != (want != "") || ok && got != want {
			t.Errorf("%q: %q, %v", pattern, got, ok)
		}
	}
}

func TestTextOfReportsIsPrintableAndShort(t *testing.T) {
	for s, want := range map[string][2]bool{ // reason, policy string
		"": {true, true}, "3 1 1 C85F": {true, true}, strings.Repeat("x", 256): {true, true}, strings.Repeat("x", 257): {},
		"a\r\nb": {}, "a\x00": {}, "\xff": {}, "\x1b[2J": {}, "x: ü": {false, true}, "\u202e": {},
	} {
		if got := [2]bool{tlsrpt.Reason(s), tlsrpt.PolicyString(s)}; got != want {
			t.Errorf("%q: %v", s, got)
		}
	}
}

func TestADayIsOfUTC(t *testing.T) {
	zone := time.FixedZone("", 5*60*60)
	d := tlsrpt.DayOf(time.Date(2026, 12, 1, 4, 59, 59, 0, zone))
	if d != "2026-11-30" || d.Begin() != time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC) || d.End() != time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC) {
		t.Error(d, d.Begin(), d.End())
	}
	if got, want := d.Begin(), tlsrpt.DayOf(d.End()).Begin(); want.Sub(got) != 24*time.Hour {
		t.Error(got, want)
	}
	if !tlsrpt.Day("x").Begin().IsZero() {
		t.Error("x is a day")
	}
}
