package dane

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

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
