package policy

import (
	"strings"
	"testing"
)

func TestRFC8461_4_1_Match(t *testing.T) {
	for _, tt := range []struct {
		pattern, host string
		want          bool
	}{
		{"mail.example.com", "mail.example.com", true},
		{"mail.example.com", "MAIL.Example.COM", true},
		{"MAIL.example.com", "mail.example.com.", true},
		{"mail.example.com.", "mail.example.com", true},
		{"mail.example.com", "mail2.example.com", false},
		{"mail.example.com", "example.com", false},
		{"example.com", "mail.example.com", false},
		{"*.example.com", "mail.example.com", true},
		{"*.example.com", "MAIL.EXAMPLE.COM.", true},
		{"*.example.com", "xn--mgbh0fb.example.com", true},
		{"*.example.com", "mail_1.example.com", true},
		{"*.example.com", "a.b.example.com", false},
		{"*.example.com", "example.com", false},
		{"*.example.com", ".example.com", false},
		{"*.example.com", "mail.example.com.evil.test", false},
		{"*.example.com", "mailexample.com", false},
		{"*.com", "example.com", true},
		{"*.", "example", false},
		{"*", "example", false},
		{"*", "example.com", false},
		{"m*.example.com", "mail.example.com", false},
		{"a.*.com", "a.example.com", false},
		{"*.*.com", "a.b.com", false},
		{"", "", false},
		{"", "example.com", false},
		{"example.com", "", false},
		{".", ".", false},
		{"kiwi.example", "\u212aiwi.example", false}, // the sign for Kelvin is no k
	} {
		if got := Match(tt.pattern, tt.host); got != tt.want {
			t.Errorf("Match(%q, %q) = %v", tt.pattern, tt.host, got)
		}
	}
}

func TestRFC8461_4_1_AHostIsListedIfOnePatternMatches(t *testing.T) {
	for host, want := range map[string]bool{
		"mail.example.com": true, "any.example.net": true, "backupmx.example.com": true,
		"example.net": false, "other.example.com": false,
	} {
		if got := example.Lists(host); got != want {
			t.Errorf("Lists(%q) = %v", host, got)
		}
	}
	if (&Policy{}).Lists("example.com") {
		t.Error("a policy without patterns lists a host")
	}
}

func TestIsHostName(t *testing.T) {
	label := strings.Repeat("a", 63)
	for name, want := range map[string]bool{
		"example.com": true, "EXAMPLE.com": true, "a": true, "localhost": true, "_dmarc.example.com": true, "a_b.example": true,
		"xn--mgbh0fb.test": true, "1.example": true, "a.b-c.d1": true, "1.2.3.4a": true,
		label + ".example": true, strings.Repeat(label+".", 3) + strings.Repeat("b", 61): true,
		strings.Repeat(label+".", 3) + strings.Repeat("b", 62): false, label + "a.example": false,
		"": false, ".": false, "example.com.": false, ".example.com": false, "a..b": false, "-a.example": false, "a-.example": false,
		"a.-b": false, "192.0.2.1": false, "example.1": false, "1": false, "[192.0.2.1]": false, "::1": false,
		"a b.example": false, "a/b.example": false, "a:25": false, "a@b.example": false, "*.example.com": false,
		"m\u00fcller.example": false, "a\x00b": false, "a\n": false, "a%41": false, "a\\b": false,
	} {
		if got := IsHostName(name); got != want {
			t.Errorf("IsHostName(%q) = %v", name, got)
		}
	}
}
