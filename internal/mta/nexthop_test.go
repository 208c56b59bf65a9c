package mta_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

var (
	label63 = strings.Repeat("a", 63)
	name253 = strings.Repeat(label63+".", 3) + strings.Repeat("b", 61)
)

var keyTests = []struct {
	name, key string
	kind      mta.KeyKind
	domain    string
	bracketed bool
	port      uint16
}{
	// As Postfix asks.
	{"a domain is itself", "example.com", mta.KeyPolicyDomain, "example.com", false, 25},
	{"many labels", "a.b.c.d.example.co.uk", mta.KeyPolicyDomain, "a.b.c.d.example.co.uk", false, 25},
	{"hyphens and digits", "4-h.3com.example", mta.KeyPolicyDomain, "4-h.3com.example", false, 25},
	{"an A-label is taken as it is", "xn--bcher-kva.example", mta.KeyPolicyDomain, "xn--bcher-kva.example", false, 25},
	{"an A-label that means nothing too", "xn--99999999.example", mta.KeyPolicyDomain, "xn--99999999.example", false, 25},
	{"two hyphens in the third place", "ab--cd.example", mta.KeyPolicyDomain, "ab--cd.example", false, 25},
	{"a label of digits", "163.example", mta.KeyPolicyDomain, "163.example", false, 25},
	{"a host in brackets", "[mail.example.com]", mta.KeyPolicyDomain, "mail.example.com", true, 25},
	{"a host in brackets with a port", "[mail.example.com]:587", mta.KeyPolicyDomain, "mail.example.com", true, 587},
	{"a domain with a port", "example.com:26", mta.KeyPolicyDomain, "example.com", false, 26},
	{"a service by name", "[mail.example.com]:submission", mta.KeyPolicyDomain, "mail.example.com", true, 587},
	{"smtp by name", "[mail.example.com]:smtp", mta.KeyPolicyDomain, "mail.example.com", true, 25},
	{"submissions by name", "example.com:SUBMISSIONS", mta.KeyPolicyDomain, "example.com", false, 465},
	{"a service that is not known here", "example.com:lmtp", mta.KeyPolicyDomain, "example.com", false, 0},
	{"a port out of range", "example.com:70000", mta.KeyPolicyDomain, "example.com", false, 0},
	{"an empty port is the default", "example.com:", mta.KeyPolicyDomain, "example.com", false, 25},
	{"an empty port behind brackets too", "[example.com]:", mta.KeyPolicyDomain, "example.com", true, 25},
	{"a trailing dot", "example.com.", mta.KeyPolicyDomain, "example.com", false, 25},
	{"a trailing dot in brackets", "[mail.example.com.]:25", mta.KeyPolicyDomain, "mail.example.com", true, 25},
	{"a trailing dot before a port", "example.com.:25", mta.KeyPolicyDomain, "example.com", false, 25},
	{"case is folded", "Example.COM", mta.KeyPolicyDomain, "example.com", false, 25},
	{"case is folded in brackets", "[MAIL.Example.com]:25", mta.KeyPolicyDomain, "mail.example.com", true, 25},
	{"a label of 63", label63 + ".example", mta.KeyPolicyDomain, label63 + ".example", false, 25},
	{"a name of 253", name253, mta.KeyPolicyDomain, name253, false, 25},
	{"a name of 253 and a dot", name253 + ".", mta.KeyPolicyDomain, name253, false, 25},

	// U-labels, as with smtputf8.
	{"a U-label", "bücher.example", mta.KeyPolicyDomain, "xn--bcher-kva.example", false, 25},
	{"a U-label in capitals", "BÜCHER.Example", mta.KeyPolicyDomain, "xn--bcher-kva.example", false, 25},
	{"nontransitional", "faß.example", mta.KeyPolicyDomain, "xn--fa-hia.example", false, 25},
	{"U-labels in brackets with a port", "[bücher.example.]:587", mta.KeyPolicyDomain, "xn--bcher-kva.example", true, 587},
	{"another full stop", "bücher。example", mta.KeyPolicyDomain, "xn--bcher-kva.example", false, 25},
	{"another full stop at the end", "bücher.example。", mta.KeyPolicyDomain, "xn--bcher-kva.example", false, 25},
	{"wide letters are letters", "ｅｘａｍｐｌｅ.com", mta.KeyPolicyDomain, "example.com", false, 25},
	{"a U-label and an A-label", "bücher.xn--bcher-kva.example", mta.KeyPolicyDomain, "xn--bcher-kva.xn--bcher-kva.example", false, 25},
	{"no UTF-8", "b\xfccher.example", mta.KeyUnconvertible, "", false, 0},
	{"cut off in a letter", "example\xc3", mta.KeyUnconvertible, "", false, 0},
	{"a disallowed character", "b\u2028.example", mta.KeyUnconvertible, "", false, 0},
	{"a broken A-label beside a U-label", "bücher.xn--99999999.example", mta.KeyUnconvertible, "", false, 0},
	{"a U-label that gets too long", strings.Repeat("ü", 64) + ".example", mta.KeyUnconvertible, "", false, 0},
	{"U-labels that get too long together", strings.Repeat("bücher.", 40) + "example", mta.KeyUnconvertible, "", false, 0},
	{"a U-label that ends in a hyphen", "bü-.example", mta.KeyUnconvertible, "", false, 0},
	{"an empty label beside a U-label", "bücher..example", mta.KeyUnconvertible, "", false, 0},
	{"padding that vanishes", strings.Repeat("\u00ad", 600) + "a.example", mta.KeyUnconvertible, "", false, 0},
	{"without STD3 rules an underscore converts, and is no host name", "b_ü.example", mta.KeyNotHostName, "", false, 0},
	{"what becomes a slash is no host name", "℀.example", mta.KeyNotHostName, "", false, 0},
	{"what becomes a colon is no port", "bücher.example：25", mta.KeyNotHostName, "", false, 0},
	{"wide digits are an address", "１９２.0.2.1", mta.KeyAddress, "", false, 0},
	{"one U-label", "bücher", mta.KeyOneLabel, "", false, 0},

	// No policy can apply.
	{"a parent domain", ".example.com", mta.KeyParent, "", false, 0},
	{"the end of the walk", ".com", mta.KeyParent, "", false, 0},
	{"a parent domain with U-labels", ".bücher.example", mta.KeyParent, "", false, 0},
	{"a dot", ".", mta.KeyParent, "", false, 0},
	{"an IPv4 literal", "[192.0.2.1]", mta.KeyAddress, "", false, 0},
	{"an IPv4 literal with a port", "[192.0.2.1]:25", mta.KeyAddress, "", false, 0},
	{"an IPv6 literal", "[IPv6:2001:db8::1]", mta.KeyAddress, "", false, 0},
	{"an IPv6 literal, folded, with a port", "[ipv6:2001:db8::1]:25", mta.KeyAddress, "", false, 0},
	{"an IPv6 address in brackets", "[2001:db8::1]", mta.KeyAddress, "", false, 0},
	{"a bare IPv4 address", "192.0.2.1", mta.KeyAddress, "", false, 0},
	{"a bare IPv4 address with a port", "192.0.2.1:25", mta.KeyAddress, "", false, 0},
	{"a bare IPv6 address", "2001:db8::1", mta.KeyAddress, "", false, 0},
	{"the unspecified address", "::", mta.KeyAddress, "", false, 0},
	{"one label", "localhost", mta.KeyOneLabel, "", false, 0},
	{"one label in brackets", "[mailhub]:25", mta.KeyOneLabel, "", false, 0},
	{"one label and a dot", "com.", mta.KeyOneLabel, "", false, 0},
	{"a keyword", "hostname", mta.KeyOneLabel, "", false, 0},
	{"nothing", "", mta.KeyNotHostName, "", false, 0},
	{"empty brackets", "[]", mta.KeyNotHostName, "", false, 0},
	{"empty brackets with a port", "[]:25", mta.KeyNotHostName, "", false, 0},
	{"only a port", ":25", mta.KeyNotHostName, "", false, 0},
	{"a bracket that stays open", "[mail.example.com", mta.KeyNotHostName, "", false, 0},
	{"a bracket that was never opened", "mail.example.com]", mta.KeyNotHostName, "", false, 0},
	{"something behind the bracket", "[mail.example.com]25", mta.KeyNotHostName, "", false, 0},
	{"brackets in brackets", "[[mail.example.com]]", mta.KeyNotHostName, "", false, 0},
	{"brackets at the end", "mail.[example.com]", mta.KeyNotHostName, "", false, 0},
	{"two ports", "example.com:25:25", mta.KeyNotHostName, "", false, 0},
	{"a port that is none", "example.com:2 5", mta.KeyNotHostName, "", false, 0},
	{"a path for a port", "unix:/var/run/lmtp", mta.KeyNotHostName, "", false, 0},
	{"an endless port", "example.com:" + strings.Repeat("1", 65), mta.KeyNotHostName, "", false, 0},
	{"an empty label", "a..b", mta.KeyNotHostName, "", false, 0},
	{"two dots at the end", "example.com..", mta.KeyNotHostName, "", false, 0},
	{"a dot in brackets", "[.example.com]", mta.KeyNotHostName, "", false, 0},
	{"a label of 64", label63 + "a.example", mta.KeyNotHostName, "", false, 0},
	{"a last label of 64", "example." + label63 + "a", mta.KeyNotHostName, "", false, 0},
	{"a name of 254", name253 + "b", mta.KeyNotHostName, "", false, 0},
	{"a name of 254 with capitals", "A" + name253, mta.KeyNotHostName, "", false, 0},
	{"64 KiB", strings.Repeat("a.", 32<<10), mta.KeyNotHostName, "", false, 0},
	{"a hyphen in front", "-a.example", mta.KeyNotHostName, "", false, 0},
	{"a hyphen behind", "a-.example", mta.KeyNotHostName, "", false, 0},
	{"a hyphen at the end", "a.example-", mta.KeyNotHostName, "", false, 0},
	{"an underscore", "_dmarc.example.com", mta.KeyNotHostName, "", false, 0},
	{"a wildcard", "*.example.com", mta.KeyNotHostName, "", false, 0},
	{"a number for a top-level domain", "example.123", mta.KeyNotHostName, "", false, 0},
	{"digits and dots that are no address", "192.0.2.256", mta.KeyNotHostName, "", false, 0},
	{"a user", "user@example.com", mta.KeyNotHostName, "", false, 0},
	{"a space", "example.com example.net", mta.KeyNotHostName, "", false, 0},
	{"a space in front", " example.com", mta.KeyNotHostName, "", false, 0},
	{"a NUL", "example.com\x00", mta.KeyNotHostName, "", false, 0},
	{"a NUL within", "exam\x00ple.com", mta.KeyNotHostName, "", false, 0},
	{"a line's end", "example.com\n", mta.KeyNotHostName, "", false, 0},
	{"DEL", "example\x7f.com", mta.KeyNotHostName, "", false, 0},
	{"a brace", "example.com}", mta.KeyNotHostName, "", false, 0},
}

