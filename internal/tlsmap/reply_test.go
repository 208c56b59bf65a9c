package tlsmap_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

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
		{"addresses go", []string{"212.114.86.56", "mx.example.com", "010.0.0.01", "::1", "2001:db8::1", "[2001:db8::1]", "[192.0.2.1]", "[ipv6:192.0.2.1]", "::ffff:192.0.2.1"}, "mx.example.com"},
		{"and what ends in a number", []string{"mx.example.123", "*.1", "*.0.2.1", "mx.example.com", "mx.0x7f"}, "mx.example.com:mx.0x7f"},
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
	for _, mx := range [][]string{nil, {"hostname"}, {"nexthop", "dot-nexthop", "*"}, {"212.114.86.56"}} {
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
	for _, m := range []mta.Map{plainMap, tlsrptMap} {
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

// Postfix takes such a name for an address, and then no certificate matches.
func TestAddressesOfAPolicyAreNotRendered(t *testing.T) {
	const addresses = "mx: 212.114.86.56\nmx: 010.0.0.01\nmx: 1.2.3.4.\nmx: mx.123\nmx: *.0.2.1\nmx: 7\nmx: 2001:DB8::1\nmx: [IPv6:2001:db8::1]\nmx: ::ffff:1.2.3.4\n"
	for text, want := range map[string]string{
		addresses + "mx: *.IPMX.test\n": "OK secure match=.ipmx.test servername=hostname policy_type=sts policy_domain=example.com mx_host_pattern=*.ipmx.test {",
		addresses:                       "TEMP MTA-STS policy lists no usable MX host name; see: sts-tlsmap -explain example.com",
	} {
		p, err := policy.Parse([]byte("version: STSv1\nmode: enforce\nmax_age: 604800\n" + text))
		if err != nil {
			t.Fatal(err)
		}
		tlsrpt, plain := render(t, tlsrptMap, "example.com", p), render(t, plainMap, "example.com", p)
		if want, _, _ := strings.Cut(want, " policy_type"); plain != want {
			t.Errorf("%q, want %q", plain, want)
		}
		if !strings.HasPrefix(tlsrpt, want) || strings.Count(tlsrpt, "mx_host_pattern") > 1 {
			t.Errorf("%q, want %q", tlsrpt, want)
		}
		if left := tlsmap.LeftOut(p); len(left) != 9 {
			t.Errorf("left out: %q", left)
		}
	}
}

func TestOnlySafeStandardFieldsAreRendered(t *testing.T) {
	for _, f := range []policy.Field{
		{Key: "Version", Value: "STSv1"},
		{Key: "mode", Value: "enforce }"},
		{Key: "mode", Value: ""},
		{Key: "max_age", Value: ""},
		{Key: "max_age", Value: "-1"},
		{Key: "max_age", Value: "1.5"},
		{Key: "max_age", Value: "1 }"},
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

func TestALongReplyDropsPolicyStringsAndThenAllAttributes(t *testing.T) {
	var seen [4]int // replies with policy strings, with patterns only, plain, and TEMP
	last := 0
	for n := 1; n < 2200; n += 13 {
		reply, plain := render(t, tlsrptMap, "example.com", longPolicy(n)), render(t, plainMap, "example.com", longPolicy(n))
		if len(reply) > tlsmap.MaxReply {
			t.Fatalf("%d patterns: a reply of %d bytes", n, len(reply))
		}
		patterns, fields := strings.Count(reply, "mx_host_pattern="), strings.Count(reply, "policy_string = ")
		kind := 0
		switch {
		case strings.HasPrefix(reply, "TEMP "):
			kind = 3
			if want := "TEMP MTA-STS policy is too long for a reply; see: sts-tlsmap -explain example.com"; reply != want || plain != want {
				t.Fatalf("%d patterns: %q", n, reply)
			}
		case patterns == 0:
			kind = 2
			if reply != plain {
				t.Fatalf("%d patterns: %.100q, but map postfix has %.100q", n, reply, plain)
			}
		case fields == 0:
			kind = 1
		case fields != n+3:
			t.Fatalf("%d patterns: %d policy strings", n, fields)
		}
		if kind < 2 && (patterns != n || !strings.HasPrefix(reply, plain)) {
			t.Fatalf("%d patterns: %d of mx_host_pattern in %.100q", n, patterns, reply)
		}
		if kind < last {
			t.Fatalf("%d patterns get more attributes than fewer did", n)
		}
		seen[kind]++
		last = kind
	}
	if seen[0]*seen[1]*seen[2]*seen[3] == 0 {
		t.Errorf("replies of each kind: %d", seen)
	}
}

func TestTheLimitOfAReplyIsExact(t *testing.T) {
	// A match list that is longer and longer by one byte.
	for extra := range 60 {
		p := longPolicy(1561)
		p.MX = append(p.MX, strings.Repeat("m", extra+1)+".example")
		for _, m := range []mta.Map{{}, plainMap} {
			want := len("OK secure match=") + len(tlsmap.MatchList(p)) - 1
			if m.Servername {
				want += len(" servername=hostname")
			}
			reply := render(t, m, "example.com", p)
			if ok := reply[:3] == "OK "; ok != (want <= tlsmap.MaxReply) || ok && len(reply) != want {
				t.Fatalf("%d bytes wanted: a reply of %d, %.20q", want, len(reply), reply)
			}
		}
	}
}

func TestAStoredMatchListHasTheVersionOfItsRule(t *testing.T) {
	list := tlsmap.MatchList(policyOf("mx.example.com", "*.example.net"))
	if string(list[1:]) != "mx.example.com:.example.net" || !tlsmap.MatchListCurrent(list) {
		t.Errorf("%q", list)
	}
	for _, other := range [][]byte{nil, {}, {2, 1, 'a', 0}, append([]byte{list[0] + 1}, list[1:]...)} {
		if tlsmap.MatchListCurrent(other) {
			t.Errorf("%q is taken for a list of today's rule", other)
		}
	}
	if none := tlsmap.MatchList(policyOf("hostname")); len(none) != 1 || !tlsmap.MatchListCurrent(none) {
		t.Errorf("an empty list is %q", none)
	}
}

func TestRFC8461_4_2_TheReplyDemandsACertificateThatVerifiesForAListedHost(t *testing.T) {
	// The certificate is Postfix's to check. At level "secure" it demands a
	// trusted chain, within its dates, and a name out of match (postconf(5),
	// smtp_tls_policy_maps): no other level does, and no name but the listed
	// ones may be in match.
	for _, m := range mta.Builtin() {
		if m.DANE || m.Format == mta.FormatExim {
			continue // where DANE protects the domain, the certificate is checked by TLSA
		}
		reply := render(t, m, "example.com", policyOf("mx1.example.com", "*.example.net", "hostname"))
		p, err := parsePostfixPolicy(strings.TrimPrefix(reply, "OK "))
		if err != nil {
			t.Fatal(err)
		}
		if got := p.values("match"); p.level != "secure" || !slices.Equal(got, []string{"mx1.example.com:.example.net"}) {
			t.Errorf("map %s: level %q, match=%q", m.Name, p.level, got)
		}
	}
}

func TestTheBuiltinMapsAreAsTheirNamesSay(t *testing.T) {
	const (
		plain  = "OK secure match=mx.example.com servername=hostname"
		tlsrpt = plain + " policy_type=sts policy_domain=example.com mx_host_pattern=mx.example.com { policy_string = version: STSv1 }" +
			" { policy_string = mode: enforce } { policy_string = mx: mx.example.com } { policy_string = max_age: 86400 }"
	)
	for _, m := range mta.Builtin() {
		if m.Format == mta.FormatExim { // see exim_test.go
			continue
		}
		want := plain
		if strings.HasSuffix(m.Name, "tlsrpt") {
			want = tlsrpt
		}
		k := tlsmap.Known{Domain: "example.com", State: tlsmap.PolicyEnforced, Policy: policyOf("mx.example.com"), DANE: dane.Finding{State: dane.Absent}}
		if got := explain(t, m, k).Reply; got != want || m.DANE != strings.Contains(m.Name, "dane") {
			t.Errorf("map %s: %q, DANE %v; want %q", m.Name, got, m.DANE, want)
		}
	}
}

func TestAMapThatCannotBeAnsweredIsRefused(t *testing.T) {
	ok := mta.Map{Name: "x", Format: mta.FormatPostfix, Enforce: true}
	for want, maps := range map[string][]mta.Map{
		"1 to 64 letters":                  {{Format: mta.FormatPostfix}},
		"has 1 to 64":                      {{Name: "a b", Format: mta.FormatPostfix}},
		`format "qmail" is not known`:      {{Name: "a", Format: "qmail"}},
		`"sendmail" goes with servername`:  {{Name: "a", Format: mta.FormatSendmail}},
		"defined twice":                    {ok, ok},
		`dane does not go with format "ex`: {{Name: "a", Format: mta.FormatExim, DANE: true}},
	} {
		if _, err := tlsmap.NewTable(maps); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
}

func TestRFC8460_4_5_ReportsHaveThePolicyAsItsAttributesSayIt(t *testing.T) {
	text := "version: STSv1\r\nmode: enforce\r\nmx: MX.example.com\r\nmx: *.example.net\r\nmx: mx.example.com\r\nmx: hostname\r\nother: x } policy_type=tlsa\r\nmax_age: 604800\r\n"
	p, err := policy.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	r := tlsmap.Reported("example.com", []byte(text))
	attributes := " policy_type=" + string(r.Type) + " policy_domain=" + r.Domain
	for _, pattern := range r.MXHosts {
		attributes += " mx_host_pattern=" + pattern
	}
	for _, s := range r.Strings {
		attributes += " { policy_string = " + s + " }"
	}
	reply := render(t, mta.Map{TLSRPT: true}, "example.com", p)
	if _, got, _ := strings.Cut(reply, "match=mx.example.com:.example.net"); got != attributes {
		t.Errorf("the reply has %q, the report %q", got, attributes)
	}
}
