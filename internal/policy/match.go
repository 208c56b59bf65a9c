package policy

import "strings"

// Lists reports whether the policy allows host, the name in an MX record, as
// a mail host of its domain (RFC 8461, 4.1).
func (p *Policy) Lists(host string) bool {
	for _, pattern := range p.MX {
		if Match(pattern, host) {
			return true
		}
	}
	return false
}

// Match reports whether host matches an mx pattern: it is equal, or the
// pattern begins with "*." and equals the host with its left-most label put in
// place of the "*" (RFC 8461, 4.1). ASCII case and a final dot do not count.
// Names that are not ASCII match nothing but themselves: the DNS has A-labels.
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
	return parent != "" && equalFold(parent, host)
}

// equalFold is strings.EqualFold for ASCII only: Unicode would fold U+212A,
// the sign for Kelvin, into a k.
func equalFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if lowerByte(a[i]) != lowerByte(b[i]) {
			return false
		}
	}
	return true
}

func lowerByte(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}
