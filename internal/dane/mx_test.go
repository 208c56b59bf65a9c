package dane

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

func TestMX(t *testing.T) {
	for _, c := range []struct {
		name  string
		entry entry
		want  MXSet
	}{
		{"in order of preference, in lower case", insecure("20 B.example.", "10 Z.Example.", "20 a.example."),
			MXSet{Hosts: []MXHost{{"z.example", 10}, {"a.example", 20}, {"b.example", 20}}}},
		{"authenticated", secure("10 a.example."), MXSet{Hosts: []MXHost{{"a.example", 10}}, Secure: true}},
		{"without repeats", insecure("20 a.example.", "10 a.example.", "15 b.example."), MXSet{Hosts: []MXHost{{"a.example", 10}, {"b.example", 15}}}},
		{"null", secure("0 ."), MXSet{Null: true, Secure: true}},
		{"a root among hosts is no host", insecure("0 .", "10 a.example."), MXSet{Hosts: []MXHost{{"a.example", 10}}, Dropped: 1}},
		{"none: the domain itself", insecure(), MXSet{Hosts: []MXHost{{"example.com", 0}}, Implicit: true}},
		{"NXDOMAIN", entry{security: Secure, nx: true}, MXSet{NXDomain: true, Secure: true}},
		{"what is no host name is dropped", insecure("10 a_b.example.", "10 a/b.example.", "10 192.0.2.1.", `10 a\.b.example.`, `10 a\032b.example.`,
			"10 -a.example.", "10 a-.example.", `10 \195\188.example.`, `10 a:b.example.`, "10 ok.example."), MXSet{Hosts: []MXHost{{"ok.example", 10}}, Dropped: 9}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := checker(newFake().set("example.com", "MX", c.entry)).MX(t.Context(), "example.com")
			if err != nil || !reflect.DeepEqual(*got, c.want) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

func TestAFailedMXLookupIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake().set("example.com", "MX", entry{security: Bogus})
		c := checker(f)
		for range 3 {
			_, err := c.MX(t.Context(), "example.com")
			var e *resolver.Error
			if !errors.As(err, &e) || e.Kind != resolver.KindServFail {
				t.Errorf("%v", err)
			}
		}
		if n := f.count("example.com", "MX"); n != 1 {
			t.Errorf("%d questions within %v", n, failKeep)
		}
		time.Sleep(failKeep)
		f.set("example.com", "MX", secure("10 a.example."))
		if s, err := c.MX(t.Context(), "example.com"); err != nil || len(s.Hosts) != 1 {
			t.Errorf("%+v, %v", s, err)
		}
		f.set("example.com", "MX", entry{security: Bogus})
		time.Sleep(4 * time.Minute) // in the last quarter of the five
		for range 2 {
			if s, err := c.MX(t.Context(), "example.com"); err != nil || len(s.Hosts) != 1 {
				t.Errorf("a failed renewal takes a live answer away: %+v, %v", s, err)
			}
			synctest.Wait()
		}
		time.Sleep(2 * time.Minute)
		if _, err := c.MX(t.Context(), "example.com"); err == nil {
			t.Error("an answer is kept beyond its time")
		}
	})
}

func TestVeryLargeMXSetsAreCutAndNotKept(t *testing.T) {
	f := newFake()
	var mx []string
	for i := range 1000 {
		mx = append(mx, fmt.Sprintf("10 %s%d.example.com.", strings.Repeat("x", 40), i))
	}
	f.set("example.com", "MX", insecure(mx...))
	c := checker(f)
	for i := range 2 {
		s, err := c.MX(t.Context(), "example.com")
		if err != nil || len(s.Hosts) != maxMX || s.Dropped != 1000-maxMX {
			t.Fatalf("%d hosts, %d dropped, %v", len(s.Hosts), s.Dropped, err)
		}
		if n := f.count("example.com", "MX"); n != i+1 {
			t.Errorf("%d questions", n)
		}
	}
}

func TestHostNames(t *testing.T) {
	label := strings.Repeat("a", 63)
	for name, want := range map[string]struct{ strict, lax bool }{
		"mx.example.com":          {true, true},
		"mx":                      {true, true},
		"1.example.com":           {true, true},
		"xn--mx-hka.example":      {true, true},
		label + ".example":        {true, true},
		"_mx.example.com":         {false, true},
		"":                        {},
		".":                       {},
		"a..b":                    {},
		"a.b.":                    {},
		label + "a.example":       {},
		"MX.example.com":          {},
		"mx example":              {},
		"192.0.2.1":               {},
		"2001:db8::1":             {},
		"mx,x.example":            {},
		"mx\x00":                  {},
		"ü.example":               {},
		strings.Repeat("a.", 127): {},
	} {
		if strictName(name) != want.strict || laxName(name) != want.lax {
			t.Errorf("%q: strict %v, lax %v", name, strictName(name), laxName(name))
		}
	}
}
