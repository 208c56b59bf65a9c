package config

import (
	"slices"
	"strings"
)

// A Map is a socketmap map: what one kind of MTA asks by name, and what the
// reply looks like. Names are case-sensitive.
type Map struct {
	Name       string
	Format     string // FormatPostfix or FormatExim
	DANE       bool   // "dane-only" where DANE protects the domain
	TLSRPT     bool   // with the policy attributes of Postfix 3.10
	Servername bool   // with servername=hostname; means nothing to Exim
	Testing    bool   // treat testing policies as enforced
	Enforce    bool   // false: a rehearsal, the reply is NOTFOUND
}

// The formats of a reply.
const (
	FormatPostfix = "postfix"
	FormatExim    = "exim"
)

const (
	// MaxMaps bounds the maps that a file adds to the built-in ones.
	MaxMaps = 8
	// maxMapName bounds a map's name, in bytes.
	maxMapName = 64
)

func builtinMaps() []Map {
	return []Map{
		{Name: "postfix", Format: FormatPostfix, Servername: true, Enforce: true},
		{Name: "postfix-tlsrpt", Format: FormatPostfix, TLSRPT: true, Servername: true, Enforce: true},
		{Name: "postfix-dane", Format: FormatPostfix, DANE: true, Servername: true, Enforce: true},
		{Name: "postfix-dane-tlsrpt", Format: FormatPostfix, DANE: true, TLSRPT: true, Servername: true, Enforce: true},
		{Name: "QUERY", Format: FormatPostfix, DANE: true, Servername: true, Enforce: true},
		{Name: "QUERYwithTLSRPT", Format: FormatPostfix, DANE: true, TLSRPT: true, Servername: true, Enforce: true},
		{Name: "exim", Format: FormatExim, Servername: true, Enforce: true},
	}
}

// aliases are the names that other policy servers answer to, and the map that
// each stands for: it is like that one, with what its own table changes.
var aliases = map[string]string{"QUERY": "postfix-dane", "QUERYwithTLSRPT": "postfix-dane-tlsrpt"}

// followAliases makes each alias like the map that it stands for.
func (c *Config) followAliases() {
	for i := range c.Maps {
		alias := c.Maps[i].Name
		for _, m := range c.Maps {
			if m.Name == aliases[alias] {
				c.Maps[i] = m
				c.Maps[i].Name = alias
			}
		}
	}
}

// SetsDANE says whether the file has a map that follows DANE, besides the
// built-in ones as they are.
func (c *Config) SetsDANE() bool {
	builtin := builtinMaps()
	return slices.ContainsFunc(c.Maps, func(m Map) bool { return m.DANE && !slices.Contains(builtin, m) })
}

func mapKeys(m *Map) []key {
	return []key{
		{"format", scalar(&m.Format, oneOf(FormatPostfix, FormatExim), `"postfix" or "exim"`)},
		{"dane", boolean(&m.DANE)},
		{"tlsrpt", boolean(&m.TLSRPT)},
		{"servername", boolean(&m.Servername)},
		{"testing", func(d *document, name string, v any) {
			word := "off"
			scalar(&word, oneOf("off", "enforce"), `"off" or "enforce"`)(d, name, v)
			m.Testing = word == "enforce"
		}},
		{"enforce", boolean(&m.Enforce)},
	}
}

// applyMaps takes the tables under [map].
func (d *document) applyMaps(c *Config, tables map[string]any) {
	var later []string
	for _, name := range sortedKeys(tables) {
		if aliases[name] != "" {
			later = append(later, name)
			continue
		}
		d.applyMapTable(c, name, tables[name])
	}
	c.followAliases()
	for _, name := range later {
		d.applyMapTable(c, name, tables[name])
	}
}

// applyMapTable takes [map.NAME].
func (d *document) applyMapTable(c *Config, name string, v any) {
	full := "map." + name
	table, ok := v.(map[string]any)
	if !ok {
		d.fail(full, "is %s; expected a table: [map.NAME]", describe(v))
		return
	}
	if !validMapName(name) {
		d.fail(full, "%s is no name of a map; expected letters, digits, '-', '_' and '.', at most %d", describe(name), maxMapName)
		return
	}
	i := slices.IndexFunc(c.Maps, func(m Map) bool { return m.Name == name })
	if i < 0 {
		i = len(c.Maps)
		if i == len(builtinMaps())+MaxMaps {
			d.fail(full, "too many maps; expected at most %d besides the built-in ones", MaxMaps)
		}
		c.Maps = append(c.Maps, Map{Name: name, Format: FormatPostfix, Servername: true, Enforce: true})
	}
	d.applyMap(&c.Maps[i], full, table)
}

func (d *document) applyMap(m *Map, full string, table map[string]any) {
	keys := mapKeys(m)
	for j := range keys {
		keys[j].name = full + "." + keys[j].name
	}
	before := len(d.errs)
	for _, k := range sortedKeys(table) {
		d.set(keys, full+"."+k, table[k])
	}
	if len(d.errs) > before {
		return
	}
	if m.Format == FormatExim && m.DANE {
		d.fail(full, `dane does not go with format "exim": Exim does DANE by itself (hosts_try_dane)`)
	}
	if m.Format == FormatExim && m.TLSRPT {
		d.fail(full, `tlsrpt does not go with format "exim": Exim takes no attributes`)
	}
}

func validMapName(s string) bool {
	return s != "" && len(s) <= maxMapName && !strings.ContainsFunc(s, func(r rune) bool {
		letter := r|0x20 >= 'a' && r|0x20 <= 'z'
		return !letter && (r < '0' || r > '9') && !strings.ContainsRune("-_.", r)
	})
}

func oneOf(words ...string) func(string) (string, bool) {
	return func(s string) (string, bool) { return s, slices.Contains(words, s) }
}
