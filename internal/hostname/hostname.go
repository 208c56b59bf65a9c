// Package hostname is the rule for the names of mail domains and mail hosts:
// how they are written (RFC 1035, 2.3.4; RFC 1123, 2.1), folded, and converted
// to A-labels. It asks no DNS. Callers add rules of their own to Labels: a
// policy domain has two labels or more (package mta), an mx pattern has no
// underscore (RFC 8461, 3.2), and to Postfix a host in an MX record may have
// underscores (package dane).
package hostname

import (
	"bytes"
	"errors"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// The sizes of a name in its text form, without the final dot (RFC 1035,
// 2.3.4; 255 octets on the wire are 253 characters), in bytes.
const (
	MaxName  = 253
	MaxLabel = 63
)

// Characters are those that a name may have besides lower case letters,
// digits and hyphens.
type Characters uint8

// The characters that only some names may have.
const (
	Upper      Characters = 1 << iota // capitals: the name is not folded yet
	Underscore                        // in no standard, but in the DNS, and Postfix delivers to such names
)

// Labels returns how many labels a host name has: of letters, digits and
// hyphens, none empty, longer than 63 bytes, or with a hyphen at an end, and no
// final dot. Zero: name is no host name. An IPv4 address passes (EndsInNumber
// tells). Nothing that passes has a meaning in a URL, in a netstring's reply or
// on a terminal. Nothing is allocated.
func Labels[T string | []byte](name T, also Characters) int {
	if len(name) == 0 || len(name) > MaxName {
		return 0
	}
	labels, start := 1, 0
	prev := byte('.')
	for i := 0; i < len(name); i++ {
		c := name[i]
		switch {
		case 'a' <= c && c <= 'z' || '0' <= c && c <= '9':
		case c == '-':
			if prev == '.' {
				return 0
			}
		case c == '.':
			if prev == '.' || prev == '-' || i-start > MaxLabel {
				return 0
			}
			start = i + 1
			labels++
		case 'A' <= c && c <= 'Z' && also&Upper != 0:
		case c == '_' && also&Underscore != 0:
		default:
			return 0
		}
		prev = c
	}
	if prev == '.' || prev == '-' || len(name)-start > MaxLabel {
		return 0
	}
	return labels
}

// Valid reports whether name is written like the name of a mail domain or a
// mail host, folded or not: underscores pass, and what ends in a number, as an
// IPv4 address does, is none.
func Valid(name string) bool {
	return Labels(name, Upper|Underscore) > 0 && !EndsInNumber(name)
}

// EndsInNumber reports whether the last label has nothing but digits: no
// top-level domain has, an IPv4 address does.
func EndsInNumber[T string | []byte](name T) bool {
	for i := len(name) - 1; i >= 0 && name[i] != '.'; i-- {
		if name[i] < '0' || name[i] > '9' {
			return false
		}
	}
	return true
}

// maxUnicodeName bounds what is converted to A-labels, in bytes: 253 characters
// of at most four bytes each.
const maxUnicodeName = 1024

// ErrUnconvertible is a name for which there are no A-labels.
var ErrUnconvertible = errors.New("cannot be converted to A-labels")

// toASCII converts as Postfix's midna_domain_to_ascii() does: UTS 46 with ICU's
// UIDNA_NONTRANSITIONAL_TO_ASCII and no other option, so without STD3, bidi and
// joiner rules, but with checks of hyphens and lengths.
var toASCII = idna.New(
	idna.MapForLookup(),
	idna.Transitional(false),
	idna.StrictDomainName(false),
	idna.CheckJoiners(false),
	idna.CheckHyphens(true),
	idna.VerifyDNSLength(true),
)

// Canonical returns name with A-labels for its U-labels, in lower case and
// without its final dot. The result need not be a host name. The scratch space is
// overwritten if the name must be folded or converted; with room for MaxName
// bytes nothing is allocated but for a name with U-labels. The error is
// ErrUnconvertible.
func Canonical(name, scratch []byte) ([]byte, error) {
	// Not for ASCII: the rules of U-labels would apply to it too.
	if bytes.ContainsFunc(name, func(r rune) bool { return r >= utf8.RuneSelf }) {
		if len(name) > maxUnicodeName || !utf8.Valid(name) {
			return nil, ErrUnconvertible
		}
		ascii, err := toASCII.ToASCII(string(name))
		if err != nil {
			return nil, ErrUnconvertible
		}
		name = append(scratch[:0], ascii...)
	}
	// After the conversion: it makes a dot of other scripts' full stops.
	name = bytes.TrimSuffix(name, []byte{'.'})
	if len(name) > MaxName || !hasUpper(name) {
		return name, nil
	}
	return AppendLower(scratch[:0], name), nil
}

// Lower folds the case of ASCII letters and of nothing else: strings.ToLower
// would make a letter of the Kelvin sign.
func Lower(s string) string {
	if !hasUpper(s) {
		return s
	}
	return string(AppendLower(nil, []byte(s)))
}

// AppendLower appends name to dst as Lower folds it.
func AppendLower(dst, name []byte) []byte {
	for _, c := range name {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst
}

func hasUpper[T string | []byte](name T) bool {
	for i := range len(name) {
		if c := name[i]; 'A' <= c && c <= 'Z' {
			return true
		}
	}
	return false
}
