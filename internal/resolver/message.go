package resolver

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// newQuestion returns the message that asks for qtype at name. The AD bit asks
// for the AD bit (RFC 6840, 5.7); without DO there are no signatures, which the
// server checks.
func newQuestion(name string, qtype Type, edns bool) *dns.Msg {
	m := new(dns.Msg)
	m.Id = dns.Id()
	m.RecursionDesired = true
	m.AuthenticatedData = true
	m.Question = []dns.Question{{Name: name, Qtype: uint16(qtype), Qclass: dns.ClassINET}}
	if edns {
		m.SetEdns0(udpSize, false)
	}
	return m
}

// Places in a message's header (RFC 1035, 4.1.1).
const (
	headerLen = 12
	offBits   = 2
	bitsTC    = 1 << 9
	offCounts = 6 // of answers, authorities and additional records
)

// answers says whether b begins as an answer to q does: with its id and its
// question. An error may come without the question.
func answers(b []byte, q *dns.Msg) bool {
	if len(b) < headerLen {
		return false
	}
	b = slices.Clone(b[:min(len(b), headerLen+maxName+4)])
	clear(b[offCounts:headerLen])
	var m dns.Msg
	if m.Unpack(b) != nil || m.Id != q.Id || !m.Response || m.Opcode != dns.OpcodeQuery {
		return false
	}
	if len(m.Question) == 0 {
		return m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError
	}
	got, want := m.Question[0], q.Question[0]
	got.Name = dns.CanonicalName(got.Name)
	return len(m.Question) == 1 && got == want
}

// unpack parses an answer. The library is content with fewer records than the
// header counts; we are not, unless the answer says that it is truncated.
func unpack(b []byte) (*dns.Msg, error) {
	msg := new(dns.Msg)
	if binary.BigEndian.Uint16(b[offBits:])&bitsTC != 0 {
		msg.Truncated = true // the records do not matter
		return msg, nil
	}
	if err := msg.Unpack(b); err != nil {
		return nil, fmt.Errorf("%w: %w", errMalformed, err)
	}
	for i, section := range [][]dns.RR{msg.Answer, msg.Ns, msg.Extra} {
		if int(binary.BigEndian.Uint16(b[offCounts+2*i:])) != len(section) {
			return nil, fmt.Errorf("%w: fewer records than announced", errMalformed)
		}
	}
	return msg, nil
}

// extend returns a with what msg says about the question at its name. Only
// records of the name itself, or of one that its CNAMEs lead to, count: the
// rest of the message may hold anything. More says that the server left the end
// of the CNAMEs to us.
func (a Answer) extend(msg *dns.Msg, qtype Type) (_ *Answer, more bool, err error) {
	a.CNAMEs = slices.Clip(a.CNAMEs)
	begin := len(a.CNAMEs)
	var records []dns.RR
	for {
		var cname *dns.CNAME
		records, cname, err = at(msg.Answer, dns.Fqdn(a.Name), uint16(qtype))
		if err != nil {
			return nil, false, err
		}
		if len(records) > 0 || cname == nil {
			break
		}
		a.TTL = min(a.TTL, ttlOf(cname))
		a.CNAMEs = append(a.CNAMEs, a.Name)
		a.Name = trimDot(dns.CanonicalName(cname.Target))
		if slices.Contains(a.CNAMEs, a.Name) {
			return nil, false, fmt.Errorf("CNAME loop at %s", a.Name)
		}
		if len(a.CNAMEs) > maxCNAMEs {
			return nil, false, fmt.Errorf("more than %d CNAMEs", maxCNAMEs)
		}
	}
	a.NXDomain = msg.Rcode == dns.RcodeNameError
	soa := denial(msg.Ns, dns.Fqdn(a.Name))
	switch {
	case len(records) > 0 && a.NXDomain:
		return nil, false, errors.New("NXDOMAIN with an answer")
	case len(records) > 0:
		for _, rr := range records {
			a.TTL = min(a.TTL, ttlOf(rr))
		}
		a.setRecords(records)
	case soa != nil: // RFC 2308, 5: the lesser of the SOA's TTL and its minimum field.
		a.TTL = min(a.TTL, ttlOf(soa), ttl(soa.Minttl))
	case !a.NXDomain && len(a.CNAMEs) > begin:
		return &a, true, nil
	default:
		a.TTL = 0
	}
	return &a, false, nil
}

// at returns the records of type qtype at name, and the CNAME there. A record
// whose data is cut short makes the answer malformed, as do two different
// CNAMEs.
func at(rrs []dns.RR, name string, qtype uint16) (records []dns.RR, cname *dns.CNAME, err error) {
	for _, rr := range rrs {
		h := rr.Header()
		if h.Class != dns.ClassINET || (h.Rrtype != qtype && h.Rrtype != dns.TypeCNAME) || dns.CanonicalName(h.Name) != name {
			continue
		}
		if !complete(h) {
			return nil, nil, fmt.Errorf("%s record cut short", Type(h.Rrtype))
		}
		if h.Rrtype == qtype {
			records = append(records, rr)
			continue
		}
		c, ok := rr.(*dns.CNAME)
		if !ok {
			continue
		}
		if cname != nil && !strings.EqualFold(cname.Target, c.Target) {
			return nil, nil, fmt.Errorf("two CNAMEs at %s", trimDot(name))
		}
		cname = c
	}
	return records, cname, nil
}

// complete says whether a record with this header has all its fields. The
// library takes one that ends between two fields: without this, an MX record
// without a host would look much like a null MX.
func complete(h *dns.RR_Header) bool {
	least := map[uint16]uint16{dns.TypeA: 4, dns.TypeAAAA: 16, dns.TypeMX: 3, dns.TypeTLSA: 3, dns.TypeSOA: 22}[h.Rrtype]
	return h.Rdlength >= max(least, 1)
}

// denial returns the SOA record of a zone that name is in, which comes with
// the denial of a name or type (RFC 2308, 2).
func denial(rrs []dns.RR, name string) *dns.SOA {
	for _, rr := range rrs {
		soa, ok := rr.(*dns.SOA)
		if ok && soa.Hdr.Class == dns.ClassINET && complete(&soa.Hdr) && dns.IsSubDomain(soa.Hdr.Name, name) {
			return soa
		}
	}
	return nil
}

// ttlOf returns how long rr may be kept.
func ttlOf(rr dns.RR) time.Duration { return ttl(rr.Header().Ttl) }

// ttl returns a TTL of the wire as a duration within our bounds.
func ttl(seconds uint32) time.Duration {
	if seconds > 1<<31-1 {
		return 0 // RFC 2181, 8
	}
	return min(time.Duration(seconds)*time.Second, maxTTL)
}

// rcodeError names a response code that is no answer.
func rcodeError(rcode int) error {
	if s, ok := dns.RcodeToString[rcode]; ok {
		return errors.New(s)
	}
	return fmt.Errorf("response code %d", rcode)
}

// extendedError names the reason of a failure, if the server gives one that
// has a name (RFC 8914). The text beside it may be anybody's, and is left out.
func extendedError(msg *dns.Msg) error {
	opt := msg.IsEdns0()
	if opt == nil {
		return nil
	}
	for _, o := range opt.Option {
		if ede, ok := o.(*dns.EDNS0_EDE); ok {
			if s, ok := dns.ExtendedErrorCodeToString[ede.InfoCode]; ok {
				return errors.New(s)
			}
		}
	}
	return nil
}
