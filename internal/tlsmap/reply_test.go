package tlsmap

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// policyOf returns an enforced policy with these mx patterns.
func policyOf(mx ...string) *policy.Policy {
	p := &policy.Policy{Mode: policy.ModeEnforce, MX: mx}
	p.Fields = append(p.Fields, policy.Field{Key: "version", Value: "STSv1"}, policy.Field{Key: "mode", Value: "enforce"})
	for _, pattern := range mx {
		p.Fields = append(p.Fields, policy.Field{Key: "mx", Value: pattern})
	}
	p.Fields = append(p.Fields, policy.Field{Key: "max_age", Value: "86400"})
	return p
}

// render returns the reply of a map with these properties for the policy.
func render(t testing.TB, m mta.Map, domain string, p *policy.Policy) string {
	t.Helper()
	r, ok := ParseReady(Prepare(p))
	if !ok {
		t.Fatal("what was prepared cannot be read")
	}
	return string(appendSecure(nil, &m, []byte(domain), r))
}

var (
	plainMap  = mta.Map{Servername: true}
	tlsrptMap = mta.Map{Servername: true, TLSRPT: true}
)

func TestTheMatchListIsThePatternsInOrder(t *testing.T) {
	const none = "TEMP MTA-STS policy lists no usable MX host name; see: sts-tlsmap -explain example.com"
	tests := []struct {
		name string
		mx   []string
		want string
	}{
		{"one host", []string{"mx.example.com"}, "mx.example.com"},
		{"several keep their order", []string{"b.example.com", "a.example.com", "c.example.net"}, "b.example.com:a.example.com:c.example.net"},
		{"the asterisk of a wildcard goes", []string{"*.example.net"}, ".example.net"},
		{"a wildcard below a top-level domain", []string{"*.example"}, ".example"},
		{"repeats go", []string{"a.example", "b.example", "a.example", "A.Example"}, "a.example:b.example"},
		{"a wildcard does not repeat a host", []string{"*.a.example", "a.example"}, ".a.example:a.example"},
		{"lower case", []string{"MX.Example.COM", "*.EXAMPLE.net"}, "mx.example.com:.example.net"},
		{"A-labels", []string{"mx.xn--bcher-kva.example"}, "mx.xn--bcher-kva.example"},
		{"keywords of Postfix go", []string{"hostname", "mx.example.com", "nexthop", "dot-nexthop"}, "mx.example.com"},
		{"any one label goes", []string{"localhost", "mx.example.com", "MX"}, "mx.example.com"},
		{"what is no host name goes", []string{
			"mx.example.com ciphers=null", "mx.example.com:hostname", "bücher.example", "mx_1.example.com", "mx..example.com",
			"*", "*.", ".", "", ".example.com", "*.*.example.com", "a.*.example.com", "mx.example.com\n", "mx.example.com\x00",
			"{mx.example.com}", "\u212aelvin.example", "*." + strings.Repeat("a", 63) + strings.Repeat("."+strings.Repeat("b", 63), 3), "ok.example",
		}, "ok.example"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := render(t, mta.Map{}, "example.com", policyOf(tt.mx...))
			if want := "OK secure match=" + tt.want; got != want {
				t.Errorf("reply %q, want %q", got, want)
			}
		})
	}
	for _, mx := range [][]string{nil, {"hostname"}, {"nexthop", "dot-nexthop", "*"}} {
		for _, m := range []mta.Map{plainMap, tlsrptMap} {
			if got := render(t, m, "example.com", policyOf(mx...)); got != none {
				t.Errorf("mx %q: reply %q, want %q", mx, got, none)
			}
		}
	}
}

func TestRFC8461_3_2_InternationalizedPatternsAreALabels(t *testing.T) {
	got := render(t, mta.Map{}, "example.com", policyOf("mx.bücher.example", "mx.xn--bcher-kva.example"))
	if want := "OK secure match=mx.xn--bcher-kva.example"; got != want {
		t.Errorf("reply %q, want %q", got, want)
	}
}

func TestRFC8461_4_1_AWildcardIsNotRenderedAsTheDomainItself(t *testing.T) {
	// Postfix's ".example.net" matches below example.net, not example.net. That
	// it matches deeper than one label, too, is what mx_host_pattern repairs.
	reply := render(t, tlsrptMap, "example.com", policyOf("*.example.net"))
	p, err := parsePostfixPolicy(strings.TrimPrefix(reply, "OK "))
	if err != nil {
		t.Fatal(err)
	}
	if got := p.values("match"); !slices.Equal(got, []string{".example.net"}) {
		t.Errorf("match=%q", got)
	}
	if got := p.values("mx_host_pattern"); !slices.Equal(got, []string{"*.example.net"}) {
		t.Errorf("mx_host_pattern=%q", got)
	}
}

