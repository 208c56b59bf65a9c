// Package tlsmap answers an MTA's lookups: it makes a policy domain of the
// next-hop, decides what the domain's policy means for the map that was asked,
// and renders the reply in the MTA's terms: Postfix's TLS policy
// (postconf(5), smtp_tls_policy_maps) or Exim's host list, under RFC 8461.
//
// It holds no policies and asks no network: package keeper does the one, package
// dane the other. The match list of a policy is made once, when the policy is
// stored (MatchList); a rendered reply is kept on the keeper's entry.
//
// Every byte that comes from the network is checked here again before it is
// rendered, whatever the parser promises: a policy must be able to tell the MTA
// which hosts match, and nothing else.
package tlsmap

import (
	"fmt"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

// A Table holds the maps by name. It does not change once made.
type Table struct {
	maps   []mta.Map
	byName map[string]int
	known  string // the end of a PERM reply: the known maps
}

// NewTable checks the maps and returns their table. Their order is kept for Maps
// and Stats.
func NewTable(maps []mta.Map) (*Table, error) {
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
	t.known = "; known are: " + strings.Join(names, ", ")
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
