package resolver

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

// A Type is a type of DNS record.
type Type uint16

// The types that are asked for.
const (
	TypeA     = Type(dns.TypeA)
	TypeAAAA  = Type(dns.TypeAAAA)
	TypeCNAME = Type(dns.TypeCNAME)
	TypeMX    = Type(dns.TypeMX)
	TypeSOA   = Type(dns.TypeSOA)
	TypeTLSA  = Type(dns.TypeTLSA)
	TypeTXT   = Type(dns.TypeTXT)
)

func (t Type) String() string { return dns.Type(t).String() }

// An Answer is what the DNS says about a name and type: records, in the field for
// the type, or that there are none. Everything else is an *Error.
type Answer struct {
	Name     string   // the name at the end of the CNAMEs: lower case, no trailing dot, escaped as in a zone file
	CNAMEs   []string // the names the chain passed through, the asked one first; empty without a CNAME
	NXDomain bool     // the name does not exist; without records and NXDomain, it has none of the type

	Texts []string     // TXT: the strings of each record, joined without a space (RFC 8461, 3.1)
	Addrs []netip.Addr // A and AAAA, without repeats, at most 32
	MX    []MX         // in the order of the answer
	TLSA  []TLSA       // in the order of the answer
	Other []string     // the data of records of another type, as in a zone file

	// Authenticated is the AD bit of the whole answer, denials included, if
	// the server that gave it is trusted to validate; otherwise false.
	Authenticated bool

	// AfterServFail says that a trusted server said SERVFAIL, and another one
	// gave the answer or a part of it: the data may be bogus.
	AfterServFail bool

	// TTL is the least of the CNAMEs and the records, or the negative TTL of
	// RFC 2308. Zero if unknown.
	TTL time.Duration

	more bool // the server left the end of the CNAMEs to us
}

// An MX is the data of an MX record.
type MX struct {
	Host       string // in the form of Answer.Name; "." for the root
	Preference uint16
}

// A TLSA is the data of a TLSA record (RFC 6698, 2.1).
type TLSA struct {
	Usage, Selector, MatchingType uint8
	Data                          []byte
}

func (t TLSA) String() string {
	return fmt.Sprintf("%d %d %d %x", t.Usage, t.Selector, t.MatchingType, t.Data)
}

// Found says whether there are records.
func (a *Answer) Found() bool {
	return len(a.Texts)+len(a.Addrs)+len(a.MX)+len(a.TLSA)+len(a.Other) > 0
}

// Data returns the data of each record for people, printable. A text is in quotes.
func (a *Answer) Data() []string {
	var data []string
	for _, t := range a.Texts {
		data = append(data, text.Quote(t, text.MaxPrinted))
	}
	for _, addr := range a.Addrs {
		data = append(data, addr.String())
	}
	for _, mx := range a.MX {
		data = append(data, fmt.Sprintf("%d %s", mx.Preference, mx.Host))
	}
	for _, t := range a.TLSA {
		data = append(data, t.String())
	}
	return append(data, a.Other...)
}

// setRecords stores the data of the records of an answer.
func (a *Answer) setRecords(records []dns.RR) {
	for _, rr := range records {
		switch rr := rr.(type) {
		case *dns.TXT:
			a.Texts = append(a.Texts, unescape(strings.Join(rr.Txt, "")))
		case *dns.A:
			a.addAddr(rr.A)
		case *dns.AAAA:
			a.addAddr(rr.AAAA)
		case *dns.MX:
			a.MX = append(a.MX, MX{trimDot(dns.CanonicalName(rr.Mx)), rr.Preference})
		case *dns.TLSA:
			data, _ := hex.DecodeString(rr.Certificate) // which the library encoded
			a.TLSA = append(a.TLSA, TLSA{rr.Usage, rr.Selector, rr.MatchingType, data})
		default:
			a.Other = append(a.Other, text.Printable(strings.TrimPrefix(rr.String(), rr.Header().String())))
		}
	}
}

// addAddr adds an address to a, unless a has it or is full.
func (a *Answer) addAddr(ip []byte) {
	addr, ok := netip.AddrFromSlice(ip)
	if addr = addr.Unmap(); ok && len(a.Addrs) < maxAddresses && !slices.Contains(a.Addrs, addr) {
		a.Addrs = append(a.Addrs, addr)
	}
}

// unescape takes back the escapes of a zone file: \", \\ and \DDD.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
			if n, err := strconv.ParseUint(s[i:min(i+3, len(s))], 10, 8); err == nil {
				out = append(out, byte(n))
				i += 2
				continue
			}
		}
		out = append(out, s[i])
	}
	return string(out)
}

// A Kind says in which way a query failed.
type Kind uint8

// The ways in which a query fails.
const (
	KindTimeout     Kind = iota + 1 // no server answered in time
	KindServFail                    // SERVFAIL: a broken zone, or data that does not validate
	KindRefused                     // REFUSED, NOTIMP, FORMERR and other codes that are no answer
	KindMalformed                   // an answer that is no DNS message, or contradicts itself
	KindUnreachable                 // no server could be reached: connection refused, no route, no descriptors. The fault is ours
	KindCanceled                    // the caller's context ended
	KindName                        // the name cannot be asked for
	kinds
)

var kindWords = [kinds]string{"unknown failure", "no answer in time", "SERVFAIL", "refused", "malformed answer", "server unreachable", "given up", "not a DNS name"}

func (k Kind) String() string { return kindWords[k] }

// An Error is a query that got no answer. Its text is printable.
type Error struct {
	Name   string // the name asked for
	Type   Type   // the type asked for
	Kind   Kind
	Server string // of several that failed, the one that said most
	Err    error  // what went wrong; may be nil
}

func (e *Error) Error() string {
	s := fmt.Sprintf("DNS %s %s: %s", e.Type, e.Name, e.Kind)
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

// worse returns the error that says more about the question, the newer of equals.
func worse(a, b *Error) *Error {
	weight := [kinds]int{KindServFail: 4, KindMalformed: 3, KindRefused: 2, KindTimeout: 1}
	if a != nil && weight[a.Kind] > weight[b.Kind] {
		return a
	}
	return b
}
