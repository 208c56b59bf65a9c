package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

// An Error is one mistake in a file.
type Error struct {
	File string
	Line int    // from 1; zero: the file as a whole
	Key  string // its full name, "cache.max_size"; empty: no key is concerned
	Text string // what is wrong, and what was expected
}

func (e *Error) Error() string {
	place := e.File
	if e.Line > 0 {
		place += fmt.Sprintf(":%d", e.Line)
	}
	if e.Key != "" {
		place += ": " + e.Key
	}
	return place + ": " + e.Text
}

// Errors are all mistakes in a configuration, in the order of the lines.
type Errors []*Error

func (es Errors) Error() string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

func (es Errors) sorted() Errors {
	slices.SortStableFunc(es, func(a, b *Error) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
	})
	return es
}

// A document is a file that remembers the line of each key. go-toml decodes it
// into maps: into structs it would stop at the first value of a wrong type.
type document struct {
	file     string
	lines    map[string]int // by full name; elements of lists as "listen[1]"
	errs     Errors
	warnings Errors
}

// findLines fills lines. The first mention of a name counts.
func (d *document) findLines(text []byte) {
	d.lines = map[string]int{}
	// Not the parser's Shape: it counts the lines from the start each time.
	var ends []uint32
	for i, b := range text {
		if b == '\n' {
			ends = append(ends, uint32(i))
		}
	}
	mark := func(name string, at unstable.Range) {
		if _, ok := d.lines[name]; !ok {
			before, _ := slices.BinarySearch(ends, at.Offset)
			d.lines[name] = before + 1
		}
	}
	markKey := func(name string, it unstable.Iterator) string {
		for it.Next() {
			name = join(name, string(it.Node().Data))
			mark(name, it.Node().Raw)
		}
		return name
	}
	var markValue func(table string, kv *unstable.Node)
	markValue = func(table string, kv *unstable.Node) {
		name := markKey(table, kv.Key())
		v := kv.Value()
		i := 0
		for it := v.Children(); it.Next(); {
			switch n := it.Node(); {
			case n.Kind == unstable.KeyValue: // of an inline table
				markValue(name, n)
			case v.Kind == unstable.Array && n.Kind != unstable.Comment:
				mark(element(name, i), n.Raw)
				i++
			}
		}
	}
	var p unstable.Parser
	p.Reset(text)
	table := ""
	for p.NextExpression() {
		if e := p.Expression(); e.Kind == unstable.KeyValue {
			markValue(table, e)
		} else if e.Kind == unstable.Table || e.Kind == unstable.ArrayTable {
			table = markKey("", e.Key())
		}
	}
}

// join returns the full name of a key in a table. A name at the top of the file
// keeps its quotes if it has a dot: it is not a key of a table.
func join(table, name string) string {
	switch {
	case table != "":
		return table + "." + name
	case strings.Contains(name, "."):
		return strconv.Quote(name)
	}
	return name
}

// element is the name of one element of a list.
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

// failed reports whether a mistake in a key has been noted.
func (d *document) failed(name string) bool {
	return slices.ContainsFunc(d.errs, func(e *Error) bool { return e.File == d.file && e.Key == name })
}

// apply sets in c what the file says, and notes what is wrong with it.
func (d *document) apply(c *Config, root map[string]any) {
	keys := keysOf(c)
	for _, name := range sortedKeys(root) {
		v := root[name]
		table, ok := v.(map[string]any)
		switch {
		case name != "map" && !slices.ContainsFunc(keys, func(k key) bool { return strings.HasPrefix(k.name, name+".") }):
			d.set(keys, join("", name), v)
		case !ok:
			d.fail(name, "is %s; expected a table", describe(v))
		case name == "map":
			d.applyMaps(c, table)
		default:
			for _, k := range sortedKeys(table) {
				d.set(keys, join(name, k), table[k])
			}
		}
	}
}

// set gives v to the key of that name.
func (d *document) set(keys []key, name string, v any) {
	for _, k := range keys {
		if k.name == name {
			k.set(d, v)
			return
		}
	}
	if why, ok := removed[name]; ok {
		d.warnings = append(d.warnings, &Error{d.file, d.line(name), name, "has no effect: " + why + "; remove the key"})
		return
	}
	d.fail(name, "there is no such key%s", suggest(keys, name))
}

