package tlsmap

import (
	"fmt"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

// MaxMaps bounds the table: maps, the built-in ones included. A configuration
// comes nowhere near.
const MaxMaps = 64

// asksDNS reports whether an applied policy is not all that a reply needs.
func asksDNS(m *mta.Map) bool { return m.DANE || m.Format == mta.FormatExim }

// A Table holds the maps by name. It does not change once made.
type Table struct {
	maps    []mta.Map
	byName  map[string]int
	unknown string // the reason of a PERM reply: the known maps
}

// NewTable returns the table of the maps, which are checked. Their order is
// kept for Maps and for the numbers of Stats.
func NewTable(maps []mta.Map) (*Table, error) {
	if len(maps) > MaxMaps {
		return nil, fmt.Errorf("%d maps; at most %d are possible", len(maps), MaxMaps)
	}
	t := &Table{maps: append([]mta.Map(nil), maps...), byName: make(map[string]int, len(maps))}
	names := make([]string, len(maps))
	for i := range t.maps {
		m := &t.maps[i]
		if err := m.Check(); err != nil {
			return nil, fmt.Errorf("map %q: %w", m.Name, err)
		}
		if _, twice := t.byName[m.Name]; twice {
			return nil, fmt.Errorf("map %q: defined twice", m.Name)
		}
		t.byName[m.Name] = i
		names[i] = m.Name
	}
	t.unknown = "; known are: " + strings.Join(names, ", ")
	return t, nil
}

// Maps returns the maps in order.
func (t *Table) Maps() []mta.Map { return append([]mta.Map(nil), t.maps...) }

// index returns the number of the map, or -1.
func (t *Table) index(name []byte) int {
	if i, ok := t.byName[string(name)]; ok {
		return i
	}
	return mta.Find(t.maps, string(name)) // an alias
}

// Replies are kept on an entry by what they contain, not by map: maps that
// render alike share one. Exim's are not kept. The slots are below keeper.MaxSlots.
const (
	slotTLSRPT     = 1
	slotServername = 2
	slotCount      = 4
)

// slotOf returns the place of the map's reply among those kept on an entry.
func slotOf(m *mta.Map) int {
	s := 0
	if m.TLSRPT {
		s |= slotTLSRPT
	}
	if m.Servername {
		s |= slotServername
	}
	return s
}
