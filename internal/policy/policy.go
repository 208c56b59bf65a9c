// Package policy discovers and reads MTA-STS policies as RFC 8461 asks it of a
// sender: the TXT record, the policy file and its fetch over HTTPS, and the
// match of an MX host against a policy. It keeps no policies and no results;
// the keeper does.
package policy

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
)

// A Mode is what a policy asks of senders (RFC 8461, 5).
type Mode uint8

// The modes. The values are stored on disk.
const (
	ModeNone    Mode = 1
	ModeTesting Mode = 2
	ModeEnforce Mode = 3
)

var modeNames = map[Mode]string{ModeNone: "none", ModeTesting: "testing", ModeEnforce: "enforce"}

func (m Mode) String() string { return cmp.Or(modeNames[m], "invalid") }

// MaxMaxAge is the largest max_age (RFC 8461, 3.2). Parse lowers a larger one.
const MaxMaxAge = 31557600 * time.Second

// A Policy is a parsed policy file.
type Policy struct {
	Mode   Mode
	MaxAge time.Duration
	MX     []string // the mx patterns in the order served, lower case, without a trailing dot and repeats
	Fields []Field  // the fields that count, in the order served, without extensions
}

// A Field is one line of a policy file.
type Field struct{ Key, Value string }

// The bounds of a policy file.
const (
	MaxText     = 64 << 10 // bytes; the limit that RFC 8461, 3.3 suggests
	MaxPatterns = 1000     // lines of mx, repeats included
)

// ErrInvalid is a policy file that does not follow the grammar.
var ErrInvalid = errors.New("broken policy file")

// isValue says whether s is the value of a field: visible ASCII or UTF-8 with inner spaces.
func isValue(s string) bool {
	return s != "" && utf8.ValidString(s) && !strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c == '\x7f' })
}

// Parse parses a policy file by the grammar of RFC 8461, 3.2: lines that end in
// LF or CRLF (erratum 6253), the last line's end optional. It departs from the
// grammar where a domain plainly asks for protection: empty lines and a byte
// order mark are skipped, a max_age above the maximum is lowered to it (see
// erratum 7282), an mx may end in a dot or be an IP address. The error wraps
// ErrInvalid.
//
// A text that Parse accepts is valid UTF-8 and has no control characters below
// U+0080 other than TAB, LF and CR before LF.
func Parse(served []byte) (*Policy, error) {
	if len(served) > MaxText {
		return nil, fmt.Errorf("%w: it is longer than %d bytes", ErrInvalid, MaxText)
	}
	p := &parser{policy: new(Policy), seen: make([]string, 0, 4), similar: make(map[string]string)}
	lines := strings.Split(strings.TrimPrefix(string(served), "\ufeff"), "\n")
	p.policy.Fields = make([]Field, 0, min(len(lines), 8))
	for i, line := range lines {
		if i < len(lines)-1 {
			line = strings.TrimSuffix(line, "\r")
		}
		if strings.Trim(line, " \t") == "" {
			continue
		}
		if err := p.line(line); err != nil {
			return nil, fmt.Errorf("%w: line %d: %w", ErrInvalid, i+1, err)
		}
	}
	return p.finish()
}

// A parser gathers a policy line by line.
type parser struct {
	policy   *Policy
	seen     []string          // fields that the standard names
	patterns int               // lines of mx
	similar  map[string]string // fields whose names differ from the standard's only in case, by the right name
}

func (p *parser) line(line string) error {
	key, value, ok := strings.Cut(line, ":")
	value = strings.Trim(value, " \t")
	if !ok || !isFieldName(key) || !isValue(value) {
		return fmt.Errorf("%s is not of the form key: value", quote(line))
	}
	var set func(*parser, string) error
	switch key {
	case "version":
		set = (*parser).setVersion
	case "mode":
		set = (*parser).setMode
	case "max_age":
		set = (*parser).setMaxAge
	case "mx":
		set = (*parser).addMX
	default:
		p.similar[hostname.Lower(key)] = key
		return nil // RFC 8461, 3.2: unknown fields are ignored
	}
	if seen := slices.Contains(p.seen, key); !seen {
		p.seen = append(p.seen, key)
	} else if key != "mx" {
		return nil // RFC 8461, 3.2: the first counts
	}
	if err := set(p, value); err != nil {
		return err
	}
	p.policy.Fields = append(p.policy.Fields, Field{Key: key, Value: value})
	return nil
}

