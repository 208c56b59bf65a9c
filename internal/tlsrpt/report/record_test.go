package report_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
)

// uris returns the URIs of destinations.
func uris(found []report.Destination) []string {
	var list []string
	for _, d := range found {
		list = append(list, d.URI)
	}
	return list
}

func TestRFC8460_3_Record(t *testing.T) {
	name32 := strings.Repeat("a1", 16)
	const one = "mailto:tls@example.com"
	for _, tt := range []struct {
		name, txt string
		want      []string // none: broken
	}{
		{"the first example of the standard", "v=TLSRPTv1;rua=mailto:reports@example.com", []string{"mailto:reports@example.com"}},
		{"the second example of the standard", "v=TLSRPTv1; rua=https://reporting.example.com/v1/tlsrpt", []string{"https://reporting.example.com/v1/tlsrpt"}},
		{"a semicolon at the end", "v=TLSRPTv1; rua=mailto:tls@example.com;", []string{one}},
		{"white space around semicolons", "v=TLSRPTv1 \t; \t rua=mailto:tls@example.com \t ; a=b", []string{one}},
		{"two URIs", "v=TLSRPTv1; rua=mailto:tls@example.com,https://example.com/tls", []string{one, "https://example.com/tls"}},
		{"white space around commas", "v=TLSRPTv1; rua=mailto:tls@example.com \t, \thttps://example.com/tls", []string{one, "https://example.com/tls"}},
		{"two rua, as the grammar has it", "v=TLSRPTv1; rua=mailto:tls@example.com; rua=https://example.com/tls", []string{one, "https://example.com/tls"}},
		{"a URI twice", "v=TLSRPTv1; rua=mailto:tls@example.com,mailto:tls@EXAMPLE.com", []string{one}},
		{"an extension before and after", "v=TLSRPTv1; a=b; rua=mailto:tls@example.com; c=d", []string{one}},
		{"an extension's name of 32 characters", "v=TLSRPTv1; rua=mailto:tls@example.com; " + name32 + "=x", []string{one}},
		{"a URI of another scheme beside a good one", "v=TLSRPTv1; rua=http://example.com/,mailto:tls@example.com", []string{one}},
		{"a broken URI beside a good one", "v=TLSRPTv1; rua=mailto:,mailto:tls@example.com,,", []string{one}},

		{"an extension's name of 33 characters", "v=TLSRPTv1; rua=mailto:tls@example.com; " + name32 + "x=x", nil},
		{"an extension's value with an equals sign", "v=TLSRPTv1; rua=mailto:tls@example.com; a=b=c", nil},
		{"an extension's value with a space", "v=TLSRPTv1; rua=mailto:tls@example.com; a=b c", nil},
		{"an extension without a value", "v=TLSRPTv1; rua=mailto:tls@example.com; a", nil},
		{"an empty field", "v=TLSRPTv1;; rua=mailto:tls@example.com", nil},
		{"no rua", "v=TLSRPTv1; a=b", nil},
		{"nothing", "v=TLSRPTv1;", nil},
		{"an empty rua", "v=TLSRPTv1; rua=", nil},
		{"a rua in upper case is an extension", "v=TLSRPTv1; RUA=mailto:tls@example.com", nil},
		{"no usable URI", "v=TLSRPTv1; rua=ftp://example.com/,mailto:tls", nil},
		{"a semicolon within a URI", "v=TLSRPTv1; rua=https://example.com/a;b", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			found, err := report.FindRecord([]string{tt.txt})
			if !slices.Equal(uris(found), tt.want) || tt.want == nil && !errors.Is(err, report.ErrNoRecord) || tt.want != nil && err != nil {
				t.Errorf("got %q, %v; want %q", uris(found), err, tt.want)
			}
		})
	}
}

