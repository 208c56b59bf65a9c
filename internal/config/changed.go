package config

import (
	"reflect"
	"slices"

	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
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
		if !slices.Contains(maps, m.Name) && is.named(m.Name) != was.named(m.Name) {
			maps = append(maps, m.Name)
			names = append(names, "[map."+m.Name+"]")
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
