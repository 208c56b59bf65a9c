package config

import (
	"reflect"
	"slices"

	"github.com/sts-tlsmap/sts-tlsmap/internal/mtamap"
)

// Changed names the keys whose values differ, as the file has them: "cache.path",
// and "[map.NAME]" for a map as a whole.
func Changed(was, is *Config) []string {
	var names []string
	now := keysOf(is)
	for i, k := range keysOf(was) {
		if !reflect.DeepEqual(k.at, now[i].at) { // what they point to
			names = append(names, k.name)
		}
	}
	var maps []string
	for _, m := range slices.Concat(is.Maps, was.Maps) {
		if !slices.Contains(maps, m.Name) && is.table(m.Name) != was.table(m.Name) {
			maps = append(maps, m.Name)
			names = append(names, "[map."+m.Name+"]")
		}
	}
	return names
}

// table is a map as its own table has made it: an alias that is like the map
// that it stands for has none. The zero Map: there is no such map.
func (c *Config) table(name string) mtamap.Map {
	m := c.named(name)
	alias := c.named(mtamap.StandsFor(name))
	alias.Name = name
	if m == alias {
		return mtamap.Map{Name: name}
	}
	return m
}

func (c *Config) named(name string) mtamap.Map {
	i := slices.IndexFunc(c.Maps, func(m mtamap.Map) bool { return m.Name == name })
	if i < 0 {
		return mtamap.Map{}
	}
	return c.Maps[i]
}
