package policy_test

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

const exampleText = "version: STSv1\n" +
	"mode: enforce\n" +
	"mx: mail.example.com\n" +
	"mx: *.example.net\n" +
	"mx: backupmx.example.com\n" +
	"max_age: 604800\n"

var example = policy.Policy{
	Mode:   policy.ModeEnforce,
	MaxAge: 604800 * time.Second,
	MX:     []string{"mail.example.com", "*.example.net", "backupmx.example.com"},
	Fields: []policy.Field{
		{"version", "STSv1"}, {"mode", "enforce"},
		{"mx", "mail.example.com"}, {"mx", "*.example.net"}, {"mx", "backupmx.example.com"},
		{"max_age", "604800"},
	},
}

// accepts fails the test unless the text parses to a policy like the example.
func accepts(t *testing.T, text string) {
	t.Helper()
	got, err := policy.Parse([]byte(text))
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	if got.Mode != example.Mode || got.MaxAge != example.MaxAge || !slices.Equal(got.MX, example.MX) {
		t.Fatalf("%q: %+v", text, got)
	}
}

func refuses(t *testing.T, text string) {
	t.Helper()
	p, err := policy.Parse([]byte(text))
	if !errors.Is(err, policy.ErrInvalid) {
		t.Fatalf("%q: got %+v, %v; want ErrInvalid", text, p, err)
	}
}

func TestRFC8461_3_2_TheExampleOfTheStandard(t *testing.T) {
	got, err := policy.Parse([]byte(exampleText))
	if err != nil || !reflect.DeepEqual(*got, example) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, example)
	}
}

func TestRFC8461_3_2_LinesEndInLFOrCRLF(t *testing.T) {
	crlf := strings.ReplaceAll(exampleText, "\n", "\r\n")
	for name, text := range map[string]string{
		"LF":                      exampleText,
		"CRLF":                    crlf,
		"both":                    strings.Replace(exampleText, "\n", "\r\n", 2),
		"no end of the last":      strings.TrimSuffix(exampleText, "\n"),
		"no end, CRLF":            strings.TrimSuffix(crlf, "\r\n"),
		"white space at an end":   strings.ReplaceAll(exampleText, "\n", " \t\n"),
		"white space, CRLF":       strings.ReplaceAll(exampleText, "\n", "\t \r\n"),
		"much after the colon":    strings.ReplaceAll(exampleText, ": ", ": \t \t"),
		"nothing after the colon": strings.ReplaceAll(exampleText, ": ", ":"),

		"a byte order mark":           "\ufeff" + exampleText,
		"an empty line at the end":    exampleText + "\n",
		"an empty line, CRLF":         crlf + "\r\n",
		"an empty line in the middle": strings.Replace(exampleText, "\n", "\n\n", 1),
		"an empty line at the start":  "\n" + exampleText,
		"a line of white space":       exampleText + " \t\n",
	} {
		t.Run(name, func(t *testing.T) { accepts(t, text) })
	}
	for name, text := range map[string]string{
		"CR":                         strings.ReplaceAll(exampleText, "\n", "\r"),
		"CR at the end of the text":  strings.TrimSuffix(exampleText, "\n") + "\r",
		"CR CR LF":                   strings.ReplaceAll(exampleText, "\n", "\r\r\n"),
		"two byte order marks":       "\ufeff\ufeff" + exampleText,
		"a byte order mark inside":   exampleText + "\ufeffx: y",
		"white space at the start":   " " + exampleText,
		"white space before a colon": strings.ReplaceAll(exampleText, ":", " :"),
		"nothing":                    "",
		"one line feed":              "\n",
	} {
		t.Run(name, func(t *testing.T) { refuses(t, text) })
	}
}

func TestRFC8461_3_2_AnyOrder(t *testing.T) {
	accepts(t, "max_age: 604800\nmx: mail.example.com\nmx: *.example.net\nmx: backupmx.example.com\nmode: enforce\nversion: STSv1")
}

