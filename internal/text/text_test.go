package text_test

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

func TestPrintableEscapesControlCharacters(t *testing.T) {
	for in, want := range map[string]string{
		"mx.example.com":         "mx.example.com",
		"a\x1b[2Jb":              `a\x1b[2Jb`,
		"a\nb\x7f":               `a\x0ab\x7f`,
		"\u009b31m":              `\u{9b}31m`,
		"a\u202eb":               `a\u{202e}b`,
		"\xff\xfe":               `\xff\xfe`,
		"bücher":                 "bücher",
		strings.Repeat("x", 2e3): strings.Repeat("x", text.MaxPrinted) + "...",
	} {
		if got := text.Printable(in); got != want {
			t.Errorf("Printable(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestJSONIsOneLineWithoutControlCharacters(t *testing.T) {
	in := map[string]string{"a": "\u009b31m\u202e\x1b\n\x7f", "b": "Grüße \U000E0001"}
	var b strings.Builder
	if err := text.WriteJSON(&b, in); err != nil {
		t.Fatal(err)
	}
	const want = `{"a":"\u009b31m\u202e\u001b\n\u007f","b":"Grüße \udb40\udc01"}` + "\n"
	var back map[string]string
	if err := json.Unmarshal([]byte(b.String()), &back); err != nil || !maps.Equal(in, back) || b.String() != want {
		t.Errorf("got %s, %v, want %s", b.String(), err, want)
	}
}

func TestNoControlOrBidiCharacterIsPrintedInTextOrJSON(t *testing.T) {
	marks := []rune{0x200E, 0x200F, 0x061C, 0xFEFF, 0x2028, 0x2029, 0x7F, 0x00AD}
	for from, to := range map[rune]rune{0: 0x1F, 0x80: 0x9F, 0x202A: 0x202E, 0x2066: 0x2069} {
		for r := from; r <= to; r++ {
			marks = append(marks, r)
		}
	}
	for _, r := range marks {
		var b strings.Builder
		if err := text.WriteJSON(&b, map[string]string{"a": string(r)}); err != nil {
			t.Fatal(err)
		}
		var back map[string]string
		if err := json.Unmarshal([]byte(b.String()), &back); err != nil || back["a"] != string(r) {
			t.Errorf("%U: JSON %s, %v", r, b.String(), err)
		}
		if line := strings.TrimSuffix(b.String(), "\n"); strings.ContainsRune(line, r) || strings.ContainsRune(text.Printable(string(r)), r) {
			t.Errorf("%U is printed: %q, %q", r, line, text.Printable(string(r)))
		}
	}
}

func TestCutKeepsCharactersWhole(t *testing.T) {
	if got := text.Cut("aüb", 2); got != "a..." {
		t.Errorf("got %q", got)
	}
	if got := text.Quote("a\nb", 80); got != `"a\nb"` {
		t.Errorf("got %s", got)
	}
}

func TestWhenAndSpan(t *testing.T) {
	now := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	for want, at := range map[string]time.Time{
		"never":     {},
		"3h12m ago": now.Add(-3*time.Hour - 12*time.Minute - 5*time.Second),
		"in 6d":     now.Add(6 * 24 * time.Hour),
		"in 1d2h":   now.Add(26 * time.Hour),
		"0s ago":    now,
		"in 1m30s":  now.Add(90 * time.Second),
		"in 12d":    now.Add(12*24*time.Hour + 7*time.Hour),
	} {
		if got := text.When(at, now); got != want {
			t.Errorf("When(%v) = %q, want %q", at, got, want)
		}
	}
	if got := text.Span(-time.Second); got != "0s" {
		t.Errorf("Span of a negative duration is %q", got)
	}
}