func TestRFC8461_7_1_SNIIsTheHostName(t *testing.T) {
	for _, m := range mta.Builtin() {
		reply := render(t, m, "example.com", policyOf("mx.example.com"))
		p, err := parsePostfixPolicy(strings.TrimPrefix(reply, "OK "))
		if err != nil {
			t.Fatal(err)
		}
		if got := p.values("servername"); !slices.Equal(got, []string{"hostname"}) {
			t.Errorf("map %s: servername=%q in %q", m.Name, got, reply)
		}
	}
	if got := render(t, mta.Map{}, "example.com", policyOf("mx.example.com")); strings.Contains(got, "servername") {
		t.Errorf("servername = false: %q", got)
	}
}

func TestTheTLSRPTAttributesAreThePolicy(t *testing.T) {
	p, err := policy.Parse([]byte("version: STSv1\r\nmode: enforce\r\nmx: MX1.Example.Com\r\nmx: *.example.net\r\n" +
		"x-comment: } ciphers=null {\r\nmx: hostname\r\nmode: none\r\nmx: mx1.example.com\r\nmx: mx2.example.com\r\nmax_age: 604800\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	const want = "OK secure match=mx1.example.com:.example.net:mx2.example.com servername=hostname" +
		" policy_type=sts policy_domain=example.com mx_host_pattern=mx1.example.com mx_host_pattern=*.example.net mx_host_pattern=mx2.example.com" +
		" { policy_string = version: STSv1 } { policy_string = mode: enforce } { policy_string = mx: MX1.Example.Com }" +
		" { policy_string = mx: *.example.net } { policy_string = mx: hostname } { policy_string = mx: mx1.example.com }" +
		" { policy_string = mx: mx2.example.com } { policy_string = max_age: 604800 }"
	if got := render(t, tlsrptMap, "example.com", p); got != want {
		t.Errorf("reply\n%q, want\n%q", got, want)
	}
	const plain = "OK secure match=mx1.example.com:.example.net:mx2.example.com servername=hostname"
	if got := render(t, plainMap, "example.com", p); got != plain {
		t.Errorf("map postfix: reply\n%q, want\n%q", got, plain)
	}
}

func TestOnlyStandardFieldsWithStandardValuesAreRendered(t *testing.T) {
	for _, f := range []policy.Field{
		{Key: "version", Value: "STSv2"},
		{Key: "Version", Value: "STSv1"},
		{Key: "mode", Value: "enforce }"},
		{Key: "mode", Value: ""},
		{Key: "max_age", Value: ""},
		{Key: "max_age", Value: "-1"},
		{Key: "max_age", Value: "1.5"},
		{Key: "max_age", Value: "12345678901"},
		{Key: "mx", Value: ""},
		{Key: "mx", Value: "*"},
		{Key: "mx", Value: "a.example } ciphers=null { policy_string = x"},
		{Key: "mx", Value: "a.example\x00"},
		{Key: "mx", Value: "\u212aelvin.example"},
		{Key: "mx", Value: "a.example.."},
		{Key: "mx", Value: "{a.example}"},
		{Key: "mx } ciphers=null {", Value: "a.example"},
		{Key: "x-extension", Value: "value"},
		{Key: "", Value: ""},
	} {
		p := policyOf("a.example")
		p.Fields = []policy.Field{f}
		if got := render(t, tlsrptMap, "example.com", p); strings.Contains(got, "policy_string") {
			t.Errorf("field %q was rendered: %q", f, got)
		}
	}
	p := policyOf("a.example")
	p.Fields = []policy.Field{{Key: "mx", Value: "A.example."}}
	if got := render(t, tlsrptMap, "example.com", p); !strings.HasSuffix(got, " { policy_string = mx: A.example. }") {
		t.Errorf("a name with a trailing dot, as served: %q", got)
	}
}

// longPolicy has n distinct patterns of 63 bytes.
func longPolicy(n int) *policy.Policy {
	mx := make([]string, n)
	for i := range mx {
		mx[i] = fmt.Sprintf("mx%04d.%s.example", i, strings.Repeat("x", 48))
	}
	return policyOf(mx...)
}

func TestALongReplyLosesItsPolicyStringsFirst(t *testing.T) {
	var withStrings, without, temp bool
	for n := 1; n < 1200; n += 13 {
		reply := render(t, tlsrptMap, "example.com", longPolicy(n))
		if len(reply) > MaxReply {
			t.Fatalf("%d patterns: a reply of %d bytes", n, len(reply))
		}
		switch {
		case strings.HasPrefix(reply, "TEMP "):
			temp = true
			const want = "TEMP MTA-STS policy is too long for a reply; see: sts-tlsmap -explain example.com"
			if reply != want {
				t.Fatalf("%d patterns: %q, want %q", n, reply, want)
			}
		case strings.Contains(reply, "policy_string"):
			withStrings = true
			if without || temp {
				t.Fatalf("%d patterns: policy strings, although fewer patterns had none", n)
			}
			if got := strings.Count(reply, "policy_string = "); got != n+3 {
				t.Fatalf("%d patterns: %d policy strings", n, got)
			}
		default:
			without = true
			if temp {
				t.Fatalf("%d patterns: OK, although fewer were TEMP", n)
			}
		}
		if !temp {
			if got := strings.Count(reply, "mx_host_pattern="); got != n {
				t.Fatalf("%d patterns: %d of mx_host_pattern", n, got)
			}
			if plain := render(t, plainMap, "example.com", longPolicy(n)); strings.Count(plain, ":") != n-1 {
				t.Fatalf("%d patterns: map postfix has another number", n)
			}
		}
	}
	if !withStrings || !without || !temp {
		t.Errorf("seen with policy strings: %t, without: %t, TEMP: %t", withStrings, without, temp)
	}
}

func TestTheLimitOfAReplyIsExact(t *testing.T) {
	// A match list that is longer and longer by one byte.
	for size := MaxReply - 300; size < MaxReply+300; size++ {
		match := []byte(strings.Repeat("m", size))
		for _, m := range []mta.Map{{}, plainMap} {
			want := len("OK secure match=") + size
			if m.Servername {
				want += len(" servername=hostname")
			}
			reply := appendSecure(nil, &m, []byte("example.com"), Ready{match: match})
			if ok := string(reply[:3]) == "OK "; ok != (want <= MaxReply) || ok && len(reply) != want {
				t.Fatalf("match list of %d bytes: a reply of %d bytes, %.20q", size, len(reply), reply)
			}
		}
	}
}

func TestPreparingADomainThatIsNoneAddsNoAttribute(t *testing.T) {
	for _, domain := range []string{"", "a b.example", "example.com mx_host_pattern=x", "exa\nmple.com", "Example.com"} {
		got := render(t, tlsrptMap, domain, policyOf("mx.example.com"))
		if !strings.HasPrefix(got, "TEMP ") {
			t.Errorf("domain %q: %q", domain, got)
		}
	}
}

func TestWhatIsPreparedSaysNothingTwice(t *testing.T) {
	text := []byte("version: STSv1\r\nmode: enforce\r\nmx: mx1.example.com\r\nmx: *.example.net\r\nmax_age: 604800\r\n")
	p, err := policy.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(Prepare(p)); n > len(text)/2 {
		t.Errorf("%d bytes for a policy of %d", n, len(text))
	}
}

func TestReadyOfAnotherVersionOrDamagedIsRefused(t *testing.T) {
	ready := Prepare(policyOf("mx.example.com"))
	if _, ok := ParseReady(ready); !ok {
		t.Fatal("what was prepared cannot be read")
	}
	if !IsCurrent(ready) || IsCurrent(nil) || IsCurrent([]byte{readyVersion + 1}) {
		t.Error("the version is not seen")
	}
	if _, ok := ParseReady(nil); ok {
		t.Error("nothing is taken for something")
	}
	if _, ok := ParseReady(append([]byte{readyVersion + 1}, ready[1:]...)); ok {
		t.Error("another version is taken for this one")
	}
	for n := range ready {
		if _, ok := ParseReady(ready[:n]); ok {
			t.Errorf("taken although cut off after %d bytes of %d", n, len(ready))
		}
	}
	if _, ok := ParseReady(append(ready, 0)); ok {
		t.Error("taken although there is something behind it")
	}
	if _, ok := ParseReady([]byte{readyVersion, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}); ok {
		t.Error("a length of 2^64-1 is taken")
	}
}
