package config

import (
	"reflect"
	"slices"

	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

// MaxMaps bounds the maps that a file adds to the built-in ones.
const MaxMaps = 8

// SetsDANE reports whether the file itself asks for a map with DANE: a new one,
// or a built-in one with other settings.
func (c *Config) SetsDANE() bool {
	builtin := mta.Builtin()
	return slices.ContainsFunc(c.Maps, func(m mta.Map) bool { return m.DANE && !slices.Contains(builtin, m) })
}

// mapKeys returns the keys of the map table with that full name. The file says
// "off" or "enforce" for the map's Testing: the caller copies it from testing.
func mapKeys(table string, m *mta.Map, testing *string) []key {
	at := func(name string, field any, tag reflect.StructTag) key {
		return key{table + "." + name, reflect.ValueOf(field).Elem(), tag}
	}
	return []key{
		at("format", &m.Format, `is:"postfix exim sendmail"`),
		at("dane", &m.DANE, ""),
		at("tlsrpt", &m.TLSRPT, ""),
		at("servername", &m.Servername, ""),
		at("testing", testing, `is:"off enforce"`),
		at("enforce", &m.Enforce, ""),
	}
}

// applyMaps takes the tables below [map]. Tables named as an alias come last:
// they start with the settings of the map that the alias stands for.
func (d *document) applyMaps(c *Config, tables map[string]any) {
	for _, aliases := range []bool{false, true} {
		for _, name := range sortedKeys(tables) {
			if aliases == (mta.AliasFor(name) != "") {
				d.applyMap(c, name, tables[name])
			}
		}
	}
}

// applyMap takes [map.NAME].
func (d *document) applyMap(c *Config, name string, v any) {
	full := "map." + name
	table, ok := v.(map[string]any)
	if !ok {
		d.fail(full, "is %s; expected a table: [map.NAME]", describe(v))
		return
	}
	if !mta.ValidName(name) {
		d.fail(full, "%s is not the name of a map; expected letters, digits, '-', '_' and '.', at most %d", describe(name), mta.MaxName)
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
	m := &c.Maps[i]
	testing := "off"
	if m.Testing {
		testing = "enforce"
	}
	keys := mapKeys(full, m, &testing)
	for _, k := range sortedKeys(table) {
		d.set(keys, full+"."+k, table[k])
	}
	m.Testing = testing == "enforce"
	if d.failed(full+".format") || d.failed(full+".dane") || d.failed(full+".tlsrpt") {
		return
	}
	for _, err := range m.Conflicts() {
		d.fail(full, "%v", err)
	}
}

// changedMaps names the maps whose settings differ.
func changedMaps(was, is *Config) []string {
	var names []string
	for _, m := range slices.Concat(is.Maps, was.Maps) {
		if name := "[map." + m.Name + "]"; !slices.Contains(names, name) && is.named(m.Name) != was.named(m.Name) {
			names = append(names, name)
		}
	}
	return names
}

// named returns the map of that name, or the zero Map.
func (c *Config) named(name string) mta.Map {
	i := slices.IndexFunc(c.Maps, func(m mta.Map) bool { return m.Name == name })
	if i < 0 {
		return mta.Map{}
	}
	return c.Maps[i]
}
