package explain

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// This file: a daemon that is not as the configuration file has it, since it
// was not reloaded, or not restarted, after a change.

// What puts the file in force.
const (
	reload  = "systemctl reload sts-tlsmap"
	restart = "systemctl restart sts-tlsmap"
)

// asked says whether the daemon has told what it holds of the domain.
func (c *Cache) asked() bool { return c.From == Daemon && c.notAsked == nil && c.Err == "" }

// tableInForce returns the maps of the daemon where they are known, else those
// of the file.
func (r *Report) tableInForce(s Sources) *tlsmap.Table {
	r.mapsOf = File
	running, err := tlsmap.NewTable(s.Running)
	if len(s.Running) == 0 || err != nil { // those of another version, which knows more
		return s.Table
	}
	r.mapsOf = Daemon
	return running
}

// compareMaps says which maps of the file are not in force as they stand there.
func (r *Report) compareMaps(s Sources) {
	if r.mapsOf != Daemon {
		return
	}
	var changed, added, gone []string
	inFile := s.Table.Maps()
	for _, m := range inFile {
		i := slices.IndexFunc(s.Running, hasName(m.Name))
		switch {
		case i < 0:
			added = append(added, m.Name)
			r.Maps = append(r.Maps, Reply{
				Map: m.Name, Reply: "PERM unknown map", Why: "the map is in the file, but not in force until a restart",
			})
		case s.Running[i] != m:
			changed = append(changed, m.Name)
			r.Maps[i].Why += "; the map is another in the file, which is not in force until a restart"
		}
	}
	for _, m := range s.Running {
		if !slices.ContainsFunc(inFile, hasName(m.Name)) {
			gone = append(gone, m.Name)
		}
	}
	r.staleMaps(changed, "changed in the file")
	r.staleMaps(added, "added to the file")
	r.staleMaps(gone, "taken out of the file")
}

func hasName(name string) func(mta.Map) bool {
	return func(m mta.Map) bool { return m.Name == name }
}

func (r *Report) staleMaps(names []string, how string) {
	if len(names) > 0 {
		r.Stale = append(r.Stale, fmt.Sprintf("map %s: %s, which is not in force until a restart", joinSome(names, maxNamed), how))
		r.stale = restart
	}
}

// compareExemptions compares the entries of the file that are for the domain
// with those that the daemon has.
func (r *Report) compareExemptions(s Sources) {
	if !r.Cache.asked() {
		return
	}
	file := s.Exempt(r.Domain)
	if h := r.Cache.Held; h != nil && h.Exempt && len(h.ExemptBy) == 0 {
		return // of a version that does not tell
	}
	isIn := func(list []control.ExemptEntry) func(control.ExemptEntry) bool {
		return func(e control.ExemptEntry) bool { return !e.Until.IsZero() || slices.Contains(list, e) }
	}
	added := entryNames(slices.DeleteFunc(slices.Clone(file), isIn(r.exemptBy)))
	gone := entryNames(slices.DeleteFunc(slices.Clone(r.exemptBy), isIn(file)))
	if added != "" {
		r.Stale = append(r.Stale, fmt.Sprintf("%s: in [exempt] in the file, which is not in force yet: reload", added))
	}
	if gone != "" {
		r.Stale = append(r.Stale, fmt.Sprintf("%s: not in [exempt] in the file any more, but in force until a reload", gone))
	}
	if r.stale == "" && added+gone != "" {
		r.stale = reload
	}
}

func entryNames(entries []control.ExemptEntry) string {
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Entry
	}
	return strings.Join(names, " and ")
}
