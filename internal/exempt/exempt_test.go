package exempt_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
)

func TestExemptDomains(t *testing.T) {
	x := exempt.ForGood([]string{"example.com", ".example.net", "xn--bcher-kva.example", ".internal"})
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
		if got := x.Has([]byte(domain)); got != want {
			t.Errorf("%s: exempt %t, want %t", domain, got, want)
		}
	}
	if exempt.Set(nil).Has([]byte("example.com")) {
		t.Error("an empty list exempts")
	}
}

func TestEntriesAreConvertedAsTheKeysOfLookupsAre(t *testing.T) {
	for entry, want := range map[string]string{
		"Example.COM.":                       "example.com",
		".Example.com":                       ".example.com",
		"Bücher.example":                     "xn--bcher-kva.example",
		"ab--cd.example":                     "ab--cd.example", // the rules of U-labels are not for ASCII
		"xn--a.example":                      "xn--a.example",
		"a\u200db.example":                   "xn--ab-m1t.example", // a joiner where UTS 46 allows it
		"bücher。example。":                    "xn--bcher-kva.example",
		"\xff.example":                       "",
		"b\xfccher.de":                       "",
		"xn--ü.example":                      "",
		"two words.example":                  "",
		"192.0.2.1":                          "",
		strings.Repeat("ü", 64) + ".example": "",
		"":                                   "",
		".":                                  "",
		"*.example.com":                      "",
		"..example.com":                      "",
		"example.com:25":                     "",
		"[example.com]":                      "",
		"user@example.se":                    "",
	} {
		if got, err := exempt.Parse(entry); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", entry, got, err, want)
		}
	}
}

func TestOfSeveralExemptionsTheLongestCounts(t *testing.T) {
	at := func(seconds int64) time.Time { return time.Unix(seconds, 0) }
	x, err := exempt.Timed([]exempt.Exemption{{".example.com", at(20)}, {"a.example.com", at(30)}, {"B.Example.", at(10)}})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		domain    string
		now, want int64
	}{
		{"a.example.com", 0, 30}, {"a.example.com", 29, 30}, {"a.example.com", 30, 0}, {"c.a.example.com", 0, 20}, {"c.a.example.com", 20, 0},
		{"example.com", 0, 0}, {"b.example", 9, 10}, {"b.example", 10, 0},
	} {
		if got := x.Until([]byte(tt.domain), tt.now); got != tt.want {
			t.Errorf("%s at %d: exempt until %d, want %d", tt.domain, tt.now, got, tt.want)
		}
	}
	if !x.Has([]byte("b.example")) {
		t.Error("what is in the set is not had")
	}
}

func TestEntriesThatExemptADomainAreListed(t *testing.T) {
	always := exempt.ForGood([]string{".example", "b.example", "other.test"})
	end := time.Unix(20, 0).UTC()
	timed, err := exempt.Timed([]exempt.Exemption{{".b.example", end}, {"a.b.example", end}, {".a.b.example", end}})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		set    exempt.Set
		domain string
		now    int64
		want   []exempt.Exemption
	}{
		{always, "b.example", 30, []exempt.Exemption{{Domain: "b.example"}, {Domain: ".example"}}},
		{always, "a.b.example", 30, []exempt.Exemption{{Domain: ".example"}}},
		{always, "example", 30, nil},
		{timed, "a.b.example", 19, []exempt.Exemption{{"a.b.example", end}, {".b.example", end}}},
		{timed, "a.b.example", 20, nil},
		{timed, ".a.b.example", 19, []exempt.Exemption{{".a.b.example", end}, {".b.example", end}}},
		{nil, "a.test", 0, nil},
	} {
		if got := tt.set.Matching(tt.domain, tt.now); !slices.Equal(got, tt.want) {
			t.Errorf("%s at %d: %v, want %v", tt.domain, tt.now, got, tt.want)
		}
		if !strings.HasPrefix(tt.domain, ".") && (tt.set.Until([]byte(tt.domain), tt.now) != 0) != (tt.want != nil) {
			t.Errorf("%s at %d: Until does not agree", tt.domain, tt.now)
		}
	}
}
