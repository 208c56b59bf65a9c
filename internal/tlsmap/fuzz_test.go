package tlsmap_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// unparsed makes a policy of a text without the checks of policy.Parse: what
// rendering must withstand if the parser had a hole.
func unparsed(text []byte) *policy.Policy {
	p := &policy.Policy{Mode: policy.ModeEnforce}
	for line := range strings.SplitSeq(string(text), "\n") {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		p.Fields = append(p.Fields, policy.Field{Key: key, Value: value})
		if key == "mx" {
			p.MX = append(p.MX, value)
		}
	}
	return p
}

// checkReply checks what may be in a reply to the domain with that policy.
func checkReply(t *testing.T, m *mta.Map, domain string, p *policy.Policy, reply string) {
	t.Helper()
	if len(reply) > tlsmap.MaxReply {
		t.Fatalf("%d bytes", len(reply))
	}
	for i := 0; i < len(reply); i++ {
		if reply[i] < ' ' || reply[i] > '~' {
			t.Fatalf("byte %#x in %q", reply[i], reply)
		}
	}
	if reason, temp := strings.CutPrefix(reply, "TEMP "); temp {
		if len(reason) > 500 {
			t.Fatalf("a reason of %d bytes", len(reason))
		}
		return
	}
	value, ok := strings.CutPrefix(reply, "OK ")
	if !ok {
		t.Fatalf("neither OK nor TEMP: %q", reply)
	}
	got, err := parsePostfixPolicy(value)
	if err != nil {
		t.Fatalf("Postfix would not take %q: %v", reply, err)
	}
	if got.level != "secure" {
		t.Fatalf("level %q in %q", got.level, reply)
	}
	want := map[string]int{"match": 1}
	if m.Servername {
		want["servername"] = 1
	}
	patterns := len(strings.Split(got.values("match")[0], ":"))
	if m.TLSRPT && got.values("policy_type") != nil { // else the attributes did not fit
		want["policy_type"], want["policy_domain"] = 1, 1
		want["mx_host_pattern"] = patterns
		want["policy_string"] = len(got.values("policy_string")) // looked at below
		if want["policy_string"] > len(p.Fields) {
			t.Fatalf("more policy strings than fields: %q", reply)
		}
		if d := got.values("policy_domain"); len(d) != 1 || d[0] != domain {
			t.Fatalf("policy_domain=%q for %q", d, domain)
		}
	}
	counts := make(map[string]int)
	for _, a := range got.attributes {
		counts[a.name]++
	}
	for name, n := range counts {
		if want[name] != n {
			t.Fatalf("%d of %s, want %d: %q", n, name, want[name], reply)
		}
	}
	checkPatterns(t, p, strings.Split(got.values("match")[0], ":"), got.values("mx_host_pattern"))
	checkStrings(t, p, got.values("policy_string"))
}

// checkPatterns checks that the match list is some of the policy's patterns,
// in order, and that mx_host_pattern says the same.
func checkPatterns(t *testing.T, p *policy.Policy, match, shown []string) {
	t.Helper()
	var folded []string
	for _, pattern := range p.MX {
		folded = append(folded, strings.Map(func(r rune) rune {
			if 'A' <= r && r <= 'Z' {
				r += 'a' - 'A'
			}
			return r
		}, pattern))
	}
	from := 0
	seen := make(map[string]bool)
	for i, name := range match {
		pattern := name
		if strings.HasPrefix(name, ".") {
			pattern = "*" + name
		}
		last := name[strings.LastIndexByte(name, '.')+1:]
		if strings.Trim(last, "0123456789") == "" {
			t.Fatalf("match has %q, an address to Postfix", name)
		}
		if seen[name] || !strings.Contains(name, ".") {
			t.Fatalf("match has %q, twice or of one label", name)
		}
		seen[name] = true
		at := slices.Index(folded[from:], pattern)
		if at < 0 {
			t.Fatalf("match has %q, out of order or not in %q", name, p.MX)
		}
		from += at + 1
		if shown != nil && shown[i] != pattern {
			t.Fatalf("mx_host_pattern %q beside match %q", shown[i], name)
		}
	}
}

