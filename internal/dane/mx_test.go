package dane

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

func TestMX(t *testing.T) {
	for _, c := range []struct {
		name  string
		reply reply
		want  MXSet
	}{
		{"in order of preference, in lower case", insecure("20 B.example.", "10 Z.Example.", "20 a.example."),
			MXSet{Hosts: []MXHost{{"z.example", 10}, {"a.example", 20}, {"b.example", 20}}}},
		{"authenticated", secure("10 a.example."), MXSet{Hosts: []MXHost{{"a.example", 10}}}},
		{"without repeats", insecure("20 a.example.", "10 a.example.", "15 b.example."), MXSet{Hosts: []MXHost{{"a.example", 10}, {"b.example", 15}}}},
		{"null", secure("0 ."), MXSet{Null: true}},
		{"a root among hosts is no host", insecure("0 .", "10 a.example."), MXSet{Hosts: []MXHost{{"a.example", 10}}}},
		{"none: the domain itself", insecure(), MXSet{Hosts: []MXHost{{"example.com", 0}}}},
		{"NXDOMAIN", reply{security: Secure, nx: true}, MXSet{NXDomain: true}},
		{"what is no host name is dropped", insecure("10 a/b.example.", "10 192.0.2.1.", `10 a\.b.example.`, `10 a\032b.example.`,
			"10 -a.example.", "10 a-.example.", `10 \195\188.example.`, `10 a:b.example.`, "10 ok.example.", "10 a_b.example."), MXSet{Hosts: []MXHost{{"a_b.example", 10}, {"ok.example", 10}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := checker(newFake().set("example.com", "MX", c.reply)).MX(t.Context(), "example.com")
			if err != nil || !reflect.DeepEqual(*got, c.want) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

func TestHostsThatThePolicyDoesNotListAreBarredIfAnMTAComesToThemFirst(t *testing.T) {
	listed := func(host string) bool { return strings.HasPrefix(host, "mx") }
	for records, want := range map[string]string{
		"10 mx.example":   "",
		"10 evil.example": "evil.example",
		"10 evil.example 20 mx.example 30 bad.example": "evil.example",
		"10 mx.example 10 evil.example 20 bad.example": "evil.example", // half of the mail comes to it first
		"10 mx.example 20 evil.example":                "",
	} {
		f := strings.Fields(records)
		var data []string
		for i := 0; i < len(f); i += 2 {
			data = append(data, f[i]+" "+f[i+1]+".")
		}
		for _, answer := range []reply{secure(data...), insecure(data...)} {
			synctest.Test(t, func(t *testing.T) {
				c := checker(newFake().set("example.com", "MX", answer))
				for range 2 { // found, and held
					if got := c.Check(t.Context(), NextHop{Host: "example.com"}, listed).Barred; strings.Join(got, " ") != want {
						t.Errorf("%s, %v: %q", records, answer.security, got)
					}
				}
				if got := c.Check(t.Context(), NextHop{Host: "evil.example", Bracketed: true}, listed).Barred; got != nil {
					t.Errorf("without an MX lookup: %q", got)
				}
			})
		}
	}
	var many []MXHost
	for i := range 100 {
		many = append(many, MXHost{Name: fmt.Sprintf("evil%d.example", i)})
	}
	if got := Barred(many, listed); len(got) != maxBarred {
		t.Errorf("%d names", len(got))
	}
}

func TestAFailedMXLookupIsAnError(t *testing.T) {
	_, err := checker(newFake().set("example.com", "MX", reply{security: Bogus})).MX(t.Context(), "example.com")
	var e *resolver.Error
	if !errors.As(err, &e) || e.Kind != resolver.KindServFail {
		t.Errorf("%v", err)
	}
}

func TestVeryLargeMXSetsAreCut(t *testing.T) {
	f := newFake()
	var mx []string
	for i := range 1000 {
		mx = append(mx, fmt.Sprintf("10 %s%d.example.com.", strings.Repeat("x", 40), i))
	}
	s, err := checker(f.set("example.com", "MX", insecure(mx...))).MX(t.Context(), "example.com")
	if err != nil || len(s.Hosts) != maxHosts {
		t.Errorf("%d hosts, %v", len(s.Hosts), err)
	}
}

func TestHostNames(t *testing.T) {
	label := strings.Repeat("a", 63)
	for name, want := range map[string]bool{
		"mx.example.com":          true,
		"mx":                      true,
		"1.example.com":           true,
		"xn--mx-hka.example":      true,
		label + ".example":        true,
		"_mx.example.com":         true,
		"":                        false,
		".":                       false,
		"a..b":                    false,
		"a.b.":                    false,
		label + "a.example":       false,
		"MX.example.com":          false,
		"mx example":              false,
		"192.0.2.1":               false,
		"2001:db8::1":             false,
		"mx,x.example":            false,
		"mx\x00":                  false,
		"ü.example":               false,
		strings.Repeat("a.", 127): false,
	} {
		if isHostName(name) != want {
			t.Errorf("%q: want %v", name, want)
		}
	}
}