func TestRFC8461_3_2_VersionAndMode(t *testing.T) {
	const rest = "\nmx: a.example\nmax_age: 1"
	for value, want := range map[string]policy.Mode{"enforce": policy.ModeEnforce, "testing": policy.ModeTesting, "none": policy.ModeNone} {
		p, err := policy.Parse([]byte("version: STSv1\nmode: " + value + rest))
		if err != nil || p.Mode != want {
			t.Errorf("mode %s: got %+v, %v", value, p, err)
		}
	}
	for _, text := range []string{
		"mode: enforce", "version: STSv1", // one is missing
		"version: STSv2\nmode: enforce", "version: stsv1\nmode: enforce", "Version: STSv1\nmode: enforce", "version: STSv1 x\nmode: enforce",
		"version: STSv1\nmode: Enforce", "version: STSv1\nmode: report", "version: STSv1\nMode: enforce", "version: STSv1\nmode:",
	} {
		refuses(t, text+rest)
	}
}

func TestRFC8461_3_2_MaxAge(t *testing.T) {
	parse := func(value string) (*policy.Policy, error) {
		return policy.Parse([]byte("version: STSv1\nmode: none\nmax_age: " + value))
	}
	for value, want := range map[string]time.Duration{
		"0":          0,
		"0000000060": time.Minute,
		"31557600":   policy.MaxMaxAge,
		"31557601":   policy.MaxMaxAge,
		"9223372036": policy.MaxMaxAge,
		"9223372037": policy.MaxMaxAge, // more nanoseconds than an int64 holds
		"9999999999": policy.MaxMaxAge,
	} {
		if p, err := parse(value); err != nil || p.MaxAge != want {
			t.Errorf("%s: got %+v, %v", value, p, err)
		}
	}
	for _, value := range []string{"", "-1", "+1", "1.5", "1d", "0x10", "1 0", "12345678901", "00000000001", "\u0661"} {
		if _, err := parse(value); !errors.Is(err, policy.ErrInvalid) {
			t.Errorf("%q: got %v", value, err)
		}
	}
	refuses(t, "version: STSv1\nmode: none") // it is required
}

func TestRFC8461_3_2_MXPatterns(t *testing.T) {
	parse := func(values ...string) (*policy.Policy, error) {
		return policy.Parse([]byte("version: STSv1\nmode: enforce\nmax_age: 1\nmx: " + strings.Join(values, "\nmx: ")))
	}
	long := strings.Repeat("a", 63)
	name253 := strings.Repeat(long+".", 3) + strings.Repeat("b", 61)
	for value, want := range map[string]string{
		"mail.example.com":   "mail.example.com",
		"Mail.EXAMPLE.com":   "mail.example.com",
		"mail.example.com.":  "mail.example.com",
		"*.example.com":      "*.example.com",
		"*.com":              "*.com",
		"hostname":           "hostname",
		"xn--mgbh0fb.test":   "xn--mgbh0fb.test",
		"1.2.3.4":            "1.2.3.4",
		"1.2.3.4.":           "1.2.3.4",
		"2001:DB8::1":        "2001:db8::1",
		"[2001:db8::1]":      "[2001:db8::1]",
		"[IPv6:::1]":         "[ipv6:::1]",
		"[IPV6:2001:DB8::1]": "[ipv6:2001:db8::1]",
		"::ffff:192.0.2.1":   "::ffff:192.0.2.1",
		"[192.0.2.1]":        "[192.0.2.1]",
		"[IPv6:192.0.2.1]":   "[ipv6:192.0.2.1]",
		"a-b.example":        "a-b.example",
		long + ".example":    long + ".example",
		name253:              name253,
		"*." + name253:       "*." + name253,
	} {
		p, err := parse(value)
		if err != nil || !slices.Equal(p.MX, []string{want}) {
			t.Errorf("%q: got %+v, %v", value, p, err)
		}
	}
	for _, value := range []string{
		"", "*", "*.", ".", "*.*.example.com", "a.*.example.com", "m*.example.com", "**.example.com", ".example.com",
		"a..example.com", "mail.example.com..", "-a.example.com", "a-.example.com", "a_b.example.com",
		"mail.example.com:25", "[192.0.2.1", "192.0.2.1]", "[192.0.2.1]:25", "[192.0.2.256]", "[mail.example.com]", "[]", "[fe80::1%eth0]", "[2001:db8::1", "2001:db8::1]", "ipv6:::1", "fe80::1%eth0", "fe80::1%} x={", "*.::1", "m\u00fcller.example", "a.example, b.example", "a.example b.example",
		"a.example;b", "{a.example}", long + "a.example", name253 + "b",
	} {
		if p, err := parse(value); !errors.Is(err, policy.ErrInvalid) {
			t.Errorf("%q: got %+v, %v", value, p, err)
		}
	}
}