func checkStrings(t *testing.T, p *policy.Policy, lines []string) {
	t.Helper()
	for _, line := range lines {
		key, value, ok := strings.Cut(line, ": ")
		if !ok || !slices.Contains(p.Fields, policy.Field{Key: key, Value: value}) {
			t.Fatalf("policy string %q is no field of %q", line, p.Fields)
		}
		if !slices.Contains([]string{"version", "mode", "mx", "max_age"}, key) {
			t.Fatalf("the standard has no field %q", key)
		}
	}
}

var kindsOfMap = []mta.Map{{}, {Servername: true}, {TLSRPT: true}, {TLSRPT: true, Servername: true}}

func FuzzReply(f *testing.F) {
	for _, text := range []string{
		"version: STSv1\nmode: enforce\nmx: mx.example.com\nmx: *.example.net\nmax_age: 86400\n",
		"version: STSv1\r\nmode: testing\r\nmx: hostname\r\nmx: MX.Example.Com.\r\nmax_age: 1\r\nx-y: } ciphers=null {\r\n",
		"version: STSv1\nmode: enforce\nmx: a.example } ciphers=null { x\nmax_age: 1\n",
		"mx: nexthop\nmx: dot-nexthop\nmx: a.example:hostname\nmx: a.example match=hostname\n",
		"mx: \u212aelvin.example\nmx: b\xffcher.example\nmx: *.*.example\nmx: *\nmx: .\n",
		"mode: none\nversion: STSv1\nmax_age: 31557600\n",
		strings.Repeat("mx: a.example\nmx: b.example\n", 20),
	} {
		f.Add("example.com", []byte(text))
	}
	f.Add("example.com policy_type=tlsa", []byte("mx: a.example"))
	f.Fuzz(func(t *testing.T, domain string, text []byte) {
		policies := []*policy.Policy{unparsed(text)}
		if p, err := policy.Parse(text); err == nil {
			policies = append(policies, p)
		}
		for _, p := range policies {
			for i := range kindsOfMap {
				// The domain of a lookup has been through ParseKey.
				hop, kind := mta.ParseKey([]byte(domain), nil)
				if kind != mta.KeyPolicyDomain || string(hop.Domain) != domain {
					hop.Domain = []byte("example.com")
				}
				checkReply(t, &kindsOfMap[i], string(hop.Domain), p, render(t, kindsOfMap[i], string(hop.Domain), p))
			}
		}
	})
}

// FuzzHosts: whatever the policy and the MX records say, Exim is told nothing
// but host names that the policy lists.
func FuzzHosts(f *testing.F) {
	f.Add([]byte("version: STSv1\nmode: enforce\nmx: *.example.com\nmx: mx.example.net\nmax_age: 1\n"), "mx.example.net a.example.com b.a.example.com evil.example")
	f.Add([]byte("mx: hostname\nmx: .example.com\nmx: *.\nmx: a:b.example\nmx: \n"), "hostname .example.com a:b.example a/b.example.com ${run{x}}.example.com")
	f.Fuzz(func(t *testing.T, text []byte, hosts string) {
		p := unparsed(text)
		set := &dane.MXSet{}
		for i, name := range strings.Split(hosts, " ") {
			set.Hosts = append(set.Hosts, dane.MXHost{Name: name, Preference: uint16(i / 2)})
		}
		reply := explain(t, mta.Map{Format: mta.FormatExim}, tlsmap.Known{Domain: "example.com", State: tlsmap.PolicyEnforced, Policy: p, MX: set}).Reply
		list, ok := strings.CutPrefix(reply, "OK ")
		if !ok {
			if !strings.HasPrefix(reply, "TEMP MTA-STS: example.com: ") {
				t.Fatalf("%q", reply)
			}
			return
		}
		var patterns []string
		for _, pattern := range p.MX {
			patterns = append(patterns, strings.ToLower(pattern))
		}
		lists := &policy.Policy{MX: patterns}
		for name := range strings.SplitSeq(list, ":") {
			if !hostname.Valid(name) || !lists.Lists(name) || !slices.Contains(strings.Split(hosts, " "), name) {
				t.Fatalf("%q in %q", name, reply)
			}
		}
	})
}