func TestKeysAreTakenApart(t *testing.T) {
	for _, tt := range keyTests {
		t.Run(tt.name, func(t *testing.T) {
			key := []byte(tt.key)
			var room [hostname.MaxName]byte
			for _, scratch := range [][]byte{nil, room[:0]} {
				hop, kind := mta.ParseKey(key, scratch)
				if kind != tt.kind || string(hop.Domain) != tt.domain || hop.Bracketed != tt.bracketed || hop.Port != tt.port {
					t.Errorf("ParseKey(%q) = %v (%s), want %v (%s): domain %q, want %q; bracketed %t; port %d",
						tt.key, kind, kind, tt.kind, tt.kind, hop.Domain, tt.domain, hop.Bracketed, hop.Port)
				}
			}
			if string(key) != tt.key {
				t.Errorf("the key was changed to %q", key)
			}
		})
	}
}

func TestRFC8461_3_4_TheSmartHostsNameIsThePolicyDomain(t *testing.T) {
	for _, key := range []string{"mail.example.com", "[mail.example.com]", "[mail.example.com]:587", "mail.example.com:25", "[Mail.Example.Com.]"} {
		hop, kind := mta.ParseKey([]byte(key), nil)
		if kind != mta.KeyPolicyDomain || string(hop.Domain) != "mail.example.com" {
			t.Errorf("%s: policy domain %q (%s), want mail.example.com", key, hop.Domain, kind)
		}
	}
}

