package config

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// syntaxError says where a text is no TOML, and what was expected there. The
// parser's own words tell of letters; the slip is most often a missing quote,
// and then the key says what it takes.
func syntaxError(file string, text []byte, err error) *Error {
	e := &Error{File: file, Text: strings.TrimPrefix(err.Error(), "toml: ")}
	var de *toml.DecodeError
	if !errors.As(err, &de) {
		return e
	}
	e.Line, _ = de.Position()
	s := findSlip(text, e.Line)
	if s.key != nil {
		e.Key = strings.Join(append([]string{asWritten(s.key[0])}, s.key[1:]...), ".")
	}
	if de.Key() != nil { // it is TOML so far, and something is there twice
		if e.Key == "" {
			e.Key = strings.Join(de.Key(), ".")
		}
		return e
	}
	switch expected := s.expected(); {
	case expected != "":
		e.Text = expected
	case strings.Contains(e.Text, "expected '=' after key"):
		e.Text += `, as in log_level = "info"`
	}
	return e
}

// A slip is a line that is no TOML.
type slip struct {
	key   []string // none: the line gives none a value
	left  string   // of the sign, as it is written
	value string   // what is right of it, or of an array the elements in the line
	inner bool     // the line is one of several of an array
}

// findSlip takes a line apart, from 1. A line inside an array has the key of
// the nearest line above that has one.
func findSlip(text []byte, number int) slip {
	all := strings.Split(string(text), "\n")
	if number < 1 || number > len(all) {
		return slip{}
	}
	table, whole := lastTable(strings.Join(all[:number-1], "\n"))
	left, value, found := strings.Cut(all[number-1], "=")
	key := parseKey(left)
	if whole {
		if !found || key == nil {
			return slip{}
		}
		return slip{key: append(table, key...), left: strings.TrimSpace(left), value: trimComment(value)}
	}
	for i := number - 2; i >= 0; i-- {
		left, _, found := strings.Cut(all[i], "=")
		if key := parseKey(left); found && key != nil {
			return slip{key: append(table, key...), value: trimComment(all[number-1]), inner: true}
		}
	}
	return slip{}
}

// lastTable returns the name of the last table in a text, and whether the text
// ends where a key may begin.
func lastTable(text string) (name []string, whole bool) {
	var p unstable.Parser
	p.Reset([]byte(text))
	for p.NextExpression() {
		if e := p.Expression(); e.Kind == unstable.Table || e.Kind == unstable.ArrayTable {
			name = keyParts(e.Key())
		}
	}
	return name, p.Error() == nil
}

// parseKey returns the parts of a key, or none if s is no key.
func parseKey(s string) []string {
	var p unstable.Parser
	p.Reset([]byte(s + "=0"))
	if strings.Contains(s, "#") || !p.NextExpression() || p.Expression().Kind != unstable.KeyValue {
		return nil
	}
	return keyParts(p.Expression().Key())
}

func keyParts(it unstable.Iterator) []string {
	var parts []string
	for it.Next() {
		parts = append(parts, string(it.Node().Data))
	}
	return parts
}

func trimComment(s string) string {
	s, _, _ = strings.Cut(s, "#")
	return strings.TrimSpace(s)
}

// quotes are TOML's, and those that text processors make of them.
const quotes = "\"'“”„‘’"

// expected says what the key takes, or "" if it is not the value that is wrong,
// or not for want of quotes.
func (s slip) expected() string {
	switch {
	case s.key == nil || strings.ContainsFunc(s.value, unicode.IsControl):
		return ""
	case s.value == "" && s.inner:
		return ""
	case s.value == "":
		return s.missing()
	case s.inner:
		list, _ := strings.CutSuffix(s.value, "]")
		elements, ok := bare(list)
		if !ok {
			return ""
		}
		return s.takes(list, elements, strings.Join(quoted(elements), ", "))
	case strings.HasPrefix(s.value, "["):
		list, _ := strings.CutSuffix(s.value[1:], "]")
		elements, ok := bare(list)
		if !ok {
			return ""
		}
		return s.takes(list, elements, s.left+" = ["+strings.Join(quoted(elements), ", ")+"]")
	case strings.HasPrefix(s.value, "{"):
		return ""
	}
	if strings.ContainsAny(s.value[:1], `"'`) && strings.Count(s.value, s.value[:1]) > 1 {
		return ""
	}
	text := strings.Trim(s.value, quotes)
	return s.takes(s.value, text, s.left+" = "+strconv.Quote(text))
}

// maxQuoted is the longest line that an error repeats, in bytes.
const maxQuoted = 200

// takes tries v, which is the value with its quotes, on the key. right is how
// it is written.
func (s slip) takes(value string, v any, right string) string {
	if isArray := "x = [" + value + "]"; toml.Unmarshal([]byte(isArray), new(map[string]any)) == nil {
		return "" // there is nothing wrong with it
	}
	if mistake := s.try(v); mistake != "" {
		return mistake
	}
	if len(right) > maxQuoted {
		return "text stands in quotes"
	}
	return "text stands in quotes: " + right
}

// missing says what the key takes that has no value.
func (s slip) missing() string {
	_, expected, _ := strings.Cut(s.try(struct{}{}), "; ") // which no key takes
	if expected == "" {
		return "there is no value"
	}
	return "there is no value; " + expected
}

// try gives v to the key, and returns what is wrong with it.
func (s slip) try(v any) string {
	for _, part := range slices.Backward(s.key) {
		v = map[string]any{part: v}
	}
	d := &document{root: v.(map[string]any)}
	d.apply(Default())
	if len(d.errs) == 0 {
		return ""
	}
	return d.errs[0].Text
}

// bare returns the elements of a list, unless one has quotes or is a list.
func bare(list string) ([]any, bool) {
	var elements []any
	for e := range strings.SplitSeq(list, ",") {
		if e = strings.TrimSpace(e); e != "" {
			elements = append(elements, e)
		}
	}
	return elements, len(elements) > 0 && !strings.ContainsAny(list, quotes+"[]{}")
}

func quoted(elements []any) []string {
	list := make([]string, len(elements))
	for i, e := range elements {
		list[i] = strconv.Quote(e.(string))
	}
	return list
}
