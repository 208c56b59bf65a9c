package collect

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"
)

// maxDepth is how deep objects and arrays may be nested. libtlsrpt's go to 5.
const maxDepth = 8

// A reader reads one JSON text from front to back. encoding/json is not enough here: it
// takes the last of two equal keys, folds their case, and goes 10,000 levels deep.
// After the first error nothing more is read.
type reader struct {
	s      string
	at     int
	depth  int
	failed bool
	why    Drop // if failed
}

func (r *reader) fail(why Drop) {
	if !r.failed {
		r.failed, r.why = true, why
	}
}

// next returns the next byte that is not white space, without taking it; 0 at the end.
func (r *reader) next() byte {
	for ; r.at < len(r.s) && !r.failed; r.at++ {
		switch c := r.s[r.at]; c {
		case ' ', '\t', '\r', '\n':
		default:
			return c
		}
	}
	return 0
}

// take takes the next byte if it is c.
func (r *reader) take(c byte) bool {
	if r.next() != c {
		return false
	}
	r.at++
	return true
}

// fields yields the keys of an object. The loop reads the value of each.
func (r *reader) fields(yield func(key string) bool) {
	r.items('{', '}', func() bool {
		key := r.text()
		if !r.take(':') {
			r.fail(DropMalformed)
		}
		return !r.failed && yield(key)
	})
}

// elements yields for each element of an array. The loop reads its value.
func (r *reader) elements(yield func() bool) { r.items('[', ']', yield) }

func (r *reader) items(begin, end byte, item func() bool) {
	if !r.take(begin) {
		r.fail(DropMalformed)
		return
	}
	if r.depth++; r.depth > maxDepth {
		r.fail(DropDepth)
		return
	}
	if !r.take(end) {
		for item() && r.take(',') {
		}
		if !r.take(end) {
			r.fail(DropMalformed)
		}
	}
	r.depth--
}

// text reads a string. It may have bytes that are no UTF-8: libtlsrpt passes on
// what an MX host says.
func (r *reader) text() string {
	if !r.take('"') {
		r.fail(DropMalformed)
		return ""
	}
	begin, escaped := r.at, false
	for ; r.at < len(r.s); r.at++ {
		switch c := r.s[r.at]; {
		case c == '"':
			r.at++
			if escaped {
				return r.unescape(r.s[begin-1 : r.at])
			}
			return r.s[begin : r.at-1]
		case c == '\\':
			escaped = true
			r.at++
		case c < ' ':
			r.fail(DropMalformed)
			return ""
		}
	}
	r.fail(DropMalformed)
	return ""
}

func (r *reader) unescape(literal string) (s string) {
	if json.Unmarshal([]byte(literal), &s) != nil {
		r.fail(DropMalformed)
	}
	return s
}

// number reads an integer; one that is too large becomes the largest.
func (r *reader) number() int64 {
	literal := r.literal()
	digits := strings.TrimPrefix(literal, "-")
	n, err := strconv.ParseInt(literal, 10, 64)
	if digits == "" || strings.Trim(digits, "0123456789") != "" || len(digits) > 1 && digits[0] == '0' ||
		err != nil && !errors.Is(err, strconv.ErrRange) {
		r.fail(DropMalformed)
	}
	return n
}

// literal takes a number, true, false or null, or what stands in the place of one.
func (r *reader) literal() string {
	r.next()
	begin := r.at
	for r.at < len(r.s) && strings.IndexByte(" \t\r\n,]}", r.s[r.at]) < 0 {
		r.at++
	}
	return r.s[begin:r.at]
}

// skip reads a value that nobody wants.
func (r *reader) skip() {
	switch r.next() {
	case '{':
		for range r.fields {
			r.skip()
		}
	case '[':
		for range r.elements {
			r.skip()
		}
	case '"':
		r.text()
	default:
		if !json.Valid([]byte(r.literal())) {
			r.fail(DropMalformed)
		}
	}
}
