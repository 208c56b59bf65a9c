package testlab

import (
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// A How is a kind of DNS fault.
type How uint8

const (
	AsIs          How = iota // correct, perhaps late
	ServFail                 // SERVFAIL
	Refused                  // REFUSED
	NotImp                   // NOTIMP
	FormErr                  // FORMERR
	Bogus                    // SERVFAIL unless the question has the CD bit: data that fails validation
	Silent                   // no answer
	Truncated                // over UDP only TC; correct over TCP
	TruncatedTCP             // only TC, over UDP and TCP
	NoTCP                    // only TC over UDP; TCP connections are closed
	Garbage                  // the right id, then bytes that do not parse
	Short                    // five bytes
	WrongID                  // correct, but with another id
	WrongQuestion            // correct, but for another name
	NoQuestion               // correct, but without the question section
	NoEDNS                   // FORMERR to a question with EDNS0, correct without
	AliasOnly                // a CNAME without its target's records
	NotAResponse             // the question itself comes back
)

// A Fault says how answers to a question are wrong.
type Fault struct {
	How   How
	Delay time.Duration // before the answer
	Gate  *Gate         // answers wait here
	Times int           // ends after that many questions; 0 never ends
}

// faults maps name and type to a fault; "*" is any name, TypeANY any type.
type faults struct {
	mu sync.Mutex
	at map[nameType]*Fault
}

// Break breaks the answers for name ("*" for all names) and type ("TXT"; "" for
// any). A fault at the target of a CNAME breaks the whole answer.
func (d *DNS) Break(name, qtype string, how How) { d.BreakWith(name, qtype, Fault{How: how}) }

// BreakWith is Break with a delay, a gate or a number of times.
func (d *DNS) BreakWith(name, qtype string, f Fault) {
	d.faults.mu.Lock()
	defer d.faults.mu.Unlock()
	d.faults.at[faultKey(name, qtype)] = &f
}

// Mend ends a fault set by Break.
func (d *DNS) Mend(name, qtype string) {
	d.faults.mu.Lock()
	defer d.faults.mu.Unlock()
	delete(d.faults.at, faultKey(name, qtype))
}

// Hold makes the answers for name and type wait at a gate.
func (d *DNS) Hold(name, qtype string) *Gate {
	g := d.lab.NewGate()
	d.BreakWith(name, qtype, Fault{Gate: g})
	return g
}

func faultKey(name, qtype string) nameType {
	if name != "*" {
		name = dns.CanonicalName(name)
	}
	if qtype == "" {
		return nameType{name, dns.TypeANY}
	}
	return nameType{name, dns.StringToType[strings.ToUpper(qtype)]}
}

// forQuestion returns the fault of a question, and whether to stop at a CNAME.
func (f *faults) forQuestion(q nameType) (stop bool, fault *Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, k := range []nameType{q, {q.name, dns.TypeANY}, {"*", q.qtype}, {"*", dns.TypeANY}} {
		if fault := f.take(k); fault != nil {
			return fault.How == AliasOnly, fault
		}
	}
	return false, nil
}

// onTheWay returns the first fault at the targets of CNAMEs.
func (f *faults) onTheWay(names []string, qtype uint16) *Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range names {
		for _, k := range []nameType{{name, qtype}, {name, dns.TypeANY}} {
			if fault := f.take(k); fault != nil {
				return fault
			}
		}
	}
	return nil
}

// take returns a copy of the fault at k and counts down its Times.
func (f *faults) take(k nameType) *Fault {
	fault := f.at[k]
	if fault == nil {
		return nil
	}
	taken := *fault
	if fault.Times > 0 {
		if fault.Times--; fault.Times == 0 {
			delete(f.at, k)
		}
	}
	return &taken
}

// delay waits as the fault says. It returns false if the lab closes first.
func (d *DNS) delay(f *Fault) bool {
	if f.Delay > 0 {
		t := time.NewTimer(f.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-d.lab.done:
			return false
		}
	}
	return f.Gate.wait(nil)
}

// send sends m with the fault applied.
func (d *DNS) send(w dns.ResponseWriter, req, m *dns.Msg, f *Fault, tcp bool) {
	how := AsIs
	if f != nil {
		how = f.How
	}
	switch how {
	case ServFail:
		m.Rcode = dns.RcodeServerFailure
	case Refused:
		m.Rcode = dns.RcodeRefused
	case NotImp:
		m.Rcode = dns.RcodeNotImplemented
	case FormErr:
		m.Rcode = dns.RcodeFormatError
	case Bogus:
		if !req.CheckingDisabled {
			m.Rcode = dns.RcodeServerFailure
		}
		m.AuthenticatedData = false
	case NoEDNS:
		if req.IsEdns0() != nil {
			m.Rcode, m.Extra = dns.RcodeFormatError, nil
		}
	case Truncated, TruncatedTCP, NoTCP:
		if tcp && how == NoTCP {
			w.Close()
			return
		}
		if !tcp || how == TruncatedTCP {
			m.Truncated, m.Answer, m.Ns = true, nil, nil
		}
	case WrongID:
		m.Id ^= 0xffff
	case WrongQuestion:
		m.Question = []dns.Question{{Name: "not-what-was-asked.invalid.", Qtype: m.Question[0].Qtype, Qclass: dns.ClassINET}}
	case NoQuestion:
		m.Question = nil
	case NotAResponse:
		m.Response = false
		m.Answer, m.Ns = nil, nil
	case Silent:
		return
	case Garbage, Short:
		w.Write(rubbish(m.Id, how))
		return
	}
	if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		m.Answer, m.Ns, m.AuthenticatedData = nil, nil, false
	}
	if !tcp {
		m.Truncate(udpSize(req))
	}
	w.WriteMsg(m) // the client may be gone
}

// rubbish returns an invalid message with the right id: the header announces
// thousands of records, and a compression pointer points at itself.
func rubbish(id uint16, how How) []byte {
	b := []byte{byte(id >> 8), byte(id), 0x81, 0x80, 0x00, 0x01, 0xff, 0xff, 0, 0, 0, 0, 0xc0, 0x0c, 0xc0, 0x0c}
	if how == Short {
		b = b[:5]
	}
	return b
}
