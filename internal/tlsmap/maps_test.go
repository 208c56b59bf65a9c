package tlsmap

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

func TestAMapThatCannotBeAnsweredIsRefused(t *testing.T) {
	ok := mta.Map{Name: "x", Format: mta.FormatPostfix, Enforce: true}
	tests := []struct {
		name   string
		change func(*mta.Map)
		want   string
	}{
		{"no name", func(m *mta.Map) { m.Name = "" }, "1 to 64 characters"},
		{"an endless name", func(m *mta.Map) { m.Name = strings.Repeat("x", 65) }, "1 to 64 characters"},
		{"a name with a space", func(m *mta.Map) { m.Name = "a b" }, "letters, digits"},
		{"a name with a colon", func(m *mta.Map) { m.Name = "a:b" }, "letters, digits"},
		{"an unknown format", func(m *mta.Map) { m.Format = "sendmail" }, `format "sendmail" is not known`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := ok
			tt.change(&m)
			if _, err := NewTable([]mta.Map{m}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
	if _, err := NewTable([]mta.Map{ok, ok}); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("the same name twice: %v", err)
	}
	many := make([]mta.Map, MaxMaps+1)
	for i := range many {
		many[i] = ok
		many[i].Name = fmt.Sprint("m", i)
	}
	if _, err := NewTable(many[:MaxMaps]); err != nil {
		t.Errorf("%d maps: %v", MaxMaps, err)
	}
	if _, err := NewTable(many); err == nil {
		t.Errorf("%d maps are taken", len(many))
	}
}

func TestTheBuiltinMapsAreWhatTheirNamesSay(t *testing.T) {
	const (
		plain  = "OK secure match=mx.example.com servername=hostname"
		tlsrpt = plain + " policy_type=sts policy_domain=example.com mx_host_pattern=mx.example.com { policy_string = version: STSv1 }" +
			" { policy_string = mode: enforce } { policy_string = mx: mx.example.com } { policy_string = max_age: 86400 }"
	)
	want := map[string]struct {
		reply string
		dane  bool
	}{
		"postfix":             {plain, false},
		"postfix-tlsrpt":      {tlsrpt, false},
		"postfix-dane":        {plain, true},
		"postfix-dane-tlsrpt": {tlsrpt, true},
		"exim":                {},
	}
	maps := mta.Builtin()
	if len(maps) != len(want) {
		t.Errorf("%d maps, want %d", len(maps), len(want))
	}
	for _, m := range maps {
		if m.Format == mta.FormatExim { // see exim_test.go
			delete(want, m.Name)
			continue
		}
		if !m.Enforce || m.Testing {
			t.Errorf("map %s does not enforce what is enforced, and only that: %+v", m.Name, m)
		}
		if got := render(t, m, "example.com", policyOf("mx.example.com")); got != want[m.Name].reply || m.DANE != want[m.Name].dane {
			t.Errorf("map %s: %q, DANE %v; want %+v", m.Name, got, m.DANE, want[m.Name])
		}
	}
	if _, err := NewTable(maps); err != nil {
		t.Error(err)
	}
}

func TestMapsThatRenderAlikeShareASlotAndOthersDoNot(t *testing.T) {
	if slotCount > keeper.MaxSlots {
		t.Fatalf("%d slots, the keeper has %d", slotCount, keeper.MaxSlots)
	}
	replies := make(map[int]string)
	for _, m := range kindsOfMap {
		for _, either := range []bool{false, true} {
			m.Testing, m.Enforce = either, either
			reply := render(t, m, "example.com", policyOf("mx.example.com"))
			if kept, ok := replies[slotOf(&m)]; ok && kept != reply {
				t.Errorf("slot %d has %q and %q", slotOf(&m), kept, reply)
			}
			replies[slotOf(&m)] = reply
		}
	}
	if len(replies) != slotCount {
		t.Errorf("%d slots in use, want %d", len(replies), slotCount)
	}
}
