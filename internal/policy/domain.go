package policy

import "github.com/sts-tlsmap/sts-tlsmap/internal/hostname"

// isDomain is the Domain of RFC 5321, 4.1.2, which the grammar of mx refers
// to: letters, digits and inner hyphens. An underscore makes it none, although
// hostname.Valid takes one; a number for its last label does not.
func isDomain(name string) bool { return hostname.Labels(name, hostname.Upper) > 0 }

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
