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

// An Answer is what the DNS says about a name and type: records, or that there
// are none. Everything else is an *Error. Of the records, the field for the
// type that was asked for is set.
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

	// AfterServFail says that a server that is trusted to validate said
	// SERVFAIL, and another one gave the answer or a part of it: the data may
	// be bogus.
	AfterServFail bool

	// TTL is how long the answer may be kept: the least of the CNAMEs and
	// the records, or the negative TTL of RFC 2308. Zero if unknown.
	TTL time.Duration
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

// unescape returns the bytes of a TXT record, which miekg/dns escapes as in a
// zone file: \" and \\ stand for the character, and \DDD for a byte.
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
