package mtamap

import (
	"strings"
	"testing"
)

func TestTheBuiltinMapsCanBeAnswered(t *testing.T) {
	byName := map[string]Map{}
	for _, m := range Builtin() {
		if err := m.Check(); err != nil {
			t.Errorf("map %s: %v", m.Name, err)
		}
		byName[m.Name] = m
	}
	if m := New("postfix"); m != byName["postfix"] {
		t.Errorf("where nothing is said of a map, it is %+v", m)
	}
	for alias, name := range aliases {
		m := byName[name]
		m.Name = alias
		if byName[alias] != m || StandsFor(alias) != name {
			t.Errorf("%s is %+v, and stands for %q", alias, byName[alias], StandsFor(alias))
		}
	}
	if name := StandsFor("postfix"); name != "" {
		t.Errorf("postfix stands for %q", name)
	}
}

func TestAMapsNameIsOneThatAnMTACanAskFor(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "a.b-c_9": true, "QUERY": true, strings.Repeat("a", MaxName): true,
		"": false, strings.Repeat("a", MaxName+1): false, "a b": false, "a:b": false, "a/b": false, "ä": false, "k\u212a": false,
		"a\x00": false, "a\x11": false, // 0x11 is '1' but for a bit
	} {
		if err := CheckName(name); (err == nil) != want {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestWhatDoesNotGoWithAFormatIsSaid(t *testing.T) {
	for _, tt := range []struct {
		m    Map
		want []string
	}{
		{Map{Name: "x", Format: FormatPostfix, DANE: true, TLSRPT: true}, nil},
		{Map{Name: "x", Format: FormatExim}, nil},
		{Map{Name: "x", Format: FormatExim, DANE: true}, []string{"dane does not go"}},
		{Map{Name: "x", Format: FormatExim, DANE: true, TLSRPT: true}, []string{"dane does not go", "tlsrpt does not go"}},
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
