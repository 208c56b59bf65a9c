package config

import (
	"slices"

	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

// MaxMaps bounds the maps that a file adds to the built-in ones.
const MaxMaps = 8

// SetsDANE says whether the file has a map that follows DANE, besides the
// built-in ones as they are.
func (c *Config) SetsDANE() bool {
	builtin := mta.Builtin()
	return slices.ContainsFunc(c.Maps, func(m mta.Map) bool { return m.DANE && !slices.Contains(builtin, m) })
}

func mapKeys(m *mta.Map) []key {
	return []key{
		{"format", scalar(&m.Format, oneOf(mta.FormatPostfix, mta.FormatExim), `"postfix" or "exim"`)},
		{"dane", boolean(&m.DANE)},
		{"tlsrpt", boolean(&m.TLSRPT)},
		{"servername", boolean(&m.Servername)},
		{"testing", place{&m.Testing, func(d *document, name string, v any) {
			word := "off"
			scalar(&word, oneOf("off", "enforce"), `"off" or "enforce"`).set(d, name, v)
			m.Testing = word == "enforce"
		}}},
		{"enforce", boolean(&m.Enforce)},
	}
}

// applyMaps takes the tables under [map]. Those named as an alias come last: they
// begin with the settings of the map that the alias stands for.
func (d *document) applyMaps(c *Config, tables map[string]any) {
	for _, alias := range []bool{false, true} {
		for _, name := range sortedKeys(tables) {
			if alias == (mta.AliasFor(name) != "") {
				d.applyMapTable(c, name, tables[name])
			}
		}
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
	if mta.CheckName(name) != nil {
		d.fail(full, "%s is no name of a map; expected letters, digits, '-', '_' and '.', at most %d", describe(name), mta.MaxName)
		return
	}
	i := mta.Find(c.Maps, name)
	if i < 0 || c.Maps[i].Name != name {
		m := mta.New(name)
		if i >= 0 {
			m = c.Maps[i]
			m.Name = name
		}
		i = len(c.Maps)
		if i == len(mta.Builtin())+MaxMaps {
			d.fail(full, "too many maps; expected at most %d besides the built-in ones", MaxMaps)
		}
		c.Maps = append(c.Maps, m)
	}
	d.applyMap(&c.Maps[i], full, table)
}

func (d *document) applyMap(m *mta.Map, full string, table map[string]any) {
	keys := mapKeys(m)
	for j := range keys {
		keys[j].name = full + "." + keys[j].name
	}
	for _, k := range sortedKeys(table) {
		d.set(keys, full+"."+k, table[k])
	}
	for _, k := range []string{"format", "dane", "tlsrpt"} {
		if d.failed(full + "." + k) { // of those that can conflict
			return
		}
	}
	for _, err := range m.Conflicts() {
		d.fail(full, "%v", err)
	}
}

func oneOf(words ...string) func(string) (string, bool) {
	return func(s string) (string, bool) { return s, slices.Contains(words, s) }
}
