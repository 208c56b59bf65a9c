package tlsmap

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
)

// exemptions are domains that are always NOTFOUND: "example.com" is that
// domain, ".example.com" is all below it.
type exemptions map[string]struct{}

// ParseExempt returns an entry of a list of exempt domains in canonical form,
// or an error that says what is wrong with it.
func ParseExempt(entry string) (string, error) {
	name, below := strings.CutPrefix(entry, ".")
	canonical, err := hostname.Canonical([]byte(name), nil)
	switch {
	case err != nil:
		return "", fmt.Errorf("%q %w", entry, err)
	case strings.HasPrefix(name, "*."):
		return "", fmt.Errorf("%q is no domain; all below a domain is written %q", entry, name[1:])
	case !hostname.Valid(string(canonical)):
		return "", fmt.Errorf("%q is no domain; expected \"example.com\", or \".example.com\" for all below it", entry)
	case below:
		return "." + string(canonical), nil
	}
	return string(canonical), nil
}

// newExemptions checks the entries of a list.
func newExemptions(entries []string) (exemptions, error) {
	x := make(exemptions, len(entries))
	for _, entry := range entries {
		canonical, err := ParseExempt(entry)
		if err != nil {
			return nil, fmt.Errorf("exempt domains: %w", err)
		}
		x[canonical] = struct{}{}
	}
	return x, nil
}

// has reports whether the domain, in canonical form, is exempt.
func (x exemptions) has(domain []byte) bool {
	if len(x) == 0 {
		return false
	}
	if _, ok := x[string(domain)]; ok {
		return true
	}
	for {
		dot := bytes.IndexByte(domain, '.')
		if dot < 0 {
			return false
		}
		if _, ok := x[string(domain[dot:])]; ok {
			return true
		}
		domain = domain[dot+1:]
	}
}
