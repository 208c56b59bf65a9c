package policy

import (
	"errors"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// The sizes of a name in its text form, without the final dot (RFC 1035,
// 2.3.4; 255 octets on the wire are 253 characters).
const (
	maxName  = 253
	maxLabel = 63
)

// IsHostName reports whether name is written like the name of a mail domain
// or a mail host: labels of letters, digits, hyphens and underscores, none
// beginning or ending with a hyphen, the last one not a number, no final dot.
// The underscore is in no standard, but in the DNS it is, and Postfix delivers
// to such names. An IPv4 address is no host name, and nothing that passes has
// a meaning in a URL, in a netstring's reply or on a terminal.
func IsHostName(name string) bool {
	if !isName(name, true) {
		return false
	}
	last := name[strings.LastIndexByte(name, '.')+1:]
	return strings.Trim(last, "0123456789") != ""
}

// maxUnicodeName bounds what is given to the conversion to A-labels, in bytes:
// 253 characters of at most four bytes each. A longer name has no A-label form
// that the DNS could hold, unless it is padded with characters that vanish.
const maxUnicodeName = 1024

// ErrUnconvertible is a name for which there are no A-labels.
var ErrUnconvertible = errors.New("cannot be converted to A-labels")

// ALabels returns name with A-labels for its U-labels, as Postfix converts a
// next-hop: keys of lookups and exempt domains would else not meet. A name in
// ASCII is returned as it is, whatever it is. The result need not be a host
// name. The error is ErrUnconvertible.
func ALabels(name string) (string, error) {
	if isASCII(name) {
		return name, nil
	}
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

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// isDomain is the Domain of RFC 5321, 4.1.2, which the grammar of mx refers
// to: letters, digits and inner hyphens.
func isDomain(name string) bool { return isName(name, false) }

func isName(name string, underscore bool) bool {
	if name == "" || len(name) > maxName {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > maxLabel || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			c := label[i]
			if !isAlnum(c) && c != '-' && (c != '_' || !underscore) {
				return false
			}
		}
	}
	return true
}

func isAlnum(c byte) bool {
	return '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
}

// isFieldName is the name of an extension, in the record and in the policy
// file: a letter or digit, then up to 31 letters, digits, "_", "-" or "."
// (RFC 8461, 3.1 and 3.2). The names of the standard's own fields fit it too.
func isFieldName(s string) bool {
	if s == "" || len(s) > 32 || !isAlnum(s[0]) {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !isAlnum(c) && c != '_' && c != '-' && c != '.' {
			return false
		}
	}
	return true
}

// lower folds the case of ASCII letters, and of nothing else.
func lower(s string) string {
	for i := range len(s) {
		if c := s[i]; 'A' <= c && c <= 'Z' {
			b := []byte(s)
			for j := range b {
				b[j] = lowerByte(b[j])
			}
			return string(b)
		}
	}
	return s
}

func lowerByte(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}