// suggest names the keys and tables that were probably meant: names that differ
// by a typing error, and the same key of another table.
func suggest(keys []key, name string) string {
	table, last := split(name)
	near := func(known string) bool { return distance(name, known) <= len(name)/4+1 }
	var meant, siblings []string
	for _, k := range keys {
		t, l := split(k.name)
		if l == last || near(k.name) {
			meant = append(meant, k.name)
		}
		if t == table {
			siblings = append(siblings, l)
		}
		if header := "the table [" + t + "]"; table == "" && near(t) && !slices.Contains(meant, header) {
			meant = append(meant, header)
		}
	}
	switch {
	case len(meant) > 0:
		return "; did you mean " + strings.Join(meant, " or ") + "?"
	case table != "":
		return "; [" + table + "] has " + strings.Join(siblings, ", ")
	}
	return ""
}

func split(name string) (table, last string) {
	dot := max(0, strings.LastIndexByte(name, '.'))
	return name[:dot], strings.TrimPrefix(name[dot:], ".")
}

// distance is Levenshtein's: how many letters to insert, remove or change.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

func sortedKeys(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) }

// describe says what a TOML value is, for an error message.
func describe(v any) string {
	switch v := v.(type) {
	case string:
		return strconv.Quote(text.Cut(v, 60))
	case int64:
		return "the number " + strconv.FormatInt(v, 10)
	case float64:
		n := strconv.FormatFloat(v, 'g', -1, 64)
		if v == math.Trunc(v) && !strings.ContainsAny(n, "eIN") {
			n += ".0" // tells it from a whole number
		}
		return "the number " + n
	case bool:
		return strconv.FormatBool(v)
	case []any:
		return fmt.Sprintf("a list of %d", len(v))
	case map[string]any:
		return "a table"
	}
	return "a date or time"
}

var (
	assignment  = regexp.MustCompile(`^\s*([\w.-]+)\s*=\s*([^"'\s#\[{][^#]*)?`)
	tableHeader = regexp.MustCompile(`^\s*\[\s*([\w.-]+)\s*\]`)
)

// syntaxError says where a source is not TOML, and what the key takes. The usual
// mistake is text without quotes.
func syntaxError(file string, source []byte, err error) *Error {
	e := &Error{File: file, Text: strings.TrimPrefix(err.Error(), "toml: ")}
	var de *toml.DecodeError
	if !errors.As(err, &de) {
		return e
	}
	e.Line, _ = de.Position()
	lines := bytes.Split(source, []byte("\n"))[:e.Line]
	m := assignment.FindSubmatch(lines[e.Line-1])
	if m == nil {
		e.Key = strings.Join(de.Key(), ".")
		return e
	}
	e.Key = string(m[1])
	for _, line := range slices.Backward(lines) {
		if t := tableHeader.FindSubmatch(line); t != nil {
			e.Key = string(t[1]) + "." + e.Key
			break
		}
	}
	if de.Key() == nil { // else the key is there twice
		e.Text += syntaxHint(e.Key, strings.Trim(string(m[2]), " \t\r\"“”„‘’"))
	}
	return e
}

// syntaxHint says what a key takes, or that it takes the value in quotes.
func syntaxHint(name, value string) string {
	for _, k := range keysOf(new(Config)) {
		if k.name == name && k.field.Kind() == reflect.Slice {
			return `; expected a list, as ["..."]`
		} else if k.name == name {
			if _, expected := take(k.field.Type(), k.tag, value); expected != "" {
				return "; expected " + expected
			}
		}
	}
	if value == "" {
		return ""
	}
	return "; text needs quotes: " + strconv.Quote(text.Cut(value, 60))
}

const (
	wantExempt      = `a domain, as "example.com", or ".example.com" for all below it`
	maxExemptErrors = 20 // reported of one file: it may be something else altogether
)

// readExempt reads a file with one exempt domain a line; # begins a comment.
func (d *document) readExempt(path string) []string {
	text, err := readFile(path, MaxExemptFile)
	if err != nil {
		hint := ""
		if errors.Is(err, fs.ErrNotExist) {
			hint = "; create it, or remove the key"
		}
		d.fail("exempt.file", "%v%s", err, hint)
		return nil
	}
	var domains []string
	line, mistakes := 0, 0
	for entry := range strings.Lines(string(text)) {
		line++
		entry, _, _ = strings.Cut(entry, "#")
		entry = strings.TrimSpace(entry)
		domain, err := exempt.Parse(entry)
		switch {
		case entry == "":
		case err == nil:
			domains = append(domains, domain)
		case mistakes < maxExemptErrors:
			mistakes++
			d.errs = append(d.errs, &Error{File: path, Line: line, Text: describe(entry) + "; expected " + wantExempt})
		}
	}
	return domains
}
