package dane

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// A fake is a resolver that answers from a table, and counts. What is not in
// the table does not exist, with proof.
type fake struct {
	mu         sync.Mutex
	answers    map[string]reply
	asked      map[string]int
	total      int
	inFlight   int
	most       int // in flight at once
	blind      bool
	liar       bool
	untrusted  bool
	generation uint64
}

// A reply is what the fake says to one question.
type reply struct {
	security Security
	kind     resolver.Kind // of the error, for Indeterminate; zero: a time-out
	err      error         // in it
	nx       bool
	cnames   []string // the names passed through; the records are at the end
	end      string   // the last name, with cnames
	data     []string // of the records
	ttl      time.Duration
	delay    time.Duration
	servFail bool // of a server asked before
}

func newFake() *fake {
	f := &fake{answers: map[string]reply{}, asked: map[string]int{}}
	f.set("signed.test", "SOA", reply{security: Secure, data: []string{"ns.test. h.test. 1 1 1 1 1"}})
	f.set("unsigned.test", "SOA", reply{security: Insecure, data: []string{"ns.test. h.test. 1 1 1 1 1"}})
	return f
}

func (f *fake) set(name, qtype string, e reply) *fake {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers[name+" "+qtype] = e
	return f
}

// count returns how often a question was asked.
func (f *fake) count(name, qtype string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked[name+" "+qtype]
}

// questions returns the number of all questions but the probe's.
func (f *fake) questions() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.total
}

func (f *fake) change(do func(f *fake)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do(f)
}

func (f *fake) TrustsAD() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.untrusted
}

func (f *fake) Generation() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.generation
}

func (f *fake) Query(ctx context.Context, name string, qtype resolver.Type) (*resolver.Answer, error) {
	e := f.begin(name, qtype)
	defer f.change(func(f *fake) { f.inFlight-- })
	failed := &resolver.Error{Name: name, Type: qtype}
	if e.delay > 0 {
		select {
		case <-time.After(e.delay):
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil {
		failed.Kind = resolver.KindCanceled
		return nil, failed
	}
	switch e.security {
	case Bogus:
		failed.Kind = resolver.KindServFail
		return nil, failed
	case Indeterminate:
		failed.Kind = resolver.KindTimeout
		if e.kind != 0 {
			failed.Kind, failed.Err = e.kind, e.err
		}
		return nil, failed
	}
	a := testlab.Answer(name, qtype, e.data...)
	a.CNAMEs, a.TTL, a.AfterServFail = e.cnames, e.ttl, e.servFail
	if len(e.cnames) > 0 {
		a.Name = e.end
	}
	a.NXDomain = e.nx
	f.mu.Lock()
	defer f.mu.Unlock()
	a.Authenticated = (e.security == Secure && !f.blind || f.liar) && !f.untrusted
	return a, nil
}

func (f *fake) begin(name string, qtype resolver.Type) reply {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inFlight++
	f.most = max(f.most, f.inFlight)
	key := name + " " + qtype.String()
	f.asked[key]++
	if !strings.HasSuffix(key, " SOA") {
		f.total++
	}
	e, ok := f.answers[key]
	if !ok {
		e = reply{security: Secure, nx: true, ttl: 5 * time.Minute}
	}
	return e
}

// checker returns a Checker that asks f, and probes names that f knows.
func checker(f *fake) *Checker {
	return New(Options{Resolver: f, Probe: ProbeNames{Signed: []string{"signed.test"}, Unsigned: []string{"unsigned.test"}}})
}

func everyHost(string) bool { return true }

func sha256Of(b byte) string { return strings.Repeat(fmt.Sprintf("%02x", b), 32) }

var (
	usableTLSA   = []string{"3 1 1 " + sha256Of(1)}
	unusableTLSA = []string{"1 1 1 " + sha256Of(1), "3 1 1 abcd"}
)

// secure returns an authenticated answer that lasts five minutes.
func secure(data ...string) reply {
	return reply{security: Secure, data: data, ttl: 5 * time.Minute}
}

func insecure(data ...string) reply {
	return reply{security: Insecure, data: data, ttl: 5 * time.Minute}
}
