package tlsmap

import (
	"bytes"
	"encoding/binary"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// readyVersion is the first byte of what Prepare makes. Change it with the
// format: records of another version are prepared again from their text.
const readyVersion = 2

// MaxReply is the longest reply that Postfix reads (SOCKETMAP_MAX_REPLY), in
// bytes, the status word included.
const MaxReply = 100_000

// A Ready is what a reply needs of a policy, as it stands in the store: after
// the version the match list and the fields, each behind its length as a
// uvarint, and nothing behind them. It says nothing twice, so that a million of
// them lie close together: what the tlsrpt maps repeat is put in when a reply is
// rendered.
type Ready struct {
	// match is the match list: names joined by ':'. An entry that begins with
	// a dot stands for the pattern with a "*" before it, so that the list
	// holds all there is to know of the mx patterns. Empty: none can be used.
	match []byte

	// fields are those that the standard names, in their order: a kind each,
	// and behind some kinds a text behind its length as a uvarint.
	fields []byte
}

// The kinds of a field.
const (
	fieldVersion     = iota + 1 // version: STSv1
	fieldModeEnforce            // mode: enforce
	fieldModeTesting            // mode: testing
	fieldModeNone               // mode: none
	fieldMaxAge                 // max_age: the text
	fieldMX                     // mx: the text; it is not in the match list, or not again
	fieldPattern                // mx: the next pattern of the match list
	fieldPatternAs              // mx: the next pattern of the match list, served as the text
)

// Prepare returns what the replies for a domain need of its policy, to be kept
// beside it. It is never empty, and no longer than about twice the policy's
// text.
func Prepare(p *policy.Policy) []byte {
	patterns := usablePatterns(p.MX)
	match := matchList(patterns)
	var fields []byte
	for _, f := range p.Fields {
		if isStandardField(f) {
			fields, patterns = appendField(fields, f, patterns)
		}
	}
	b := make([]byte, 0, 1+2*binary.MaxVarintLen32+len(match)+len(fields))
	b = append(b, readyVersion)
	return appendText(appendText(b, match), fields)
}

// appendField appends a field that the standard names. patterns are those of
// the match list that no field has stood for; what is left of them is returned.
func appendField(b []byte, f policy.Field, patterns []string) ([]byte, []string) {
	switch f.Key {
	case "version":
		return append(b, fieldVersion), patterns
	case "mode":
		return append(b, kindOfMode[f.Value]), patterns
	case "max_age":
		return appendText(append(b, fieldMaxAge), f.Value), patterns
	}
	switch {
	case len(patterns) == 0 || hostname.Lower(strings.TrimSuffix(f.Value, ".")) != patterns[0]:
		return appendText(append(b, fieldMX), f.Value), patterns
	case f.Value == patterns[0]:
		return append(b, fieldPattern), patterns[1:]
	}
	return appendText(append(b, fieldPatternAs), f.Value), patterns[1:]
}

var kindOfMode = map[string]byte{"enforce": fieldModeEnforce, "testing": fieldModeTesting, "none": fieldModeNone}

func appendText[T string | []byte](b []byte, text T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(text))), text...)
}

// IsCurrent says whether b is of the format that Prepare makes today. That it
// adds up as well is for ParseReady to say: a lookup parses it once.
func IsCurrent(b []byte) bool { return len(b) > 0 && b[0] == readyVersion }

// ParseReady returns a view of what Prepare made. It is false for another
// version of the format, and for what is damaged so that it does not add up.
func ParseReady(b []byte) (r Ready, ok bool) {
	if !IsCurrent(b) {
		return Ready{}, false
	}
	if r.match, b, ok = cutText(b[1:]); !ok {
		return Ready{}, false
	}
	if r.fields, b, ok = cutText(b); !ok || len(b) != 0 {
		return Ready{}, false
	}
	patterns := 0
	for rest := r.fields; len(rest) > 0; {
		kind := rest[0]
		if _, rest, ok = cutField(rest); !ok {
			return Ready{}, false
		}
		if kind == fieldPattern || kind == fieldPatternAs {
			patterns++
		}
	}
	return r, patterns == 0 || patterns <= r.patterns()
}

// patterns is the number of mx patterns in the match list.
func (r Ready) patterns() int {
	if len(r.match) == 0 {
		return 0
	}
	return bytes.Count(r.match, []byte{':'}) + 1
}

// cutField takes a field off the start of b, which is not empty. The text is
// empty for kinds that have none.
func cutField(b []byte) (text, rest []byte, ok bool) {
	switch b[0] {
	case fieldVersion, fieldModeEnforce, fieldModeTesting, fieldModeNone, fieldPattern:
		return nil, b[1:], true
	case fieldMaxAge, fieldMX, fieldPatternAs:
		return cutText(b[1:])
	}
	return nil, nil, false
}

