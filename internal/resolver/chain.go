package resolver

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/miekg/dns"
)

// A step is what one message says about a question: the whole answer, or the
// CNAMEs on the way to it.
type step struct {
	rcode   int
	cnames  []string // the names left behind by a CNAME, the asked one first
	name    string   // where they lead; the asked one without a CNAME
	records []dns.RR // at name
	ttl     time.Duration
	more    bool // name is still to be asked for
	auth    bool // set by the one who knows the server

	afterServFail bool // of another server, which is trusted; likewise
}

// readStep reads what msg says about the question for qtype at name: complete
// and in lower case. Only records of the name itself, or of one that its
// CNAMEs lead to, count: the rest of the message may hold what it likes.
func readStep(msg *dns.Msg, name string, qtype uint16) (*step, error) {
	st := &step{rcode: msg.Rcode, name: name, ttl: maxTTL}
	for {
		records, cname, err := at(msg.Answer, st.name, qtype)
		if err != nil {
			return nil, err
		}
		if len(records) > 0 {
			st.records = records
			break
		}
		if cname == nil {
			break
		}
		st.ttl = min(st.ttl, ttlOf(cname))
		st.cnames = append(st.cnames, st.name)
		st.name = dns.CanonicalName(cname.Target)
		if slices.Contains(st.cnames, st.name) {
			return nil, fmt.Errorf("CNAME loop at %s", trimDot(st.name))
		}
		if len(st.cnames) > maxCNAMEs {
			return nil, fmt.Errorf("more than %d CNAMEs", maxCNAMEs)
		}
	}

	if len(st.records) > 0 {
		if st.rcode == dns.RcodeNameError {
			return nil, errors.New("NXDOMAIN with an answer")
		}
		for _, rr := range st.records {
			st.ttl = min(st.ttl, ttlOf(rr))
		}
		return st, nil
	}
	soa := denial(msg.Ns, st.name)
	if st.rcode == dns.RcodeSuccess && len(st.cnames) > 0 && soa == nil {
		st.more = true // the server left the rest to us
		return st, nil
	}
	if soa == nil {
		st.ttl = 0
		return st, nil
	}
	// RFC 2308, 5: the lesser of the SOA's TTL and its minimum field.
	st.ttl = min(st.ttl, ttlOf(soa), ttl(soa.Minttl))
	return st, nil
}

// at returns the records of type qtype at name, and the CNAME there. A record
// whose data is cut short makes the answer a broken one, as do two different
// CNAMEs.
func at(rrs []dns.RR, name string, qtype uint16) (records []dns.RR, cname *dns.CNAME, err error) {
	for _, rr := range rrs {
		h := rr.Header()
		if h.Class != dns.ClassINET || (h.Rrtype != qtype && h.Rrtype != dns.TypeCNAME) || dns.CanonicalName(h.Name) != name {
			continue
		}
		if !complete(h) {
			return nil, nil, fmt.Errorf("%s record cut short", dns.TypeToString[h.Rrtype])
		}
		if h.Rrtype == qtype {
			records = append(records, rr)
			continue
		}
		c, ok := rr.(*dns.CNAME)
		if !ok {
			continue
		}
		if cname != nil && dns.CanonicalName(cname.Target) != dns.CanonicalName(c.Target) {
			return nil, nil, fmt.Errorf("two CNAMEs at %s", trimDot(name))
		}
		cname = c
	}
	return records, cname, nil
}

// complete says whether a record of this header has all its fields. The
// library takes one that ends between two of them: without this, an MX record
// without a host would look much like a null MX.
func complete(h *dns.RR_Header) bool {
	least := uint16(1)
	switch h.Rrtype {
	case dns.TypeA:
		least = 4
	case dns.TypeAAAA:
		least = 16
	case dns.TypeMX, dns.TypeTLSA:
		least = 3
	case dns.TypeSOA:
		least = 22
	}
	return h.Rdlength >= least
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

// extend adds the answer to one more question to a: to the last name of a
// chain whose other end is the name that was asked for.
func (a *Answer) extend(st *step) error {
	for _, name := range st.cnames {
		name = trimDot(name)
		if slices.Contains(a.CNAMEs, name) {
			return &Error{Kind: KindMalformed, Err: fmt.Errorf("CNAME loop at %s", name)}
		}
		a.CNAMEs = append(a.CNAMEs, name)
	}
	if len(a.CNAMEs) > maxCNAMEs {
		return &Error{Kind: KindMalformed, Err: fmt.Errorf("more than %d CNAMEs", maxCNAMEs)}
	}
	a.Name = trimDot(st.name)
	a.NXDomain = st.rcode == dns.RcodeNameError
	a.setRecords(st.records)
	a.TTL = min(a.TTL, st.ttl)
	// What is true of the whole must be true of each part of the chain.
	a.Authenticated = a.Authenticated && st.auth
	a.AfterServFail = a.AfterServFail || st.afterServFail
	return nil
}
