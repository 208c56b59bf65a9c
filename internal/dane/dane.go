// Package dane tells whether a next-hop is protected by DANE, as RFC 7672 has
// it for SMTP, and looks up MX hosts. It relies on the AD bit of a validating
// resolver, and probes whether the resolver validates.
//
// It finds out only what keeps MTA-STS from overriding DANE (RFC 8461, 2). It
// makes no connection and matches no certificate: the MTA does, after asking
// the same questions.
package dane

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// A Resolver asks DNS questions; *resolver.Resolver is one.
type Resolver interface {
	Query(ctx context.Context, name string, qtype resolver.Type) (*resolver.Answer, error)
	TrustsAD() bool
	Generation() uint64
}

// A NextHop is where mail is to go, as the MTA names it.
type NextHop struct {
	Host      string // a domain or host: A-labels, lower case, no trailing dot
	Port      uint16 // where TLSA records are asked for; zero is 25
	Bracketed bool   // Host is the mail host itself: there is no MX lookup
}

func (n NextHop) normal() NextHop {
	if n.Port == 0 {
		n.Port = 25
	}
	return n
}

// String writes n as an MTA would ask for it.
func (n NextHop) String() string {
	s := n.Host
	if n.Bracketed {
		s = "[" + s + "]"
	}
	if n = n.normal(); n.Port != 25 {
		s += fmt.Sprintf(":%d", n.Port)
	}
	return s
}

// A State is what DANE says of a next-hop, and of its MX hosts that the policy
// lists.
type State uint8

// The states are the rows of the table in docs/decision.md. The zero value is
// the one that defers mail.
const (
	Undecided       State = iota // the MX lookup fails, or time or a bound runs out before it is decided
	Usable                       // MX authenticated, a usable TLSA record at one host or more
	LookupFailed                 // MX authenticated, a lookup fails at every host
	SomeFailed                   // MX authenticated, lookups fail at some hosts, the others are without DANE
	AddressesFailed              // as SomeFailed, but only lookups of addresses fail: the MTA cannot connect to those hosts either
	Absent                       // MX authenticated, TLSA absent or not usable, or no host with authenticated addresses
	UnsignedMX                   // MX not authenticated, whatever there is at its hosts
	NoMail                       // null MX, the domain does not exist, or the policy lists no MX host
	NotValidating                // the resolver does not validate: nothing can be known
	states
)

var stateNames = [states]string{"undecided", "usable", "lookup-failed", "some-failed", "addresses-failed", "absent", "unsigned-mx", "no-mail", "not-validating"}

func (s State) String() string {
	if s < states {
		return stateNames[s]
	}
	return "invalid"
}

// MarshalText writes the state's word.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the word of a state.
func (s *State) UnmarshalText(word []byte) error {
	for known, name := range stateNames {
		if name == string(word) {
			*s = State(known)
			return nil
		}
	}
	return fmt.Errorf("%q is no DANE state", word)
}

// protects says whether MTA-STS must not override DANE in this state.
func (s State) protects() bool { return s == Usable || s == LookupFailed || s == SomeFailed }

// A Finding is the state of a next-hop and the reason for it.
type Finding struct {
	State State
	Why   string    // one sentence, for the log; names from the network in it are host names
	Until time.Time // kept until then

	Hosts  []string // SomeFailed, AddressesFailed: the listed hosts without DANE, which mail may go to
	Kept   bool     // it is from before: what the last check found may be the resolver's doing
	Waited bool     // it was not in memory
}

// Options are what a Checker works with.
type Options struct {
	Resolver Resolver
	Probe    ProbeNames   // zero: the names that DefaultProbeNames returns
	Log      *slog.Logger // nil: none
}

// A Checker checks next-hops and keeps what it finds for a while. It is safe
// for concurrent use.
type Checker struct {
	resolver Resolver
	log      *slog.Logger
	prober   prober
	inUse    atomic.Bool // DANE is configured or was asked for
	turns    turns

	mu   sync.Mutex
	hops *simplelru.LRU[NextHop, *entry]

	counts       [states]atomic.Uint64 // checks made, by what they found
	panics       atomic.Uint64
	panicLines   rate.Sometimes
	lines        *rate.Limiter // about single next-hops
	linesDropped atomic.Uint64
}

// New returns a Checker that has asked nothing yet.
func New(o Options) *Checker {
	hops, err := simplelru.NewLRU[NextHop, *entry](maxFindings, nil)
	if err != nil {
		panic(err) // of a size that is not positive
	}
	c := &Checker{
		resolver: o.Resolver, log: o.Log, hops: hops,
		prober:     prober{names: o.Probe},
		turns:      turns{all: make(chan struct{}, maxChecks), domains: map[string]*domainTurns{}},
		panicLines: rate.Sometimes{Interval: panicEvery},
		lines:      rate.NewLimiter(logsPerSecond, logBurst),
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if len(o.Probe.Signed)+len(o.Probe.Unsigned) == 0 {
		c.prober.names = DefaultProbeNames()
	}
	return c
}

// Look checks a next-hop now and returns all that it saw, for -explain. It
// asks for the addresses of both families, waits for all hosts, and keeps
// nothing. Probe tells whether the resolver validates, and must come before.
func (c *Checker) Look(ctx context.Context, n NextHop, listed func(host string) bool) *Report {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	r := c.look(ctx, n.normal(), listed, nil, true)
	if v := c.Verdict().Verdict; v.proof() {
		r.State, r.Why = NotValidating, v.String()
	}
	return r
}

// recovered notes a panic in a goroutine of this package, which would end the
// daemon: mail would wait. Its caller is the deferred function.
func (c *Checker) recovered(work string, panicked any) {
	c.panics.Add(1)
	c.panicLines.Do(func() {
		c.log.Error("bug: a panic was recovered from; please report it", "in", "dane", "work", work,
			"panic", fmt.Sprint(panicked), "stack", string(debug.Stack()))
	})
}

// mayLog says whether there is room in the log for one more line about a
// next-hop.
func (c *Checker) mayLog() bool {
	if c.lines.Allow() {
		return true
	}
	c.linesDropped.Add(1)
	return false
}

// Stats are a Checker's numbers.
type Stats struct {
	Findings        [states]uint64 // checks made since the start, by State
	Held            int            // next-hops of which something is held
	Kept            int            // of them, those with a Finding that is Kept
	Checking        int            // checks and MX lookups under way
	Panics          uint64         // recovered from
	LogLinesDropped uint64         // about single next-hops, for their number
	Verdict         Verdict        // of the last probe of the resolver as it is configured now
}

// Stats returns the numbers. It asks nothing, and begins no probe.
func (c *Checker) Stats() Stats {
	s := Stats{Checking: len(c.turns.all), Panics: c.panics.Load(), LogLinesDropped: c.linesDropped.Load()}
	for i := range c.counts {
		s.Findings[i] = c.counts[i].Load()
	}
	c.mu.Lock()
	for _, e := range c.hops.Values() {
		s.Held++
		if e.hop.finding.Kept {
			s.Kept++
		}
	}
	c.mu.Unlock()
	c.prober.mu.Lock()
	defer c.prober.mu.Unlock()
	s.Verdict = c.lastProbe().Verdict
	return s
}
