package collect_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/collect"
)

// Datagrams as libtlsrpt writes them: 0.5.0rc1 without dpv, 0.5.1 with it.
const (
	head    = `"d": "good.test","pr": "v=TLSRPTv1;rua=mailto:r@good.test","policies":[{"policy-type":2,"policy-domain": "good.test","policy-string":["version: STSv1","mode: enforce","mx: mx.good.test","max_age: 604800"],"mx-host":["mx.good.test"]`
	tail    = `,"t":0,"f":0}]}`
	success = "{" + head + tail
	newer   = `{"dpv": "1",` + head + tail
)

// failing is a failed session under MTA-STS with a code and a reason code.
func failing(code int, reason string) string {
	if reason != "" {
		reason = `,"f": "` + reason + `"`
	}
	return fmt.Sprintf("{"+head+`,"failure-details":[{"c":%d,"s": "192.0.2.9","n": "mx.good.test","h": "250-mx.good.test\r\n250-PIPELINING\r\n250 STARTTLS","r": "192.0.2.1"%s}],"t":1,"f":1}]}`, code, reason)
}

func parse(t testing.TB, datagram string) ([]tlsrpt.Event, map[string]uint64) {
	t.Helper()
	p := collect.Parser{Drops: new(collect.Drops)}
	events := p.Parse([]byte(datagram))
	counts := p.Drops.Counts()
	maps.DeleteFunc(counts, func(_ string, n uint64) bool { return n == 0 })
	return events, counts
}

func policy() tlsrpt.Policy {
	return tlsrpt.Policy{Type: tlsrpt.TypeSTS, Domain: "good.test",
		Strings: []string{"version: STSv1", "mode: enforce", "mx: mx.good.test", "max_age: 604800"}, MXHosts: []string{"mx.good.test"}}
}

func failure(result tlsrpt.ResultType, reason string) tlsrpt.Failure {
	return tlsrpt.Failure{Result: result, SendingIP: netip.MustParseAddr("192.0.2.9"), MXHost: "mx.good.test", HELO: "mx.good.test",
		ReceivingIP: netip.MustParseAddr("192.0.2.1"), Reason: reason}
}

// The table of what real Postfixes send.
func TestWhatPostfixSendsIsRead(t *testing.T) {
	sts := func(f ...tlsrpt.Failure) tlsrpt.Event {
		return tlsrpt.Event{Domain: "good.test", Policy: policy(), Failed: len(f) > 0, Failures: f}
	}
	dane := func(f ...tlsrpt.Failure) tlsrpt.Event {
		return tlsrpt.Event{Domain: "dane.test", Failed: len(f) > 0, Failures: f,
			Policy: tlsrpt.Policy{Type: tlsrpt.TypeTLSA, Domain: "mx.dane.test", Strings: []string{"3 1 1 C85F"}}}
	}
	const daneHead = `{"d": "dane.test","pr": "v=TLSRPTv1;rua=mailto:r@dane.test","policies":[{"policy-type":1,"policy-domain": "mx.dane.test","policy-string":["3 1 1 C85F"]`
	for _, tt := range []struct {
		what, datagram string
		want           tlsrpt.Event
	}{
		{"success under an enforced policy, 0.5.0rc1", success, sts()},
		{"success under an enforced policy, 0.5.1", newer, sts()},
		{"STARTTLS missing", failing(201, ""), sts(failure(tlsrpt.StartTLSNotSupported, ""))},
		{"certificate for another name", failing(202, ""), sts(failure(tlsrpt.CertificateHostMismatch, ""))},
		{"expired", failing(204, ""), sts(failure(tlsrpt.CertificateExpired, ""))},
		{"self-signed", failing(205, "self-signed_certificate"), sts(failure(tlsrpt.CertificateNotTrusted, "self-signed_certificate"))},
		{"unknown CA", failing(205, "unable_to_get_local_issuer_certificate"),
			sts(failure(tlsrpt.CertificateNotTrusted, "unable_to_get_local_issuer_certificate"))},
		{"handshake aborted", failing(205, "tls-handshake-failure"), sts(failure(tlsrpt.ValidationFailure, "tls-handshake-failure"))},
		{"policy fetch", failing(301, ""), sts(failure(tlsrpt.STSPolicyFetchError, ""))},
		{"a code of a later version", failing(399, "x"), sts(failure(tlsrpt.ValidationFailure, "x"))},
		{"DANE success", daneHead + `,"t":0,"f":0}]}`, dane()},
		{"DANE mismatch", daneHead + `,"failure-details":[{"c":203,"n": "mx.dane.test"}],"t":1,"f":1}]}`,
			dane(tlsrpt.Failure{Result: tlsrpt.CertificateNotTrusted, MXHost: "mx.dane.test", Reason: "dane-no-match"})},
		{"DANE, no STARTTLS", daneHead + `,"failure-details":[{"c":201}],"t":1,"f":1}]}`, dane(tlsrpt.Failure{Result: tlsrpt.StartTLSNotSupported})},
		{"no policy", `{"d": "GOOD.Test","pr": "v=TLSRPTv1;","policies":[{"policy-type":9,"t":0,"f":0}]}`,
			tlsrpt.Event{Domain: "good.test", Policy: tlsrpt.Policy{Type: tlsrpt.TypeNone, Domain: "good.test"}}},
		{"f beats t: failed", strings.Replace(success, `"f":0`, `"f":1`, 1), tlsrpt.Event{Domain: "good.test", Policy: policy(), Failed: true}},
		{"f beats t: success", strings.Replace(failing(201, ""), `"f":1`, `"f":0`, 1), sts()},
		{"t where there is no f", strings.Replace(failing(201, ""), `,"f":1`, ``, 1), sts(failure(tlsrpt.StartTLSNotSupported, ""))},
		{"keys of a later version, white space, another order",
			" {\"policies\" :\n[ {\"f\":0, \"new\": [1, -2.5e3, {\"x\": null}, true], \"policy-type\": 9} ], \"n\\u0065w\":{}, \"d\": \"good\\u002etest\"}\r\n",
			tlsrpt.Event{Domain: "good.test", Policy: tlsrpt.Policy{Type: tlsrpt.TypeNone, Domain: "good.test"}}},
		{"a greeting in Latin-1", strings.Replace(failing(201, ""), `250-mx.good.test\r\n`, "250-mx.good.test Gr\xfc\xdfe\\r\\n", 1),
			sts(failure(tlsrpt.StartTLSNotSupported, ""))},
	} {
		got, drops := parse(t, tt.datagram)
		for i := range got { // an empty list is none
			if len(got[i].Failures) == 0 {
				got[i].Failures = nil
			}
		}
		if len(got) != 1 || !reflect.DeepEqual(got[0], tt.want) || len(drops) > 0 {
			t.Errorf("%s:\n%+v, %v\nnot\n%+v", tt.what, got, drops, tt.want)
		}
	}
}

