package testlab

import (
	"fmt"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

// TTLs in seconds.
const (
	defaultTTL  = 300
	negativeTTL = 60
)

// maxChain is the maximum length of a CNAME chain.
const maxChain = 16

// records are the names, records and zones of the invented world. Readers share
// a lock that is never held during I/O; each change is atomic.
type records struct {
	mu     sync.RWMutex
	names  map[string]map[uint16][]dns.RR // a name with an empty map exists without records
	below  map[string]int                 // number of existing names below this one
	signed map[string]bool                // by name, for it and all names below it up to the next entry
	funcs  map[string]func(name string, qtype uint16) []dns.RR
}

func newRecords() records {
	return records{
		names:  make(map[string]map[uint16][]dns.RR),
		below:  make(map[string]int),
		signed: make(map[string]bool),
		funcs:  make(map[string]func(string, uint16) []dns.RR),
	}
}

// Set replaces all records with the names and types of the given ones:
// "example.test. 300 IN MX 10 mx1.example.test.". Names are absolute. The
// change is atomic.
func (r *records) Set(zoneFile ...string) error {
	rrs, err := parseRecords(zoneFile)
	if err != nil {
		return err
	}
	r.put(rrs, true)
	return nil
}

// Add adds records.
func (r *records) Add(zoneFile ...string) error {
	rrs, err := parseRecords(zoneFile)
	if err != nil {
		return err
	}
	r.put(rrs, false)
	return nil
}

// SetTXT replaces the TXT records of name, one record for each text. A text
// over 255 bytes becomes several strings. ttl is in seconds.
func (r *records) SetTXT(name string, ttl uint32, texts ...string) {
	if len(texts) == 0 {
		r.Remove(name, dns.TypeTXT)
		return
	}
	rrs := make([]dns.RR, len(texts))
	for i, text := range texts {
		rr := &dns.TXT{Hdr: dns.RR_Header{Name: dns.Fqdn(name), Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: ttl}}
		for len(text) > 255 {
			rr.Txt, text = append(rr.Txt, escapeTXT(text[:255])), text[255:]
		}
		rr.Txt = append(rr.Txt, escapeTXT(text))
		rrs[i] = rr
	}
	r.put(rrs, true)
}

// escapeTXT converts raw bytes to the presentation form in dns.TXT.
func escapeTXT(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ' || c > '~':
			fmt.Fprintf(&b, "\\%03d", c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// Remove removes the records of the types, or the name if there are no types. A
// name without records left does not exist (NXDOMAIN); see Exists.
func (r *records) Remove(name string, types ...uint16) {
	name = dns.CanonicalName(name)
	r.mu.Lock()
	defer r.mu.Unlock()
	have, ok := r.names[name]
	if !ok {
		return
	}
	for _, t := range types {
		delete(have, t)
	}
	if len(types) == 0 || len(have) == 0 {
		delete(r.names, name)
		r.count(name, -1)
	}
}

// Below returns all records at and below name, in any order.
func (r *records) Below(name string) []dns.RR {
	name = dns.CanonicalName(name)
	r.mu.RLock()
	defer r.mu.RUnlock()
	var rrs []dns.RR
	for at, types := range r.names {
		if !dns.IsSubDomain(name, at) {
			continue
		}
		for _, set := range types {
			rrs = append(rrs, set...)
		}
	}
	return rrs
}

// Exists creates the name, without records if it is new (NODATA).
func (r *records) Exists(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.node(dns.CanonicalName(name))
}

// Sign sets whether name and all names below it are signed.
func (r *records) Sign(name string, signed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.signed[dns.CanonicalName(name)] = signed
}

// Func sets a function that generates records for names at and below suffix
// without records of their own, for worlds too large to store. f receives the
// name in lower case with its trailing dot; nil means NXDOMAIN. f must be safe
// for concurrent use and must not call the lab.
func (r *records) Func(suffix string, f func(name string, qtype uint16) []dns.RR) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.funcs[dns.CanonicalName(suffix)] = f
}

func parseRecords(zoneFile []string) ([]dns.RR, error) {
	rrs := make([]dns.RR, 0, len(zoneFile))
	for _, s := range zoneFile {
		rr, err := dns.NewRR(s)
		if err != nil {
			return nil, fmt.Errorf("record %q: %w", s, err)
		}
		if rr == nil {
			return nil, fmt.Errorf("record %q is empty", s)
		}
		rrs = append(rrs, rr)
	}
	return rrs, nil
}

// put stores rrs. With replace it first removes the records of the same names
// and types.
func (r *records) put(rrs []dns.RR, replace bool) {
	type set struct {
		name  string
		rtype uint16
	}
	cleared := make(map[set]bool)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rr := range rrs {
		k := set{dns.CanonicalName(rr.Header().Name), rr.Header().Rrtype}
		have := r.node(k.name)
		if replace && !cleared[k] {
			delete(have, k.rtype)
			cleared[k] = true
		}
		// Copy: readers may still hold the old slice.
		old := have[k.rtype]
		have[k.rtype] = append(old[:len(old):len(old)], rr)
	}
}

// node returns the records of name, which it creates if necessary.
func (r *records) node(name string) map[uint16][]dns.RR {
	have, ok := r.names[name]
	if !ok {
		have = make(map[uint16][]dns.RR)
		r.names[name] = have
		r.count(name, 1)
	}
	return have
}

// count adds by to the count of each parent of name.
func (r *records) count(name string, by int) {
	for up, ok := parent(name); ok; up, ok = parent(up) {
		if r.below[up] += by; r.below[up] == 0 {
			delete(r.below, up)
		}
	}
}

// parent returns the name without its first label.
func parent(name string) (string, bool) {
	if name == "." {
		return "", false
	}
	if i, end := dns.NextLabel(name, 0); !end {
		return name[i:], true
	}
	return ".", true
}

func (r *records) isSigned(name string) bool {
	for at, ok := name, true; ok; at, ok = parent(at) {
		if signed, ok := r.signed[at]; ok {
			return signed
		}
	}
	return false
}

// lookup returns the records of name and type, or a CNAME, and whether the name
// exists.
func (r *records) lookup(name string, qtype uint16) (rrs []dns.RR, exists bool) {
	if have, ok := r.names[name]; ok {
		if rrs := have[qtype]; len(rrs) > 0 {
			return rrs, true
		}
		return have[dns.TypeCNAME], true
	}
	if r.below[name] > 0 { // an empty non-terminal (RFC 4592, 2.2.2)
		return nil, true
	}
	for at, ok := name, true; ok; at, ok = parent(at) {
		if f := r.funcs[at]; f != nil {
			rrs := f(name, qtype)
			return rrs, rrs != nil
		}
	}
	return r.wildcard(name, qtype)
}

// wildcard applies the wildcard below the closest encloser (RFC 4592, 3.3.1).
func (r *records) wildcard(name string, qtype uint16) ([]dns.RR, bool) {
	for at, ok := parent(name); ok && at != "."; at, ok = parent(at) {
		have, there := r.names["*."+at]
		if !there {
			if _, closest := r.names[at]; closest || r.below[at] > 0 {
				return nil, false
			}
			continue
		}
		found := have[qtype]
		if len(found) == 0 {
			found = have[dns.TypeCNAME]
		}
		rrs := make([]dns.RR, len(found))
		for i, rr := range found {
			rrs[i] = dns.Copy(rr)
			rrs[i].Header().Name = name
		}
		return rrs, true
	}
	return nil, false
}

// A finding is the result of a recursive lookup.
type finding struct {
	rcode    int
	answer   []dns.RR
	negative bool // NXDOMAIN or NODATA
	signed   bool // all names of the chain are in signed zones
	names    []string
}

// find resolves a question and follows CNAMEs.
func (r *records) find(name string, qtype uint16) finding {
	r.mu.RLock()
	defer r.mu.RUnlock()
	f := finding{signed: true}
	for range maxChain {
		f.names = append(f.names, name)
		f.signed = f.signed && r.isSigned(name)
		rrs, exists := r.lookup(name, qtype)
		f.answer = append(f.answer, rrs...)
		if len(rrs) == 0 {
			if !exists {
				f.rcode = dns.RcodeNameError
			}
			f.negative = true
			return f
		}
		alias, ok := rrs[0].(*dns.CNAME)
		if !ok || qtype == dns.TypeCNAME {
			return f
		}
		name = dns.CanonicalName(alias.Target)
	}
	return finding{rcode: dns.RcodeServerFailure, names: f.names}
}

// rootSOA is in all negative answers.
var rootSOA = &dns.SOA{
	Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: negativeTTL},
	Ns:  "ns.lab.invalid.", Mbox: "hostmaster.lab.invalid.",
	Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: negativeTTL,
}
