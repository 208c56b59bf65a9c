package mta

import (
	"bytes"
	"net/netip"
	"strconv"

	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
)

// A NextHop is what the MTA delivers to, taken apart.
type NextHop struct {
	Domain    []byte // the policy domain: A-labels, lower case, no trailing dot; a part of the key or of the scratch space
	Bracketed bool   // the MTA makes no MX lookup: the name is the host
	Port      uint16 // 25 where the key names none; 0: that of a service that is not known here
}

// A KeyKind says what a key is, and with that whether a policy can apply.
type KeyKind uint8

// The kinds of keys.
const (
	KeyUnconvertible KeyKind = iota // a name that has no A-label form: TEMP
	KeyNotHostName                  // no host name and no address: NOTFOUND
	KeyParent                       // Postfix's walk through parent domains, ".example.com": NOTFOUND
	KeyAddress                      // an address literal: NOTFOUND
	KeyOneLabel                     // a name of one label: NOTFOUND
	KeyPolicyDomain                 // a policy may apply
)

func (k KeyKind) String() string {
	return [...]string{
		KeyUnconvertible: "a name that cannot be converted to A-labels",
		KeyNotHostName:   "not a host name",
		KeyParent:        "a parent domain, whose policy does not count",
		KeyAddress:       "an address, which has no policy",
		KeyOneLabel:      "a name of one label, which has no policy",
		KeyPolicyDomain:  "a policy domain",
	}[k]
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
	switch {
	case len(key) == 0:
		return NextHop{}, KeyNotHostName
	case key[0] == '.': // RFC 8461, 3.4: the parent domain's policy is never asked for
		return NextHop{}, KeyParent
	case isAddress(key): // before a colon of IPv6 is taken for a port's
		return NextHop{}, KeyAddress
	}
	name, hop, ok := splitNextHop(key)
	if !ok {
		return NextHop{}, KeyNotHostName
	}
	if isAddress(name) { // RFC 8461, 3.4: address literals have no policy
		return NextHop{}, KeyAddress
	}
	name, err := hostname.Canonical(name, scratch)
	switch {
	case err != nil:
		return NextHop{}, KeyUnconvertible
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
	name = key
	var service []byte
	if key[0] == '[' {
		end := bytes.IndexByte(key, ']')
		if end < 0 {
			return nil, hop, false
		}
		name, service, hop.Bracketed = key[1:end], key[end+1:], true
		if len(service) > 0 {
			if service[0] != ':' {
				return nil, hop, false
			}
			service = service[1:]
		}
	} else if colon := bytes.LastIndexByte(key, ':'); colon >= 0 {
		name, service = key[:colon], key[colon+1:]
	}
	hop.Port, ok = portOf(service)
	return name, hop, ok
}

// defaultPort is where mail goes when the next-hop names no port.
const defaultPort = 25

// portOf returns the port that a next-hop's service means: 25 for none, 0 for
// one that is not known here or is out of range. It is false for bytes that are
// no service.
func portOf(service []byte) (port uint16, ok bool) {
	if len(service) == 0 {
		return defaultPort, true
	}
	if hostname.Labels(service, hostname.Upper|hostname.Underscore) != 1 {
		return 0, false
	}
	var room [hostname.MaxLabel]byte
	service = hostname.AppendLower(room[:0], service)
	switch string(service) {
	case "smtp":
		return 25, true
	case "smtps", "submissions":
		return 465, true
	case "submission":
		return 587, true
	}
	n, err := strconv.ParseUint(string(service), 10, 16)
	if err != nil {
		return 0, true
	}
	return uint16(n), true
}

// isPolicyDomain reports whether name is in canonical form and can have a
// policy: a host name of two labels or more. With an underscore it cannot: no
// certificate authority vouches for "mta-sts.a_b.example.com".
func isPolicyDomain(name []byte) bool {
	return hostname.Labels(name, 0) >= 2 && !hostname.EndsInNumber(name)
}

// isAddress reports whether name is an IPv4 or IPv6 address, or written as
// the address literals of RFC 5321, 4.1.3 are.
func isAddress(name []byte) bool {
	const tag = "IPv6:"
	// Other names are kept from ParseAddr, whose errors are allocated.
	v6 := len(name) > 0 && name[0] != '[' && bytes.Count(name, []byte{':'}) > 1
	if len(name) > hostname.MaxName || !v6 && !hostname.EndsInNumber(name) {
		return false
	}
	if len(name) >= len(tag) && bytes.EqualFold(name[:len(tag)], []byte(tag)) {
		return true
	}
	_, err := netip.ParseAddr(string(name))
	return err == nil
}
