package config

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// A document is a parsed file that remembers where each key stood. Values are
// taken from go-toml's generic decoding, and not decoded into structs, since
// that stops at the first value of a wrong type.
type document struct {
	file  string
	root  map[string]any
	lines map[string]int // by full name; elements of arrays as "listen[1]"
	errs  Errors
}

// newDocument parses text. A file that is no TOML has one error: what follows
// a syntax error cannot be told apart from it.
func newDocument(file string, text []byte) (*document, Errors) {
	d := &document{file: file, root: map[string]any{}, lines: map[string]int{}}
	if err := toml.Unmarshal(text, &d.root); err != nil {
		return nil, Errors{syntaxError(file, text, err)}
	}
	d.locate(text)
	return d, nil
}

// locate fills lines. The first mention of a name counts.
func (d *document) locate(text []byte) {
	var p unstable.Parser
	p.Reset(text)
	at := lines(text)
	var table []string
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = d.locateKey(at, nil, e.Key())
		case unstable.KeyValue:
			d.locateValue(at, table, e)
		}
	}
}

// lineStarts are the offsets at which the lines of a text begin. The parser's
// own Shape counts them anew from the text's start: a minute for a list of
// 50,000 domains.
type lineStarts []uint32

func lines(text []byte) lineStarts {
	starts := lineStarts{0}
	for i, b := range text {
		if b == '\n' {
			starts = append(starts, uint32(i)+1)
		}
	}
	return starts
}

// line returns the line at an offset, from 1.
func (l lineStarts) line(offset uint32) int {
	i, found := slices.BinarySearch(l, offset)
	if found {
		i++
	}
	return i
}

func (d *document) locateKey(at lineStarts, under []string, it unstable.Iterator) []string {
	name := slices.Clone(under)
	for it.Next() {
		n := it.Node()
		part := string(n.Data)
		if len(name) == 0 {
			part = asWritten(part)
		}
		name = append(name, part)
		d.mark(name, at.line(n.Raw.Offset))
	}
	return name
}

func (d *document) locateValue(at lineStarts, under []string, kv *unstable.Node) {
	name := d.locateKey(at, under, kv.Key())
	switch v := kv.Value(); v.Kind {
	case unstable.InlineTable:
		for it := v.Children(); it.Next(); {
			if n := it.Node(); n.Kind == unstable.KeyValue {
				d.locateValue(at, name, n)
			}
		}
	case unstable.Array:
		i := 0
		for it := v.Children(); it.Next(); {
			n := it.Node()
			if n.Kind == unstable.Comment {
				continue
			}
			if n.Raw.Length > 0 {
				d.mark([]string{element(strings.Join(name, "."), i)}, at.line(n.Raw.Offset))
			}
			i++
		}
	}
}

// asWritten is a name at the top of the file as errors have it: one with a dot
// in it, which TOML takes in quotes, keeps them. Without, it would pass for a
// key of a table.
func asWritten(name string) string {
	if strings.Contains(name, ".") {
		return strconv.Quote(name)
	}
	return name
}

func (d *document) mark(name []string, line int) {
	full := strings.Join(name, ".")
	if _, ok := d.lines[full]; !ok {
		d.lines[full] = line
	}
}

// element is the name of one element of an array.
func element(name string, i int) string { return name + "[" + strconv.Itoa(i) + "]" }

// line returns the line of a key or, if it is not in the file, of the nearest
// thing that holds it.
func (d *document) line(name string) int {
	for name != "" {
		if l, ok := d.lines[name]; ok {
			return l
		}
		name = name[:max(0, strings.LastIndexAny(name, ".["))]
	}
	return 0
}

// fail notes what is wrong with a key.
func (d *document) fail(name, format string, args ...any) {
	d.errs = append(d.errs, &Error{File: d.file, Line: d.line(name), Key: name, Text: fmt.Sprintf(format, args...)})
}

// failed says whether a mistake in a key has been noted.
func (d *document) failed(name string) bool {
	return slices.ContainsFunc(d.errs, func(e *Error) bool { return e.File == d.file && e.Key == name })
}

