// Package resolver is the DNS client: questions to the configured servers or
// those of resolv.conf over UDP with EDNS0, over TCP when truncated, to the
// next server on failure; CNAMEs followed; the AD bit taken from those who may
// be believed. What an answer means is for the callers to say.
package resolver

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"
)

// An Answer is what the DNS says about a name and type: NOERROR, with or
// without records, or NXDOMAIN. Everything else is an *Error.
type Answer struct {
	Name    string   // the name at the end of the CNAMEs: lower case, no trailing dot, escaped as miekg/dns does it
	Rcode   int      // dns.RcodeSuccess or dns.RcodeNameError
	Records []dns.RR // the records of the asked type at Name; none: NODATA or NXDOMAIN
	CNAMEs  []string // the names the chain passed through, the asked one first; empty without a CNAME

	// Authenticated is the AD bit of the whole answer, denials included, if
	// the server that gave it is trusted to validate; otherwise false.
	Authenticated bool

	// AfterServFail says that a server that is trusted to validate said
	// SERVFAIL, and the answer, or a part of it, is another one's: the data may
	// be bogus, and the other one does not tell.
	AfterServFail bool

	// TTL is how long the answer may be kept: the least of the CNAMEs and
	// the records, or the negative TTL of RFC 2308. Zero if unknown.
	TTL time.Duration
}

// Addrs returns the addresses in the A and AAAA records of a, which may be nil.
func (a *Answer) Addrs() []netip.Addr {
	if a == nil {
		return nil
	}
	var addrs []netip.Addr
	for _, rr := range a.Records {
		var ip []byte
		switch rr := rr.(type) {
		case *dns.A:
			ip = rr.A
		case *dns.AAAA:
			ip = rr.AAAA
		}
		if addr, ok := netip.AddrFromSlice(ip); ok && !slices.Contains(addrs, addr.Unmap()) {
			addrs = append(addrs, addr.Unmap())
		}
		if len(addrs) == maxAddresses {
			break
		}
	}
	return addrs
}

// A Kind says in which way a query failed.
type Kind uint8

// The ways in which a query fails.
const (
	KindTimeout   Kind = iota + 1 // no server answered in time
	KindServFail                  // SERVFAIL: a broken zone, or data that does not validate
	KindRefused                   // REFUSED, NOTIMP, FORMERR and other codes that are no answer
	KindMalformed                 // an answer that is no DNS message, or contradicts itself
	KindNetwork                   // no server could be reached
	KindCanceled                  // the caller's context ended
	KindName                      // the name cannot be asked for; see ErrNameTooLong
)

// An Error is a query that got no answer.
type Error struct {
	Name   string // the name asked for
	Type   uint16 // the type asked for
	Kind   Kind
	Server string // of several that failed, the one that said most
	Err    error  // what went wrong; may be nil
}

func (e *Error) Error() string {
	s := fmt.Sprintf("DNS %s %s: %s", dns.TypeToString[e.Type], e.Name, e.Kind)
	if e.Server != "" {
		s += " (server " + e.Server + ")"
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the underlying error.
func (e *Error) Unwrap() error { return e.Err }

func (k Kind) String() string {
	switch k {
	case KindTimeout:
		return "no answer in time"
	case KindServFail:
		return "SERVFAIL"
	case KindRefused:
		return "refused"
	case KindMalformed:
		return "malformed answer"
	case KindNetwork:
		return "server unreachable"
	case KindCanceled:
		return "given up"
	case KindName:
		return "not a DNS name"
	}
	return "unknown failure"
}
