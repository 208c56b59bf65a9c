// Package hostname is the rule for the names of mail domains and mail hosts:
// how they are written (RFC 1035, 2.3.4; RFC 1123, 2.1), folded, and converted
// to A-labels. It knows the text form only, and asks no DNS.
//
// There is one rule, Labels. Those who use it differ on purpose in what they
// add to it:
//
//   - the domain of a record, of an exemption and of a request to the control
//     socket may have underscores, and its last label is no number (Valid);
//   - the policy domain of a lookup is folded, has two labels or more, and no
//     underscore (package tlsmap);
//   - an mx pattern has no underscore (RFC 8461, 3.2), but its last label may
//     be a number, which no host's is (packages policy and tlsmap);
//   - a host in an MX record is what the MTA takes for one: to Postfix it may
//     have underscores, and only a whole address is none (package dane). What
//     Exim is told of is held to the rule of a policy domain again, but for the
//     number of labels (package tlsmap).
package hostname

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