// apply sets in c what the file says, and notes what is wrong with it.
func (d *document) apply(c *Config) {
	keys := keysOf(c)
	for _, name := range sortedKeys(d.root) {
		v := d.root[name]
		table, isTable := v.(map[string]any)
		switch {
		case name == "map":
			if !isTable {
				d.fail(name, "is %s; expected tables: [map.NAME]", describe(v))
				continue
			}
			d.applyMaps(c, table)
		case isSection(keys, name):
			if !isTable {
				d.fail(name, "is %s; expected a table: [%s]", describe(v), name)
				continue
			}
			for _, k := range sortedKeys(table) {
				d.set(keys, name+"."+k, table[k])
			}
		default:
			d.set(keys, asWritten(name), v)
		}
	}
}

// set gives v to the key of that name.
func (d *document) set(keys []key, name string, v any) {
	for _, k := range keys {
		if k.name == name {
			k.set(d, name, v)
			return
		}
	}
	d.unknown(name, keys)
}

// unknown reports a key that does not exist, and the one that was meant: most
// often a slip of the finger, or a key of another section.
func (d *document) unknown(name string, keys []key) {
	if written, err := strconv.Unquote(name); err == nil {
		d.fail(name, "there is no such key: the quotes make it one name, dots and all%s", meant(written, keys))
		return
	}
	names := make([]string, 0, len(keys))
	section, last := splitName(name)
	var elsewhere, siblings, sections []string
	for _, k := range keys {
		s, l := splitName(k.name)
		names = append(names, k.name)
		if s != "" && !slices.Contains(sections, s) {
			sections = append(sections, s)
		}
		if l == last && s != section {
			elsewhere = append(elsewhere, k.name)
		}
		if s == section {
			siblings = append(siblings, l)
		}
	}
	text := "there is no such key"
	near := closest(name, names)
	table := ""
	if near == "" && section == "" {
		table = closest(name, append(sections, "map"))
	} else if near == "" && len(siblings) == 0 {
		table = closest(section, sections)
	}
	switch {
	case table != "":
		text += "; did you mean the table [" + table + "]?"
	case len(elsewhere) > 0:
		text += "; did you mean " + strings.Join(elsewhere, " or ") + "?"
	case near != "":
		text += "; did you mean " + near + "?"
	case len(siblings) > 0 && section != "":
		text += "; [" + section + "] has " + strings.Join(siblings, ", ")
	}
	d.fail(name, "%s", text)
}

// meant names the key that a name with dots in it is, or is close to.
func meant(name string, keys []key) string {
	names := make([]string, len(keys))
	for i, k := range keys {
		names[i] = k.name
	}
	if near := closest(name, names); near != "" {
		return "; did you mean " + near + ", without them?"
	}
	return ""
}

func splitName(name string) (section, last string) {
	if i := strings.LastIndexByte(name, '.'); i >= 0 {
		return name[:i], name[i+1:]
	}
	return "", name
}

func isSection(keys []key, name string) bool {
	return slices.ContainsFunc(keys, func(k key) bool { return strings.HasPrefix(k.name, name+".") })
}

func sortedKeys(m map[string]any) []string {
	names := make([]string, 0, len(m))
	for k := range m {
		names = append(names, k)
	}
	slices.Sort(names)
	return names
}

// describe says what a TOML value is, for an error message.
func describe(v any) string {
	switch v := v.(type) {
	case string:
		if len(v) > 60 {
			v = v[:57] + "..."
		}
		return strconv.Quote(v)
	case int64:
		return "the number " + strconv.FormatInt(v, 10)
	case float64:
		n := strconv.FormatFloat(v, 'g', -1, 64)
		if v == math.Trunc(v) && !strings.ContainsAny(n, "eIN") {
			n += ".0" // which tells it from a whole number
		}
		return "the number " + n
	case bool:
		return strconv.FormatBool(v)
	case []any:
		return "an array"
	case map[string]any:
		return "a table"
	}
	return "a date or time"
}
