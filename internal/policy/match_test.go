package policy

import "testing"

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