// cutText takes a text off the start of b.
func cutText(b []byte) (text, rest []byte, ok bool) {
	n, width := binary.Uvarint(b)
	if width <= 0 || n > uint64(len(b)-width) {
		return nil, nil, false
	}
	end := width + int(n)
	return b[width:end:end], b[end:], true
}

// cutPattern takes the first entry off a match list.
func cutPattern(match []byte) (entry, rest []byte) {
	entry, rest, _ = bytes.Cut(match, []byte{':'})
	return entry, rest
}

// appendPattern appends the mx pattern that an entry of a match list stands for.
func appendPattern(dst, entry []byte) []byte {
	if len(entry) > 0 && entry[0] == '.' {
		dst = append(dst, '*')
	}
	return append(dst, entry...)
}

// appendPatterns appends the attributes that Postfix 3.10 and later use for
// TLSRPT, and 3.10.5 and later to choose among the MX hosts, until dst is
// longer than most.
func (r Ready) appendPatterns(dst, domain []byte, most int) []byte {
	dst = append(dst, " policy_type=sts policy_domain="...)
	dst = append(dst, domain...)
	var entry []byte
	for rest := r.match; len(rest) > 0 && len(dst) <= most; {
		entry, rest = cutPattern(rest)
		dst = appendPattern(append(dst, " mx_host_pattern="...), entry)
	}
	return dst
}

// appendStrings appends the policy's fields, as served, as policy_string
// attributes, until dst is longer than most. The braces let a value have
// spaces; nothing in one could end it.
func (r Ready) appendStrings(dst []byte, most int) []byte {
	var entry, text []byte
	match := r.match
	for rest := r.fields; len(rest) > 0 && len(dst) <= most; {
		kind := rest[0]
		if text, rest, _ = cutField(rest); kind == fieldPattern || kind == fieldPatternAs {
			entry, match = cutPattern(match)
		}
		dst = append(append(dst, " { policy_string = "...), openings[kind]...)
		if dst = append(dst, text...); kind == fieldPattern {
			dst = appendPattern(dst, entry)
		}
		dst = append(dst, " }"...)
	}
	return dst
}

// openings is what stands before a field's text.
var openings = [...]string{
	fieldVersion:     "version: STSv1",
	fieldModeEnforce: "mode: enforce",
	fieldModeTesting: "mode: testing",
	fieldModeNone:    "mode: none",
	fieldMaxAge:      "max_age: ",
	fieldMX:          "mx: ",
	fieldPattern:     "mx: ",
	fieldPatternAs:   "mx: ",
}

// usablePatterns returns the mx patterns that may be shown to an MTA, in lower
// case and without repeats. What is no host name, with or without "*.", is
// left out: whatever it was meant to be, it matches nothing. So is a pattern of
// one label: "hostname", "nexthop" and "dot-nexthop" are keywords to Postfix.
func usablePatterns(mx []string) []string {
	usable := make([]string, 0, len(mx))
	seen := make(map[string]bool, len(mx))
	for _, pattern := range mx {
		if len(pattern) > maxPattern {
			continue
		}
		pattern = hostname.Lower(pattern) // RFC 8461, 4.1: case does not count
		labels := 2
		host := pattern
		if rest, wildcard := strings.CutPrefix(pattern, "*."); wildcard {
			host, labels = rest, 1
		}
		if hostname.Labels(host, 0) < labels || seen[pattern] {
			continue
		}
		seen[pattern] = true
		usable = append(usable, pattern)
	}
	return usable
}

// matchList renders patterns for Postfix's match attribute, in which
// ".example.net" is any name below example.net.
func matchList(patterns []string) []byte {
	var b []byte
	for i, pattern := range patterns {
		if i > 0 {
			b = append(b, ':')
		}
		b = append(b, strings.TrimPrefix(pattern, "*")...)
	}
	return b
}

// maxPattern is the longest mx pattern: a host name behind "*.".
const maxPattern = hostname.MaxName + len("*.")

// maxAgeDigits is the length of a max_age (RFC 8461, 3.2).
const maxAgeDigits = 10

// isStandardField reports whether the field is one that the standard names,
// with a value that it allows (RFC 8461, 3.2).
func isStandardField(f policy.Field) bool {
	switch f.Key {
	case "version":
		return f.Value == "STSv1"
	case "mode":
		return f.Value == "enforce" || f.Value == "testing" || f.Value == "none"
	case "max_age":
		return len(f.Value) >= 1 && len(f.Value) <= maxAgeDigits && strings.Trim(f.Value, "0123456789") == ""
	case "mx":
		// As served: in capitals perhaps, and with a dot at the end.
		host := strings.TrimPrefix(strings.TrimSuffix(f.Value, "."), "*.")
		return hostname.Labels(host, hostname.Upper) > 0
	}
	return false
}