func TestRFC8461_3_2_MXNamesAreALabels(t *testing.T) {
	_, err := policy.Parse([]byte("version: STSv1\nmode: enforce\nmx: m\u00fcller.example\nmax_age: 1"))
	if !errors.Is(err, policy.ErrInvalid) || !strings.Contains(err.Error(), "A-labels") {
		t.Errorf("got %v", err)
	}
}

func TestRFC8461_3_2_MXIsRequiredUnlessTheModeIsNone(t *testing.T) {
	refuses(t, "version: STSv1\nmode: enforce\nmax_age: 1")
	refuses(t, "version: STSv1\nmode: testing\nmax_age: 1")
	if p, err := policy.Parse([]byte("version: STSv1\nmode: none\nmax_age: 1")); err != nil || p.MX != nil {
		t.Errorf("mode none: got %+v, %v", p, err)
	}
}

func TestRFC8461_3_2_OfAFieldGivenTwiceTheFirstCountsButMXRepeats(t *testing.T) {
	p, err := policy.Parse([]byte("version: STSv1\nmode: enforce\nmode: none\nmode: nonsense\nversion: STSv9\n" +
		"mx: B.example\nmx: a.example\nmx: b.example\nmax_age: 86400\nmax_age: never\n"))
	want := &policy.Policy{
		Mode: policy.ModeEnforce, MaxAge: 24 * time.Hour,
		MX: []string{"b.example", "a.example"},
		Fields: []policy.Field{
			{"version", "STSv1"}, {"mode", "enforce"},
			{"mx", "B.example"}, {"mx", "a.example"}, {"mx", "b.example"}, {"max_age", "86400"},
		},
	}
	if err != nil || !reflect.DeepEqual(p, want) {
		t.Errorf("got %+v, %v", p, err)
	}
	refuses(t, "version: STSv1\nmode: nonsense\nmode: enforce\nmx: a.example\nmax_age: 1")
	refuses(t, "version: STSv1\nmode: enforce\nmode enforce\nmx: a.example\nmax_age: 1") // a repetition must be well-formed
}

func TestRFC8461_3_2_UnknownFieldsAreIgnoredIfWellFormed(t *testing.T) {
	name32 := strings.Repeat("n", 32)
	for _, line := range []string{
		"x: y", "X:y", "0: !", "a_b-c.d: e", name32 + ": y", "MX: not ! a host", "url: https://example.com:443/?a=b;c",
		"words: with inner  spaces", "utf8: \u00e4\u20ac\U0001f4a1 \u00e4", "c1: \u0080", "last: \U0010ffff", "brace: } { policy_type=sts",
		"colon: :::",
	} {
		t.Run(line, func(t *testing.T) {
			accepts(t, line+"\n"+exampleText)
			accepts(t, exampleText+line)
			if p, err := policy.Parse([]byte(exampleText + line)); err != nil || !reflect.DeepEqual(p.Fields, example.Fields) {
				t.Errorf("it shows in the fields: %+v, %v", p.Fields, err)
			}
		})
	}
	for _, line := range []string{
		"no colon", "# comment", "x:", "x: ", ": y", " x: y", "x : y", "_x: y", "-x: y", "x y: z", "\u00e4: y", name32 + "n: y",
		"x: a\tb", "x: a\x00b", "x: \x1b[2J", "x: \x7f", "x: a\rb", "x: \xff", "x: \xc0\x80", "x: \xed\xa0\x80", "x: \xf4\x90\x80\x80",
	} {
		t.Run(line, func(t *testing.T) {
			refuses(t, line+"\n"+exampleText)
			refuses(t, exampleText+line)
		})
	}
}

