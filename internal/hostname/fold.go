package hostname

import (
	"bytes"
	"errors"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// maxUnicodeName bounds what is given to the conversion to A-labels, in bytes:
// 253 characters of at most four bytes each. A longer name has no A-label form
// that the DNS could hold, unless it is padded with characters that vanish.
const maxUnicodeName = 1024

// ErrUnconvertible is a name for which there are no A-labels.
var ErrUnconvertible = errors.New("cannot be converted to A-labels")

// Canonical returns name with A-labels for its U-labels, in lower case and
// without its final dot. What it returns need not be a host name. The scratch
// space is overwritten from its start if the name must be folded or converted;
// with room for MaxName bytes nothing is allocated but for a name with
// U-labels. The error is ErrUnconvertible.
func Canonical(name, scratch []byte) ([]byte, error) {
	if !isASCII(name) {
		ascii, err := aLabels(string(name))
		if err != nil {
			return nil, err
		}
		name = append(scratch[:0], ascii...)
	}
	// After the conversion: it makes a dot of other scripts' full stops.
	name = bytes.TrimSuffix(name, []byte{'.'})
	if len(name) > MaxName {
		return name, nil // no host name, whatever is in it
	}
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			return appendLower(scratch[:0], name, i), nil
		}
	}
	return name, nil
}

// aLabels returns a name that is not ASCII with A-labels for its U-labels, as
// Postfix converts a next-hop: keys of lookups and exempt domains would else
// not meet. ASCII is not for it: rules of U-labels would apply to that too.
func aLabels(name string) (string, error) {
	if len(name) > maxUnicodeName || !utf8.ValidString(name) {
		return "", ErrUnconvertible
	}
	ascii, err := toASCII.ToASCII(name)
	if err != nil {
		return "", ErrUnconvertible
	}
	return ascii, nil
}

// toASCII converts as Postfix's midna_domain_to_ascii() does: UTS 46 with
// ICU's UIDNA_NONTRANSITIONAL_TO_ASCII and no other option, so neither STD3,
// bidi nor joiner rules; but hyphens and lengths are checked there too.
var toASCII = idna.New(
	idna.MapForLookup(),
	idna.Transitional(false),
	idna.StrictDomainName(false),
	idna.CheckJoiners(false),
	idna.CheckHyphens(true),
	idna.VerifyDNSLength(true),
)

func isASCII(b []byte) bool {
	for _, c := range b {
		if c >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// Lower folds the case of ASCII letters and of nothing else: strings.ToLower
// would make a letter of the Kelvin sign.
func Lower(s string) string {
	for i := range len(s) {
		if c := s[i]; 'A' <= c && c <= 'Z' {
			return string(appendLower(nil, []byte(s), i))
		}
	}
	return s
}

// AppendLower appends name to dst as Lower folds it.
func AppendLower(dst, name []byte) []byte { return appendLower(dst, name, 0) }

// appendLower folds from index first on.
func appendLower(dst, name []byte, first int) []byte {
	start := len(dst)
	dst = append(dst, name...)
	for i := start + first; i < len(dst); i++ {
		if c := dst[i]; 'A' <= c && c <= 'Z' {
			dst[i] = c + ('a' - 'A')
		}
	}
	return dst
}
