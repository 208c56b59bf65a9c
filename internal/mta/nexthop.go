package mta

import (
	"bytes"
	"math"
	"net/netip"

	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
)

// maxService bounds the port or service name of a next-hop, in bytes.
const maxService = 64

// defaultPort is where mail goes when the next-hop names no port.
const defaultPort = 25

// A NextHop is what the MTA delivers to, taken apart.
type NextHop struct {
	// Domain is the policy domain: A-labels, lower case, no trailing dot. It
	// is a part of the key or of the scratch space.
	Domain []byte

	// Bracketed says that the MTA makes no MX lookup: the name is the host.
	Bracketed bool

	// Port is 25 where the key names none, and 0 where it names a service
	// whose port we do not know.
	Port uint16
}

// A KeyKind says what a key is, and with that whether a policy can apply.
type KeyKind uint8

// The kinds of keys.
const (
	KeyUnconvertible KeyKind = iota // a name that has no A-label form: TEMP
	KeyNotHostName                  // nothing that could be a host: NOTFOUND
	KeyParent                       // Postfix's walk through parent domains, ".example.com": NOTFOUND
	KeyAddress                      // an address literal: NOTFOUND
	KeyOneLabel                     // a name of one label: NOTFOUND
	KeyPolicyDomain                 // a policy may apply
)

func (k KeyKind) String() string {
	switch k {
	case KeyUnconvertible:
		return "a name that cannot be converted to A-labels"
	case KeyNotHostName:
		return "not a host name"
	case KeyParent:
		return "a parent domain, whose policy does not count"
	case KeyAddress:
		return "an address, which has no policy"
	case KeyOneLabel:
		return "a name of one label, which has no policy"
	case KeyPolicyDomain:
		return "a policy domain"
	}
	return "unknown"
}

// ParseKey takes a next-hop apart. The hop is filled in only for
// KeyPolicyDomain. The scratch space is overwritten from its start if the
// name must be folded or converted; with room for hostname.MaxName bytes nothing is
// allocated but for a name with U-labels.
func ParseKey(key, scratch []byte) (NextHop, KeyKind) {
	// Nearly every key: one pass, nothing copied.
	if isPolicyDomain(key) {
		return NextHop{Domain: key, Port: defaultPort}, KeyPolicyDomain
	}
	if len(key) == 0 {
		return NextHop{}, KeyNotHostName
	}
	// RFC 8461, 3.4: the parent domain's policy is never asked for.
	if key[0] == '.' {
		return NextHop{}, KeyParent
	}
	if isAddress(key) { // before a colon of IPv6 is taken for a port's
		return NextHop{}, KeyAddress
	}
	name, hop, ok := splitNextHop(key)
	if !ok {
		return NextHop{}, KeyNotHostName
	}
	// RFC 8461, 3.4: address literals have no policy.
	if isAddress(name) {
		return NextHop{}, KeyAddress
	}
	name, err := hostname.Canonical(name, scratch)
	if err != nil {
		return NextHop{}, KeyUnconvertible
	}
	switch {
	case isPolicyDomain(name):
		hop.Domain = name
		return hop, KeyPolicyDomain
	case isAddress(name):
		return NextHop{}, KeyAddress
	case hostname.Labels(name, 0) > 0 && !hostname.EndsInNumber(name):
		return NextHop{}, KeyOneLabel
	}
	return NextHop{}, KeyNotHostName
}

// splitNextHop takes brackets and port off a key, as Postfix's host_port(3)
// does: the port follows the last colon, and may be empty.
func splitNextHop(key []byte) (name []byte, hop NextHop, ok bool) {
	hop.Port = defaultPort
	if key[0] == '[' {
		end := bytes.IndexByte(key, ']')
		if end < 0 {
			return nil, hop, false
		}
		hop.Bracketed = true
		rest := key[end+1:]
		if len(rest) > 0 {
			if rest[0] != ':' {
				return nil, hop, false
			}
			hop.Port, ok = portOf(rest[1:])
			return key[1:end], hop, ok
		}
		return key[1:end], hop, true
	}
	if colon := bytes.LastIndexByte(key, ':'); colon >= 0 {
		hop.Port, ok = portOf(key[colon+1:])
		return key[:colon], hop, ok
	}
	return key, hop, true
}

// portOf returns the port that a next-hop's service means: 25 for none, 0 for
// one that is not known here or is out of range. It is false for what can be
// no service at all.
func portOf(service []byte) (port uint16, ok bool) {
	if len(service) == 0 {
		return defaultPort, true
	}
	if len(service) > maxService {
		return 0, false
	}
	var room [maxService]byte
	service = hostname.AppendLower(room[:0], service)
	for _, c := range service {
		if !isLetterOrDigit(c) && c != '-' && c != '_' {
			return 0, false
		}
	}
	switch string(service) {
	case "smtp":
		return 25, true
	case "smtps", "submissions":
		return 465, true
	case "submission":
		return 587, true
	}
	return numberOf(service), true
}

// numberOf returns the port written in digits, 0 if it is none.
func numberOf(digits []byte) uint16 {
	n := 0
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0
		}
		if n = n*10 + int(c-'0'); n > math.MaxUint16 {
			return 0
		}
	}
	return uint16(n)
}

// isPolicyDomain reports whether name is in canonical form and can have a
// policy: a host name of two labels or more. An underscore makes it none: no
// certificate authority vouches for "mta-sts.a_b.example.com".
func isPolicyDomain(name []byte) bool {
	return hostname.Labels(name, 0) >= 2 && !hostname.EndsInNumber(name)
}

// isAddress reports whether name is an IPv4 or IPv6 address, or written as
// the address literals of RFC 5321 are.
func isAddress(name []byte) bool {
	// What cannot be one is kept from ParseAddr, whose errors are allocated.
	v6 := len(name) > 0 && name[0] != '[' && bytes.Count(name, []byte{':'}) > 1
	if len(name) > hostname.MaxName || !v6 && !hostname.EndsInNumber(name) {
		return false
	}
	if len(name) >= len(ipv6Tag) && bytes.EqualFold(name[:len(ipv6Tag)], []byte(ipv6Tag)) {
		return true
	}
	_, err := netip.ParseAddr(string(name))
	return err == nil
}

// ipv6Tag opens an IPv6 address literal (RFC 5321, 4.1.3).
const ipv6Tag = "IPv6:"

func isLetterOrDigit(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9'
}