func (p *parser) setVersion(value string) error {
	if value != "STSv1" {
		return fmt.Errorf("version %s is not STSv1", quote(value))
	}
	return nil
}

func (p *parser) setMode(value string) error {
	for mode, name := range modeNames {
		if value == name {
			p.policy.Mode = mode
			return nil
		}
	}
	return fmt.Errorf("mode %s is none of enforce, testing, none", quote(value))
}

func (p *parser) setMaxAge(value string) error {
	seconds, err := strconv.ParseUint(value, 10, 64)
	if err != nil || len(value) > 10 {
		return fmt.Errorf("max_age %s is not 1 to 10 digits", quote(value))
	}
	p.policy.MaxAge = time.Duration(min(seconds, uint64(MaxMaxAge/time.Second))) * time.Second
	return nil
}

func (p *parser) addMX(value string) error {
	p.patterns++
	if p.patterns > MaxPatterns {
		return fmt.Errorf("more than %d lines of mx", MaxPatterns)
	}
	pattern := hostname.Lower(strings.TrimSuffix(value, "."))
	// The grammar refers to the Domain of RFC 5321, 4.1.2, which has no
	// underscore; its last label may be a number.
	if hostname.Labels(strings.TrimPrefix(pattern, "*."), 0) == 0 && !isAddress(pattern) {
		hint := ""
		if strings.ContainsFunc(value, func(r rune) bool { return r >= utf8.RuneSelf }) {
			hint = " (an internationalized name must be given as A-labels, xn--...)"
		}
		return fmt.Errorf("mx %s is neither a host name nor *. and a host name%s", quote(value), hint)
	}
	if !slices.Contains(p.policy.MX, pattern) {
		p.policy.MX = append(p.policy.MX, pattern)
	}
	return nil
}

// isAddress reports whether a pattern is an IP address, bare or an address literal
// (RFC 5321, 4.1.3). It lists no host, and is no reason to drop the protection of the
// hosts beside it.
func isAddress(pattern string) bool {
	if inside, ok := strings.CutPrefix(pattern, "["); ok {
		pattern, ok = strings.CutSuffix(strings.TrimPrefix(inside, "ipv6:"), "]")
		if !ok {
			return false
		}
	}
	addr, err := netip.ParseAddr(pattern)
	return err == nil && addr.Zone() == ""
}

// finish checks that nothing is missing.
func (p *parser) finish() (*Policy, error) {
	var missing []string
	for _, name := range []string{"version", "mode", "max_age", "mx"} {
		// RFC 8461, 3.2: an mx is required, unless the mode is none.
		if slices.Contains(p.seen, name) || name == "mx" && p.policy.Mode == ModeNone {
			continue
		}
		hint := ""
		if key, ok := p.similar[name]; ok {
			hint = fmt.Sprintf(" (names are case-sensitive: %q is another field)", key)
		}
		missing = append(missing, "no "+name+hint)
	}
	if missing != nil {
		return nil, fmt.Errorf("%w: it has %s", ErrInvalid, strings.Join(missing, ", "))
	}
	p.policy.MX, p.policy.Fields = slices.Clip(p.policy.MX), slices.Clip(p.policy.Fields)
	return p.policy, nil
}

// Lists reports whether the policy lists host, the name in an MX record, as a
// mail host of its domain (RFC 8461, 4.1).
func (p *Policy) Lists(host string) bool {
	return slices.ContainsFunc(p.MX, func(pattern string) bool { return Match(pattern, host) })
}

// Match reports whether host matches an mx pattern. A leading "*." of the
// pattern stands for exactly one label (RFC 8461, 4.1). ASCII case and a final
// dot are ignored. U-labels match only themselves: DNS has A-labels.
func Match(pattern, host string) bool {
	pattern, host = strings.TrimSuffix(pattern, "."), strings.TrimSuffix(host, ".")
	parent, wild := strings.CutPrefix(pattern, "*.")
	if wild {
		label, rest, _ := strings.Cut(host, ".")
		if label == "" {
			return false
		}
		host = rest
	}
	return parent != "" && hostname.Lower(parent) == hostname.Lower(host)
}
