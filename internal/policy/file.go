package policy

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
)

// The bounds of a policy file.
const (
	MaxText     = 64 << 10 // bytes; the limit that RFC 8461, 3.3 suggests
	MaxPatterns = 1000     // lines of mx, repeats counted
)

// ErrInvalid is a policy file that does not follow the grammar.
var ErrInvalid = errors.New("broken policy file")

// Parse parses a policy file by the grammar of RFC 8461, 3.2: lines that end
// in LF or CRLF (erratum 6253), the last line's end optional. It departs from
// it in two points, since the domain asked for protection and its meaning is
// plain: a max_age above the maximum is capped (see erratum 7282), and an mx
// may end in a dot. The error is ErrInvalid, with line and reason in words.
//
// A text that Parse accepts is valid UTF-8 and has no control characters
// below U+0080 other than TAB, LF and CR before LF.
func Parse(text []byte) (*Policy, error) {
	if len(text) > MaxText {
		return nil, fmt.Errorf("%w: it is longer than %d bytes", ErrInvalid, MaxText)
	}
	if len(text) == 0 {
		return nil, fmt.Errorf("%w: it is empty", ErrInvalid)
	}
	p := &parser{policy: new(Policy), mx: make(map[string]bool)}
	lines := strings.Split(string(text), "\n")
	for i, line := range lines {
		if line == "" && i == len(lines)-1 {
			break // the last line had its end
		}
		if i < len(lines)-1 {
			line = strings.TrimSuffix(line, "\r")
		}
		if err := p.line(line); err != nil {
			return nil, fmt.Errorf("%w: line %d: %w", ErrInvalid, i+1, err)
		}
	}
	return p.finish()
}

// A parser gathers a policy line by line.
type parser struct {
	policy                   *Policy
	version, hasMode, maxAge bool // seen
	patterns                 int
	mx                       map[string]bool // patterns seen
}

func (p *parser) line(line string) error {
	key, value, ok := cutField(line)
	if !ok {
		return fmt.Errorf("%s is not of the form key: value", quote(line))
	}
	var seen *bool
	var set func(string) error
	switch key {
	case "version":
		seen, set = &p.version, p.setVersion
	case "mode":
		seen, set = &p.hasMode, p.setMode
	case "max_age":
		seen, set = &p.maxAge, p.setMaxAge
	case "mx":
		seen, set = new(bool), p.addMX
	default:
		return nil // RFC 8461, 3.2: unknown fields are ignored
	}
	if *seen {
		return nil // RFC 8461, 3.2: the first counts
	}
	*seen = true
	if err := set(value); err != nil {
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
	switch value {
	case "none":
		p.policy.Mode = ModeNone
	case "testing":
		p.policy.Mode = ModeTesting
	case "enforce":
		p.policy.Mode = ModeEnforce
	default:
		return fmt.Errorf("mode %s is none of enforce, testing, none", quote(value))
	}
	return nil
}

func (p *parser) setMaxAge(value string) error {
	digits := strings.Trim(value, "0123456789") == ""
	if !digits || len(value) > 10 { // an empty value is no field, see cutField
		return fmt.Errorf("max_age %s is not 1 to 10 digits", quote(value))
	}
	seconds, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return fmt.Errorf("max_age: %w", err)
	}
	p.policy.MaxAge = time.Duration(min(seconds, int64(MaxMaxAge/time.Second))) * time.Second
	return nil
}

func (p *parser) addMX(value string) error {
	p.patterns++
	if p.patterns > MaxPatterns {
		return fmt.Errorf("more than %d lines of mx", MaxPatterns)
	}
	pattern := hostname.Lower(strings.TrimSuffix(value, "."))
	if !isDomain(strings.TrimPrefix(pattern, "*.")) {
		hint := ""
		if strings.ContainsFunc(value, func(r rune) bool { return r >= utf8.RuneSelf }) {
			hint = " (an internationalized name must be given as A-labels, xn--...)"
		}
		return fmt.Errorf("mx %s is neither a host name nor *. and a host name%s", quote(value), hint)
	}
	if !p.mx[pattern] {
		p.mx[pattern] = true
		p.policy.MX = append(p.policy.MX, pattern)
	}
	return nil
}

// finish checks that nothing is missing.
func (p *parser) finish() (*Policy, error) {
	var missing []string
	for _, field := range []struct {
		name string
		seen bool
	}{
		{"version", p.version},
		{"mode", p.hasMode},
		{"max_age", p.maxAge},
		// RFC 8461, 3.2: one is required, unless the mode is none.
		{"mx", p.patterns > 0 || p.policy.Mode == ModeNone},
	} {
		if !field.seen {
			missing = append(missing, field.name)
		}
	}
	if missing != nil {
		return nil, fmt.Errorf("%w: it has no %s", ErrInvalid, strings.Join(missing, ", no "))
	}
	p.policy.MX, p.policy.Fields = slices.Clip(p.policy.MX), slices.Clip(p.policy.Fields)
	return p.policy, nil
}

// cutField splits a line, without its end, into key and value, each well
// formed: a field's name, ":", white space, visible ASCII or UTF-8 with inner
// spaces, white space.
func cutField(line string) (key, value string, ok bool) {
	key, value, ok = strings.Cut(line, ":")
	value = strings.Trim(value, " \t")
	return key, value, ok && isFieldName(key) && isFileValue(value)
}

func isFileValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == 0x7f {
			return false
		}
	}
	return s != "" && utf8.ValidString(s)
}