func TestKeysAreTakenApartWithoutAllocation(t *testing.T) {
	var room [hostname.MaxName]byte
	for _, key := range []string{"example.com", "[mail.example.com]", "[mail.example.com]:587", "Example.COM", ".example.com", "localhost"} {
		b := []byte(key)
		if n := testing.AllocsPerRun(100, func() { mta.ParseKey(b, room[:0]) }); n != 0 {
			t.Errorf("%s: %v allocations", key, n)
		}
	}
}

func FuzzKey(f *testing.F) {
	for _, tt := range keyTests {
		f.Add([]byte(tt.key))
	}
	f.Fuzz(func(t *testing.T, key []byte) {
		before := bytes.Clone(key)
		var room [hostname.MaxName]byte
		hop, kind := mta.ParseKey(key, room[:0])
		if !bytes.Equal(key, before) {
			t.Fatalf("the key was changed: %q", key)
		}
		if kind != mta.KeyPolicyDomain {
			if hop.Domain != nil || hop.Bracketed || hop.Port != 0 {
				t.Fatalf("%s, but a hop was returned: %+v", kind, hop)
			}
			return
		}
		// Said without the code under test: what may go on to the DNS.
		for label := range bytes.SplitSeq(hop.Domain, []byte{'.'}) {
			if n := len(label); n < 1 || n > 63 || label[0] == '-' || label[n-1] == '-' {
				t.Fatalf("bad label %q in %q", label, hop.Domain)
			}
			if bytes.ContainsFunc(label, func(r rune) bool { return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789-", r) }) {
				t.Fatalf("bad character in %q", hop.Domain)
			}
		}
		if len(hop.Domain) > 253 || !bytes.Contains(hop.Domain, []byte{'.'}) {
			t.Fatalf("no domain: %q", hop.Domain)
		}
		if key[0] == '.' {
			t.Fatalf("a parent domain came through: %q", key)
		}
		// The domain is its own policy domain, also in brackets, with a port, a dot, in capitals.
		for _, form := range []string{"%", "[%]", "[%]:25", "%:25", "%.", "[%.]:25"} {
			for _, domain := range []string{string(hop.Domain), strings.ToUpper(string(hop.Domain))} {
				again, kind := mta.ParseKey([]byte(strings.ReplaceAll(form, "%", domain)), nil)
				if kind != mta.KeyPolicyDomain || !bytes.Equal(again.Domain, hop.Domain) || again.Port != 25 {
					t.Fatalf("%s of %q: %q (%s)", form, domain, again.Domain, kind)
				}
			}
		}
	})
}
