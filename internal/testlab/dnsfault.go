package testlab

import (
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// A How is a way in which an answer is wrong.
type How uint8

// The ways.
const (
	AsIs          How = iota // right, perhaps late
	ServFail                 // SERVFAIL
	Refused                  // REFUSED
	NotImp                   // NOTIMP
	FormErr                  // FORMERR
	Bogus                    // SERVFAIL, unless the question has the CD bit: data that does not validate
	Silent                   // no answer at all
	Truncated                // TC and nothing else over UDP, right over TCP
	TruncatedTCP             // TC over UDP, and over TCP too
	NoTCP                    // TC over UDP; over TCP the connection is closed
	Garbage                  // bytes that are no DNS message, after the right id
	Short                    // five bytes
	WrongID                  // right, but the answer to another id
	WrongQuestion            // right, but the answer to another name
	NoQuestion               // right, but without the question
	NoEDNS                   // FORMERR to a question with EDNS0, right to one without
	AliasOnly                // a CNAME that is not followed
	NotAResponse             // the question comes back as it was
)

// A Fault is what is wrong with the answers to a question.
type Fault struct {
	How   How
	Delay time.Duration // before the answer
	Gate  *Gate         // the answer waits here
	Times int           // for so many questions only, then all is well again; 0 is for ever
}

// faults are the faults by name and type; "*" is any name, TypeANY any type.
type faults struct {
	mu sync.Mutex
	at map[nameType]*Fault
}

// Break makes the answers for name and type ("TXT"; "" is any type) wrong.
// The name "*" is all names. A fault at a name that a CNAME leads to breaks
// the answer as a whole.
func (d *DNS) Break(name, qtype string, how How) { d.BreakWith(name, qtype, Fault{How: how}) }

// BreakWith is Break with a delay, a gate or an end.
func (d *DNS) BreakWith(name, qtype string, f Fault) {
	d.faults.mu.Lock()
	defer d.faults.mu.Unlock()
	d.faults.at[faultKey(name, qtype)] = &f
}

// Mend ends what Break did for name and type.
func (d *DNS) Mend(name, qtype string) {
	d.faults.mu.Lock()
	defer d.faults.mu.Unlock()
	delete(d.faults.at, faultKey(name, qtype))
}

// Hold has the answers for name and type wait until the gate is opened.
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

// forQuestion returns the fault of a question, and whether it is not to
// follow CNAMEs.
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

// onTheWay returns the first fault of the names that CNAMEs led to.
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

// take returns a copy of the fault at k, and uses up one of its times.
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

// delay waits as the fault says; false if the lab closes before.
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

// send sends the answer m, spoiled as the fault says.
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
	w.WriteMsg(m) // a client that has gone has no need of it
}

// rubbish returns bytes that begin as the answer to id does and are none: the
// header promises records by the thousand, and a compression pointer points
// at itself.
func rubbish(id uint16, how How) []byte {
	b := []byte{byte(id >> 8), byte(id), 0x81, 0x80, 0x00, 0x01, 0xff, 0xff, 0, 0, 0, 0, 0xc0, 0x0c, 0xc0, 0x0c}
	if how == Short {
		b = b[:5]
	}
	return b
}