func TestRFC8461_10_3_ThePolicyIsBounded(t *testing.T) {
	var many strings.Builder
	many.WriteString("version: STSv1\nmode: enforce\nmax_age: 1\n")
	for i := range policy.MaxPatterns {
		fmt.Fprintf(&many, "mx: a%d.example\n", i)
	}
	if p, err := policy.Parse([]byte(many.String())); err != nil || len(p.MX) != policy.MaxPatterns {
		t.Errorf("%d patterns: %v", policy.MaxPatterns, err)
	}
	refuses(t, many.String()+"mx: a0.example\n")

	full := exampleText + "x: "
	full += strings.Repeat("y", policy.MaxText-len(full))
	accepts(t, full)
	refuses(t, full+"y")
}

func TestErrorsOfPoliciesNameTheLineAndAreShort(t *testing.T) {
	_, err := policy.Parse([]byte(exampleText + strings.Repeat("\x1b", 10000)))
	if err == nil || !strings.Contains(err.Error(), "line 7") || len(err.Error()) > 1000 || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("got %v", err)
	}
	for text, words := range map[string]string{
		"":     "no version, no mode, no max_age, no mx",
		"x: y": "no version, no mode, no max_age, no mx",
		"Version: STSv1\nMode: enforce\nmx: a.example\nmax_age: 1": `no version (names are case-sensitive: "Version" is another field), no mode (names`,
	} {
		if _, err := policy.Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: got %v", text, err)
		}
	}
}

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
		if got := policy.Match(tt.pattern, tt.host); got != tt.want {
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
	if (&policy.Policy{}).Lists("example.com") {
		t.Error("a policy without patterns lists a host")
	}
}

// render writes a policy as a domain would serve it.
func render(p *policy.Policy) []byte {
	var b bytes.Buffer
	for _, f := range p.Fields {
		fmt.Fprintf(&b, "%s: %s\n", f.Key, f.Value)
	}
	return b.Bytes()
}

var mxPattern = regexp.MustCompile(`^(\*\.)?[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)

var mxAddress = regexp.MustCompile(`^(\[(ipv6:)?[0-9a-f:.]+\]|[0-9a-f:.]+)$`)

func FuzzPolicy(f *testing.F) {
	for _, s := range []string{
		"", exampleText, strings.ReplaceAll(exampleText, "\n", "\t \r\n"),
		"version:STSv1\nmode:none\nmax_age:9999999999",
		"version: STSv1\nmode: enforce\nmx: [IPv6:2001:db8::1]\nmx: ::1\nmx: [192.0.2.1]\nmax_age: 1",
		"x: \u00e4 b\nversion: STSv1\nmode: testing\nmx: *.A.example.\nmx: a.example\nmax_age: 0\nmax_age: x",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		before := bytes.Clone(text)
		p, err := policy.Parse(text)
		if !bytes.Equal(before, text) {
			t.Fatal("the text was changed")
		}
		if err != nil {
			if !errors.Is(err, policy.ErrInvalid) || len(err.Error()) > 1000 {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		// The cache and the replies rely on this.
		if !utf8.Valid(text) || len(text) > policy.MaxText {
			t.Fatalf("accepted: %q", text)
		}
		for i, c := range text {
			if c == 0x7f || c < ' ' && c != '\t' && c != '\n' && (c != '\r' || i+1 == len(text) || text[i+1] != '\n') {
				t.Fatalf("accepted with byte %#x at %d: %q", c, i, text)
			}
		}
		if p.MaxAge < 0 || p.MaxAge > policy.MaxMaxAge || p.Mode.String() == "invalid" || len(p.MX) == 0 && p.Mode != policy.ModeNone {
			t.Fatalf("%q: %+v", text, p)
		}
		for _, pattern := range p.MX {
			if !mxPattern.MatchString(pattern) && !mxAddress.MatchString(pattern) {
				t.Fatalf("%q: pattern %q", text, pattern)
			}
			if !p.Lists(strings.Replace(pattern, "*", "label", 1)) {
				t.Fatalf("%q: pattern %q matches nothing", text, pattern)
			}
		}
		for _, field := range p.Fields {
			if strings.ContainsFunc(field.Value, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("{}=;,\"\\", r) }) {
				t.Fatalf("%q: field %+v", text, field)
			}
		}
		again, err := policy.Parse(render(p))
		if err != nil || !reflect.DeepEqual(again, p) {
			t.Fatalf("%q: %+v, but rendered again %+v, %v", text, p, again, err)
		}
	})
}
