package mta_test

import (
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

func TestTheBuiltinMapsCanBeAnswered(t *testing.T) {
	maps := mta.Builtin()
	for _, m := range maps {
		if err := m.Check(); err != nil {
			t.Errorf("map %s: %v", m.Name, err)
		}
	}
	if m := mta.New("postfix"); m != maps[0] {
		t.Errorf("a new map is %+v", m)
	}
}

func TestAMapIsFoundByItsNameAndByAnAliasInAnyCase(t *testing.T) {
	maps := mta.Builtin()
	for name, want := range map[string]string{
		"postfix": "postfix", "exim": "exim", "postfix-dane-tlsrpt": "postfix-dane-tlsrpt",
		"QUERY": "postfix-dane", "query": "postfix-dane", "Query": "postfix-dane",
		"QUERYwithTLSRPT": "postfix-dane-tlsrpt", "querywithtlsrpt": "postfix-dane-tlsrpt",
		"sts": "sts", "STS": "sts",
		"Postfix": "", "queries": "", "": "",
	} {
		got := ""
		if i := mta.Find(maps, name); i >= 0 {
			got = maps[i].Name
		}
		if got != want {
			t.Errorf("%q means %q, want %q", name, got, want)
		}
	}
	if i := mta.Find(append(maps, mta.New("QUERY")), "QUERY"); i != len(maps) {
		t.Errorf("the configured map QUERY is hidden by the alias: %d", i)
	}
}

func TestAMapsNameIsOneThatAnMTACanAskFor(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "a.b-c_9": true, "QUERY": true, strings.Repeat("a", mta.MaxName): true,
		"": false, strings.Repeat("a", mta.MaxName+1): false, "a b": false, "a:b": false, "a/b": false, "ä": false, "k\u212a": false,
		"a\x00": false, "a\x11": false, // 0x11 is '1' but for a bit
	} {
		if got := mta.ValidName(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

func TestSettingsThatDoNotGoWithAFormatAreErrors(t *testing.T) {
	for _, tt := range []struct {
		m    mta.Map
		want []string
	}{
		{mta.Map{Name: "x", Format: mta.FormatPostfix, DANE: true, TLSRPT: true}, nil},
		{mta.Map{Name: "x", Format: mta.FormatExim}, nil},
		{mta.Map{Name: "x", Format: mta.FormatExim, DANE: true}, []string{"dane does not go"}},
		{mta.Map{Name: "x", Format: mta.FormatExim, DANE: true, TLSRPT: true}, []string{"dane does not go", "tlsrpt does not go"}},
	} {
		errs, err := tt.m.Conflicts(), tt.m.Check()
		if len(errs) != len(tt.want) || (err != nil) != (len(tt.want) > 0) {
			t.Errorf("%+v: %v; %v", tt.m, errs, err)
			continue
		}
		for i, want := range tt.want {
			if !strings.HasPrefix(errs[i].Error(), want) {
				t.Errorf("%+v: %v", tt.m, errs[i])
			}
		}
	}
}