func TestRFC8460_3_ExactlyOneRecordMustRemain(t *testing.T) {
	const good = "v=TLSRPTv1; rua=mailto:tls@example.com"
	for _, tt := range []struct {
		name string
		txts []string
		want error
	}{
		{"none", nil, report.ErrNoRecord},
		{"others only", []string{"v=spf1 -all", "", "v=TLSRPTv1", "v=TLSRPTv10; rua=mailto:tls@example.com", "v=tlsrptv1; rua=mailto:tls@example.com", " " + good}, report.ErrNoRecord},
		{"one among others", []string{"v=spf1 -all", good, "v=TLSRPTv2; rua=mailto:tls@example.com"}, nil},
		{"two", []string{good, "v=TLSRPTv1; rua=mailto:other@example.com"}, report.ErrNoRecord},
		{"the same twice", []string{good, good}, report.ErrNoRecord},
		{"a good and a broken one", []string{good, "v=TLSRPTv1;"}, report.ErrNoRecord},
		{"two, one with white space before the semicolon", []string{good, "v=TLSRPTv1 ; rua=mailto:tls@example.com"}, report.ErrNoRecord},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if found, err := report.FindRecord(tt.txts); !errors.Is(err, tt.want) || (err == nil) != (len(found) == 1) {
				t.Errorf("got %q, %v; want %v", uris(found), err, tt.want)
			}
		})
	}
}

// A record is unauthenticated text of a stranger: it must name one plain address or one
// public web host.
func TestADestinationIsOnePlainAddressOrOnePublicHost(t *testing.T) {
	for uri, want := range map[string]string{ // empty: refused
		"mailto:tls@example.com":                       "mailto:tls@example.com",
		"MAILTO:TLS@EXAMPLE.com":                       "mailto:TLS@example.com",
		"mailto:tls%40example.com":                     "mailto:tls@example.com",
		"mailto:t%6Cs+a@xn--bcher-kva.example":         "mailto:tls+a@xn--bcher-kva.example",
		"mailto:a.b-c_d=e@mail_host.example.com":       "mailto:a.b-c_d=e@mail_host.example.com",
		"mailto:a@b.example?bcc=c@d.example":           "",
		"mailto:a@b.example%3Fbcc=c@d.example":         "",
		"mailto:?to=a@b.example":                       "",
		"mailto:a#b@c.example":                         "",
		"mailto:a@b.example#x":                         "",
		"mailto:a@b.example,c@d.example":               "",
		"mailto:a@b.example%2Cc@d.example":             "",
		"mailto:a%2Cc@b.example":                       "",
		"mailto:a@b.example%0d%0aBcc:c@d.example":      "",
		"mailto:a%0d%0a@b.example":                     "",
		"mailto:a%0AX@b.example":                       "",
		"mailto:a%00@b.example":                        "",
		"mailto:a%20b@b.example":                       "",
		"mailto:-oQ/tmp@b.example":                     "",
		"mailto:%2Doi@b.example":                       "",
		"mailto:a@-b.example":                          "",
		`mailto:"a"@b.example`:                         "",
		"mailto:%22a%20b%22@b.example":                 "",
		"mailto:<a@b.example>":                         "",
		"mailto:a(x)@b.example":                        "",
		"mailto:a%25c.example@b.example":               "",
		"mailto:c.example%21a@b.example":               "",
		"mailto:a@b.example!10m":                       "",
		"mailto:%7Crm@b.example":                       "",
		"mailto:%2Fetc%2Fpasswd@b.example":             "",
		"mailto:$%7BHOME%7D@b.example":                 "",
		"mailto:.a@b.example":                          "",
		"mailto:a..b@b.example":                        "",
		"mailto:a.@b.example":                          "",
		"mailto:@b.example":                            "",
		"mailto:a@":                                    "",
		"mailto:a":                                     "",
		"mailto:a@b@c.example":                         "",
		"mailto:a@localhost":                           "",
		"mailto:a@b.example.":                          "",
		"mailto:a@192.0.2.1":                           "",
		"mailto:a@[192.0.2.1]":                         "",
		"mailto:a@b.1":                                 "",
		"mailto:a@%C3%A4.example":                      "",
		"mailto:%E4@b.example":                         "",
		"mailto:a@b.example%":                          "",
		"mailto:a@b.example%zz":                        "",
		"mailto:a@b.example%250d":                      "",
		"mailto://a@b.example":                         "",
		"mailto:" + strings.Repeat("a", 64) + "@b.de":  "mailto:" + strings.Repeat("a", 64) + "@b.de",
		"mailto:" + strings.Repeat("a", 65) + "@b.de":  "",
		"mailto:a@" + strings.Repeat("b.", 126) + "de": "",

		"https://example.com/tls":                          "https://example.com/tls",
		"https://example.com":                              "https://example.com/",
		"HTTPS://EXAMPLE.com:443/Tls?a=b%2Cc&d=%21":        "https://example.com/Tls?a=b%2Cc&d=%21",
		"https://example.com/a%2Fb":                        "https://example.com/a%2Fb",
		"https://example.com:25/":                          "",
		"https://example.com:8443/":                        "",
		"https://example.com:443x/":                        "",
		"https://user@example.com/":                        "",
		"https://user:secret@example.com/":                 "",
		"https://@example.com/":                            "",
		"https://example.com/#x":                           "",
		"https://example.com/!":                            "",
		"https://127.0.0.1/":                               "",
		"https://2130706433/":                              "",
		"https://0x7f000001/":                              "",
		"https://0x7f.1/":                                  "",
		"https://[::1]/":                                   "",
		"https://[fe80::1%25eth0]/":                        "",
		"https://localhost/":                               "",
		"https://example.com./":                            "",
		`https://example.com/?"`:                           "",
		"https:///tls":                                     "",
		"https:tls":                                        "",
		"https:example.com/tls":                            "",
		`https://example.com\@evil.example/`:               "",
		"https://example.com%00.evil.example/":             "",
		"https://example.com/\r\nX: y":                     "",
		"https://exa mple.com/":                            "",
		"https://b\u00fccher.example/":                     "",
		"https://b%C3%BCcher.example/":                     "",
		"https://example.com/" + strings.Repeat("a", 1000): "",
		"http://example.com/tls":                           "",
		"ftp://example.com/tls":                            "",
		"file:///etc/passwd":                               "",
		"javascript:alert(1)":                              "",
		"example.com":                                      "",
		"":                                                 "",
		" mailto:a@b.example":                              "",
		"mailto":                                           "",
		"https":                                            "",
		"https://example.com/" + strings.Repeat("%", 3) + "41/": "",
	} {
		d, err := report.ParseDestination(uri)
		if d.URI != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %+v, %v; want %q", uri, d, err, want)
		}
		if err != nil && (len(err.Error()) > 300 || strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' || r > '~' })) {
			t.Errorf("%q: the error is not fit for a log: %q", uri, err)
		}
		if again, err := report.ParseDestination(d.URI); want != "" && (err != nil || again != d) {
			t.Errorf("%q: parsed again it is %+v, %v", d.URI, again, err)
		}
	}
}

