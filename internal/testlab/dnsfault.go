package testlab

import (
	"strings"
	"sync"

	"github.com/miekg/dns"
)

// A How is a kind of DNS fault.
type How uint8

const (
	ServFail     How = iota + 1
	Silent           // no answer
	SilentToEDNS     // no answer to a question with EDNS
)

// A fault is a How, or a gate at which answers wait.
type fault struct {
	how  How
	gate *Gate
}

// faults maps name and type to a fault; "*" is any name, TypeANY any type.
type faults struct {
	mu sync.Mutex
	at map[nameType]fault
}

// Break breaks the answers for name ("*" for all names) and type ("TXT"; "" for
// any). A fault at the target of a CNAME breaks the whole answer.
func (d *DNS) Break(name, qtype string, how How) { d.faults.set(name, qtype, fault{how: how}) }

// Hold makes the answers for name and type wait at a gate.
func (d *DNS) Hold(name, qtype string) *Gate {
	g := d.lab.NewGate()
	d.faults.set(name, qtype, fault{gate: g})
	return g
}

// Mend ends a fault set by Break or Hold.
func (d *DNS) Mend(name, qtype string) {
	d.faults.mu.Lock()
	defer d.faults.mu.Unlock()
	delete(d.faults.at, faultKey(name, qtype))
}

func (f *faults) set(name, qtype string, to fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at[faultKey(name, qtype)] = to
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

// find returns the first fault of the names in a chain of CNAMEs.
func (f *faults) find(names []string, qtype uint16) fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range append(names[:len(names):len(names)], "*") {
		for _, k := range []nameType{{name, qtype}, {name, dns.TypeANY}} {
			if found, ok := f.at[k]; ok {
				return found
			}
		}
	}
	return fault{}
}