func TestTwoPoliciesOfOneSessionAreTwoEvents(t *testing.T) {
	got, _ := parse(t, strings.Replace(success, `"policies":[`, `"policies":[{"policy-type":1,"policy-domain":"mx.good.test","t":1,"f":1},`, 1))
	if len(got) != 2 || got[0].Policy.Type != tlsrpt.TypeTLSA || !got[0].Failed || got[1].Failed || !reflect.DeepEqual(got[1].Policy, policy()) {
		t.Errorf("%+v", got)
	}
}

func TestAHostileDatagramIsDroppedAndCountedByReason(t *testing.T) {
	with := func(old, new string) string { return strings.Replace(failing(201, ""), old, new, 1) }
	domain := func(d string) string { return with(`"d": "good.test"`, `"d": "`+d+`"`) }
	for _, tt := range []struct{ what, datagram, reason string }{
		{"over 256 KiB", success + strings.Repeat(" ", 256<<10), "too-long"},
		{"nothing", "", "malformed"},
		{"an array", "[]", "malformed"},
		{"a string", `"x"`, "malformed"},
		{"cut", success[:len(success)-1], "malformed"},
		{"two objects", success + success, "malformed"},
		{"a NUL after the end", success + "\x00", "malformed"},
		{"a NUL in a string", domain("good.test\x00"), "malformed"},
		{"a line end in a string", domain("good.test\r\n"), "malformed"},
		{"a trailing comma", with(`"f":1}`, `"f":1,}`), "malformed"},
		{"no colon", with(`"f":1}`, `"f" 1}`), "malformed"},
		{"no number", with(`"f":1}`, `"f":"1"}`), "malformed"},
		{"a fraction", with(`"f":1}`, `"f":1.0}`), "malformed"},
		{"a leading zero", with(`"f":1}`, `"f":01}`), "malformed"},
		{"no string", with(`"d": "good.test"`, `"d": 1`), "malformed"},
		{"null", with(`"d": "good.test"`, `"d": null`), "domain"},
		{"a broken escape", domain(`good\x.test`), "malformed"},
		{"no literal", with(`{"d"`, `{"x":nul,"d"`), "malformed"},
		{"policies that are an object", `{"d":"good.test","policies":{}}`, "malformed"},
		{"deep arrays", `{"x":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + `,` + success[1:], "malformed"},
		{"version 2", with(`{"d"`, `{"dpv":"2","d"`), "version"},
		{"version 1 as a number", with(`{"d"`, `{"dpv":1,"d"`), "malformed"},
		{"no policy", `{"d":"good.test","policies":[]}`, "policy"},
		{"no policies", `{"d":"good.test"}`, "policy"},
		{"no domain", with(`"d": "good.test",`, ""), "domain"},
		{"a path", domain("../x"), "domain"},
		{"CR LF", domain(`good.test\r\nBcc: x`), "domain"},
		{"an escaped NUL", domain(`good.test\u0000`), "domain"},
		{"invalid UTF-8", domain("g\xffood.test"), "domain"},
		{"a name of 254 bytes", domain(strings.Repeat("a.", 125) + "test"), "domain"},
		{"an address", domain("192.0.2.1"), "domain"},
		{"a policy domain that is none", with(`"policy-domain": "good.test"`, `"policy-domain": "good.test/"`), "domain"},
		{"an unknown policy type", with(`"policy-type":2`, `"policy-type":3`), "policy"},
		{"no result", with(`,"t":1,"f":1`, ``), "policy"},
		{"a negative result", with(`"f":1}`, `"f":-1000000000000000000}`), "policy"},
		{"a result of 25 digits", with(`"f":1}`, `"f":1000000000000000000000000}`), "malformed"},
	} {
		events, drops := parse(t, tt.datagram)
		if want := map[string]uint64{tt.reason: 1}; len(events) > 0 || !maps.Equal(drops, want) {
			t.Errorf("%s: %+v, %v; want %s", tt.what, events, drops, tt.reason)
		}
	}
}

func TestACountOfAQuintillionIsOneSession(t *testing.T) {
	for _, count := range []string{`"t":1`, `"f":1`} {
		got, drops := parse(t, strings.Replace(failing(201, ""), count, count+strings.Repeat("0", 18), 1))
		if len(got) != 1 || !got[0].Failed || len(got[0].Failures) != 1 || len(drops) > 0 {
			t.Errorf("%+v, %v", got, drops)
		}
	}
}

func TestOfAKeyThatComesTwiceTheLastCounts(t *testing.T) {
	twice := `{"d":"other.test",` + failing(202, "")[1:]
	twice = strings.NewReplacer(`"policies":[`, `"policies":[],"policies":[`, `"c":202`, `"c":201,"c":202`, `"f":1}`, `"f":0,"f":1}`).Replace(twice)
	got, drops := parse(t, twice)
	if want := failure(tlsrpt.CertificateHostMismatch, ""); len(got) != 1 || got[0].Domain != "good.test" || !got[0].Failed || got[0].Failures[0] != want || len(drops) > 0 {
		t.Errorf("%+v, %v", got, drops)
	}
}

func TestWhatIsOverABoundIsLeftOutOfItsSession(t *testing.T) {
	with := func(old, new string) string { return strings.Replace(failing(205, "x"), old, new, 1) }
	many := func(n int, s string) string { return strings.Repeat(s+",", n-1) + s }
	for _, tt := range []struct {
		what, datagram string
		drops          map[string]uint64
		left           func(tlsrpt.Event) bool
	}{
		{"policy strings", with(`"policy-string":[`, `"policy-string":[`+many(1300, `"mx: a.test"`)+`,`), map[string]uint64{"strings": 104},
			func(e tlsrpt.Event) bool { return len(e.Policy.Strings) == 1200 && len(e.Policy.MXHosts) == 1 }},
		{"MX patterns", with(`"mx-host":[`, `"mx-host":[`+many(1300, `"a.test"`)+`,`), map[string]uint64{"strings": 101},
			func(e tlsrpt.Event) bool { return len(e.Policy.MXHosts) == 1200 }},
		{"a long policy string", with(`"mode: enforce"`, `"mode: `+strings.Repeat("x", 251)+`"`), map[string]uint64{"text": 1},
			func(e tlsrpt.Event) bool { return len(e.Policy.Strings) == 3 }},
		{"a policy string with a line end", with(`"mode: enforce"`, `"mode: enforce\n"`), map[string]uint64{"text": 1},
			func(e tlsrpt.Event) bool { return len(e.Policy.Strings) == 3 }},
		{"a policy string that is no UTF-8", with(`"mode: enforce"`, "\"mode: \xff\""), map[string]uint64{"text": 1},
			func(e tlsrpt.Event) bool { return len(e.Policy.Strings) == 3 }},
		{"an MX pattern that is none", with(`"mx-host":[`, `"mx-host":["a/b",`), map[string]uint64{"name": 1},
			func(e tlsrpt.Event) bool { return len(e.Policy.MXHosts) == 1 }},
		{"details", with(`"failure-details":[`, `"failure-details":[`+many(70, `{"c":201}`)+`,`), map[string]uint64{"details": 7},
			func(e tlsrpt.Event) bool { return len(e.Failures) == 64 }},
		{"a long reason", with(`"f": "x"`, `"f": "`+strings.Repeat("x", 257)+`"`), map[string]uint64{"text": 1},
			func(e tlsrpt.Event) bool { return e.Failures[0].Reason == "" }},
		{"an MX host with a slash", with(`"n": "mx.good.test"`, `"n": "mx/good.test"`), map[string]uint64{"name": 1},
			func(e tlsrpt.Event) bool { return e.Failures[0].MXHost == "" }},
		{"an address that is none", with(`"r": "192.0.2.1"`, `"r": "192.0.2.1:25"`), map[string]uint64{"name": 1},
			func(e tlsrpt.Event) bool { return !e.Failures[0].ReceivingIP.IsValid() }},
		{"a greeting without a name", with(`250-mx.good.test\r\n`, `250-[192.0.2.1]\r\n`), map[string]uint64{"name": 1},
			func(e tlsrpt.Event) bool { return e.Failures[0].HELO == "" }},
	} {
		got, drops := parse(t, tt.datagram)
		if len(got) != 1 || !got[0].Failed || !tt.left(got[0]) || !maps.Equal(drops, tt.drops) {
			t.Errorf("%s: %+v, %v", tt.what, got, drops)
		}
	}
	policies := strings.Replace(success, `"policies":[`, `"policies":[`+many(10, `{"policy-type":9,"f":0}`)+`,`, 1)
	if got, drops := parse(t, policies); len(got) != 8 || !maps.Equal(drops, map[string]uint64{"policies": 3}) {
		t.Errorf("policies: %d, %v", len(got), drops)
	}
}

func TestADatagramLeavesNothingBehindForTheNext(t *testing.T) {
	p := collect.Parser{Drops: new(collect.Drops)}
	for range 3 {
		if got := p.Parse([]byte(failing(205, "x"))); len(got) != 1 || len(got[0].Failures) != 1 || len(got[0].Policy.Strings) != 4 {
			t.Errorf("%+v", got)
		}
		if got := p.Parse([]byte(`{"d":"a.test","policies":[{"policy-type":2,"f":1}]}`)); len(got) != 1 ||
			len(got[0].Failures)+len(got[0].Policy.Strings)+len(got[0].Policy.MXHosts) > 0 {
			t.Errorf("%+v", got)
		}
		if got := p.Parse([]byte("x")); len(got) != 0 {
			t.Errorf("%+v", got)
		}
	}
}

func FuzzDatagram(f *testing.F) {
	for _, s := range []string{success, newer, failing(205, "self-signed_certificate"), failing(201, ""),
		`{"d":"b\u00fccher.test","policies":[{"policy-type":9,"t":-0,"f":1e3}]}`, `{"x":[[[[[[[1]]]]]]]}`} {
		f.Add([]byte(s))
	}
	p := collect.Parser{Drops: new(collect.Drops)}
	f.Fuzz(func(t *testing.T, datagram []byte) {
		events := p.Parse(datagram)
		if len(events) > 8 || len(datagram) > collect.MaxDatagram && len(events) > 0 {
			t.Fatalf("%d events of %d bytes", len(events), len(datagram))
		}
		// encoding/json agrees that it is JSON. It also wants UTF-8, which we do not.
		if len(events) > 0 && !json.Valid(bytes.ToValidUTF8(datagram, []byte("?"))) {
			t.Fatalf("read what is no JSON: %q", datagram)
		}
		for _, e := range events {
			check(t, e)
		}
	})
}

// check looks at the bounds of an event and at the form of all that is in it.
func check(t *testing.T, e tlsrpt.Event) {
	for _, d := range []string{e.Domain, e.Policy.Domain} {
		if got, ok := tlsrpt.Domain(d); !ok || got != d || len(d) > 253 {
			t.Errorf("domain %q", d)
		}
	}
	if len(e.Policy.Strings) > 1200 || len(e.Policy.MXHosts) > 1200 || len(e.Failures) > 64 || !e.Failed && len(e.Failures) > 0 {
		t.Errorf("%d strings, %d MX patterns, %d failures, failed %v", len(e.Policy.Strings), len(e.Policy.MXHosts), len(e.Failures), e.Failed)
	}
	for _, s := range e.Policy.Strings {
		if len(s) > 256 || !utf8.ValidString(s) || strings.ContainsAny(s, "\x00\r\n") {
			t.Errorf("policy string %q", s)
		}
	}
	for _, s := range e.Policy.MXHosts {
		if got, ok := tlsrpt.Pattern(s); !ok || got != s || e.Policy.Type != tlsrpt.TypeSTS {
			t.Errorf("MX pattern %q", s)
		}
	}
	for _, f := range e.Failures {
		if tlsrpt.ResultIndex(f.Result) < 0 || !tlsrpt.Reason(f.Reason) {
			t.Errorf("%+v", f)
		}
		for _, host := range []string{f.MXHost, f.HELO} {
			if got, ok := tlsrpt.Host(host); host != "" && (!ok || got != host) {
				t.Errorf("host %q", host)
			}
		}
	}
}