func TestOfFiveHundredURIsTheFirstFiveAreUsed(t *testing.T) {
	var list, want []string
	for i := range 500 {
		list = append(list, fmt.Sprintf("mailto:tls@d%d.example", i))
	}
	want = list[:report.MaxDestinations]
	found, err := report.FindRecord([]string{"v=TLSRPTv1; rua=mailto:," + strings.Join(list, ",")})
	if err != nil || !slices.Equal(uris(found), want) {
		t.Errorf("got %q, %v", uris(found), err)
	}
}

func FuzzRecord(f *testing.F) {
	for _, s := range []string{
		"", "v=TLSRPTv1;rua=mailto:reports@example.com", "v=TLSRPTv1 ; a=b; rua=https://reporting.example.com/v1/tlsrpt?a=%2C ,mailto:a%40b.example;",
		"v=TLSRPTv1; rua=mailto:a@b.example?bcc=c; rua=mailto:a@b.example%0d%0a", "v=TLSRPTv1; rua=https://user@example.com:25/#x", `v=TLSRPTv1; rua=https://example.com/?"`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, txt string) {
		found, err := report.FindRecord([]string{txt})
		if err != nil {
			if len(found) > 0 || len(err.Error()) > 500 || strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Fatalf("%q: %q, %q", txt, uris(found), err)
			}
			return
		}
		if len(found) == 0 || len(found) > report.MaxDestinations {
			t.Fatalf("%q: %q", txt, uris(found))
		}
		for _, d := range found {
			again, err := report.ParseDestination(d.URI)
			if err != nil || again != d {
				t.Fatalf("%q: %q is %+v, %v", txt, d.URI, again, err)
			}
			bad := func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(",;<>\"\\", r) }
			if strings.ContainsFunc(d.URI+d.Host, bad) || strings.HasPrefix(d.Address, "-") || strings.Count(d.Address, "@") > 1 || !strings.Contains(d.Host, ".") {
				t.Fatalf("%q: %+v", txt, d)
			}
		}
	})
}
