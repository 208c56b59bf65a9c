package tlsmap

import (
	"errors"
	"fmt"
	"strings"
)

// The formats of a reply.
const (
	FormatPostfix = "postfix" // Postfix's smtp_tls_policy_maps
	FormatExim    = "exim"    // a list of hosts, as a route_data of Exim's takes it
)

// Limits of the table of maps.
const (
	MaxMaps    = 64 // maps, the builtin ones included
	MaxMapName = 64 // bytes in a map's name
)

// A Map is what an MTA can do, under the name that it asks with.
type Map struct {
	Name       string
	Format     string // FormatPostfix or FormatExim
	DANE       bool   // DANE goes first where it protects the domain (format postfix only)
	TLSRPT     bool   // the reply carries the policy's attributes (Postfix 3.10 and later)
	Servername bool   // the reply asks for SNI (RFC 8461, 7.1)
	Testing    bool   // testing policies are treated as enforced ones
	Enforce    bool   // false: a rehearsal, the reply is NOTFOUND
}

// Builtin returns the maps that are there without configuration.
func Builtin() []Map {
	return []Map{
		{Name: "postfix", Format: FormatPostfix, Servername: true, Enforce: true},
		{Name: "postfix-tlsrpt", Format: FormatPostfix, Servername: true, Enforce: true, TLSRPT: true},
		{Name: "postfix-dane", Format: FormatPostfix, Servername: true, Enforce: true, DANE: true},
		{Name: "postfix-dane-tlsrpt", Format: FormatPostfix, Servername: true, Enforce: true, DANE: true, TLSRPT: true},
		// The names that other policy servers answer to.
		{Name: "QUERY", Format: FormatPostfix, Servername: true, Enforce: true, DANE: true},
		{Name: "QUERYwithTLSRPT", Format: FormatPostfix, Servername: true, Enforce: true, DANE: true, TLSRPT: true},
		{Name: "exim", Format: FormatExim, Servername: true, Enforce: true},
	}
}

// CheckMapName returns an error if an MTA could not ask for the name.
func CheckMapName(name string) error {
	if name == "" || len(name) > MaxMapName {
		return fmt.Errorf("a map's name has 1 to %d characters", MaxMapName)
	}
	for i := 0; i < len(name); i++ {
		if c := name[i]; !isLetterOrDigit(c|0x20) && c != '-' && c != '_' && c != '.' {
			return errors.New("a map's name has letters, digits, '-', '_' and '.' only")
		}
	}
	return nil
}

// check returns an error if there is no way to answer for the map.
func (m *Map) check() error {
	if err := CheckMapName(m.Name); err != nil {
		return err
	}
	switch m.Format {
	case FormatPostfix:
	case FormatExim:
		if m.DANE || m.TLSRPT {
			return fmt.Errorf("dane and tlsrpt do not go with format %q: Exim does DANE by itself, and takes no attributes", FormatExim)
		}
	default:
		return fmt.Errorf("format %q is not known; known: %q, %q", m.Format, FormatPostfix, FormatExim)
	}
	return nil
}

// asksDNS reports whether an applied policy is not all that a reply needs.
func (m *Map) asksDNS() bool { return m.DANE || m.Format == FormatExim }

// A Table holds the maps by name. It does not change once made.
type Table struct {
	maps    []Map
	byName  map[string]int
	unknown string // the reason of a PERM reply: the known maps
}

// NewTable returns the table of the maps, which are checked. Their order is
// kept for Maps and for the numbers of Stats.
func NewTable(maps []Map) (*Table, error) {
	if len(maps) > MaxMaps {
		return nil, fmt.Errorf("%d maps; at most %d are possible", len(maps), MaxMaps)
	}
	t := &Table{maps: append([]Map(nil), maps...), byName: make(map[string]int, len(maps))}
	names := make([]string, len(maps))
	for i := range t.maps {
		m := &t.maps[i]
		if err := m.check(); err != nil {
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
func (t *Table) Maps() []Map { return append([]Map(nil), t.maps...) }

// index returns the number of the map, or -1.
func (t *Table) index(name []byte) int {
	if i, ok := t.byName[string(name)]; ok {
		return i
	}
	return -1
}

// Replies are kept on an entry by what they contain, not by map: maps that
// render alike share one. Exim's are not kept. The slots are below keeper.MaxSlots.
const (
	slotTLSRPT     = 1
	slotServername = 2
	slotCount      = 4
)

// slot returns the place of the map's reply among those kept on an entry.
func (m *Map) slot() int {
	s := 0
	if m.TLSRPT {
		s |= slotTLSRPT
	}
	if m.Servername {
		s |= slotServername
	}
	return s
}
