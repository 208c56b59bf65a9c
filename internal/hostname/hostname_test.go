package hostname

import (
	"strings"
	"testing"
)

func TestNamesOfMailDomainsAndHosts(t *testing.T) {
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
		if got := Valid(name); got != want {
			t.Errorf("Valid(%q) = %v", name, got)
		}
	}
}

func TestTheLabelsOfAHostNameAreCounted(t *testing.T) {
	label := strings.Repeat("a", 63)
	for name, want := range map[string]int{
		"a": 1, "example.com": 2, "xn--bcher-kva.example": 2, "a.b-c.d1": 3, "192.0.2.1": 4,
		strings.Repeat(label+".", 3) + strings.Repeat("b", 61): 4, strings.Repeat(label+".", 3) + strings.Repeat("b", 62): 0,
		label + "a.example": 0, "example." + label + "a": 0,
		"": 0, ".": 0, "a.": 0, ".a": 0, "a..b": 0, "-a.b": 0, "a-.b": 0, "a.b-": 0, "*.b": 0, "a\x00": 0, "\u212a.b": 0, "::1": 0,
	} {
		if got := Labels(name, 0); got != want || Labels([]byte(name), Upper|Underscore) != want {
			t.Errorf("Labels(%q) = %d, want %d", name, got, want)
		}
	}
	for _, tt := range []struct {
		name string
		also Characters
		want int
	}{
		{"A.b", 0, 0}, {"A.b", Underscore, 0}, {"A.b", Upper, 2},
		{"_a.b_c", 0, 0}, {"_a.b_c", Upper, 0}, {"_a.b_c", Underscore, 2},
		{"_A.b", Upper, 0}, {"_A.b", Upper | Underscore, 2},
	} {
		if got := Labels(tt.name, tt.also); got != tt.want {
			t.Errorf("Labels(%q, %d) = %d, want %d", tt.name, tt.also, got, tt.want)
		}
	}
}

func TestOnlyASCIIIsFolded(t *testing.T) {
	const name = "\u212aA-\u00dcZ@[`{"
	const want = "\u212aa-\u00dcz@[`{"
	if got := Lower(name); got != want {
		t.Errorf("Lower: %q", got)
	}
	if got := string(AppendLower([]byte("X"), []byte(name))); got != "X"+want {
		t.Errorf("AppendLower: %q", got)
	}
}
