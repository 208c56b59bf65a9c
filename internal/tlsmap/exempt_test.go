package tlsmap

import (
	"strings"
	"testing"
)

func TestExemptDomains(t *testing.T) {
	x, err := newExemptions([]string{"example.com", ".example.net", "Bücher.Example.", ".internal"})
	if err != nil {
		t.Fatal(err)
	}
	for domain, want := range map[string]bool{
		"example.com":            true,
		"sub.example.com":        false,
		"notexample.com":         false,
		"example.net":            false,
		"sub.example.net":        true,
		"deep.sub.example.net":   true,
		"notexample.net":         false,
		"xn--bcher-kva.example":  true,
		"host.internal":          true,
		"internal.example":       false,
		"example.com.example.se": false,
	} {
		if got := x.has([]byte(domain)); got != want {
			t.Errorf("%s: exempt %t, want %t", domain, got, want)
		}
	}
	if (exemptions)(nil).has([]byte("example.com")) {
		t.Error("an empty list exempts")
	}
}

func TestAnExemptEntryThatIsNoDomainIsAnError(t *testing.T) {
	for entry, want := range map[string]string{
		"":                "is no domain",
		".":               "is no domain",
		"*.example.com":   `is written ".example.com"`,
		"..example.com":   "is no domain",
		"example.com:25":  "is no domain",
		"[example.com]":   "is no domain",
		"exa mple.com":    "is no domain",
		"b\xfccher.de":    "cannot be converted",
		"user@example.se": "is no domain",
	} {
		if got, err := ParseExempt(entry); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %q, %v; want an error with %q", entry, got, err, want)
		}
	}
}
