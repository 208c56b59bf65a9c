// Package dane tells whether a next-hop is protected by DANE, as RFC 7672 has
// it for SMTP, and looks up MX hosts. It relies on the AD bit of a validating
// resolver, and probes whether the resolver validates.
//
// It finds out only what keeps MTA-STS from overriding DANE (RFC 8461, 2): it
// makes no connection and matches no certificate. The MTA does.
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

const (
	maxHosts        = 64  // MX hosts of a next-hop that are looked at, the most preferred first
	maxBarred       = 8   // named of one next-hop
	hostsAtOnce     = 4   // of one next-hop
	maxChecks       = 256 // checks and MX lookups under way; each asks at most hostsAtOnce questions at once
	maxDomainChecks = 4   // of them, for the next-hops and ports of one domain
	maxFindings     = 10_000

	checkTime  = 15 * time.Second
	settleTime = 2 * time.Second // for the remaining lookups, which only the log needs, after one has decided

	minKeep  = time.Minute // a finding is kept for the TTL of its records, at least so long
	maxKeep  = time.Hour
	failKeep = 30 * time.Second // after a failure: the MTA tries again in some minutes

	probeTime  = 15 * time.Second
	probeEvery = 10 * time.Minute // after a probe that found a validating resolver
	probeRetry = time.Minute      // after one that did not; an older one does not vouch for a next-hop that gains DANE
	probeLook  = 10 * time.Second // between two looks whether a probe is due

	loggedHosts   = 8 // named in one line of the log
	logsPerSecond = 5 // lines about single next-hops
	logBurst      = 50
	panicEvery    = time.Second // between two lines about panics
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

// A State is what DANE says of a next-hop and its listed MX hosts.
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
	Barred []string // of the MX hosts, see Barred
	Kept   bool     // an older finding: the last check differed, perhaps only because the resolver changed
	Waited bool     // it was not in memory
}

// Options are what a Checker works with.
type Options struct {
	Resolver Resolver
	Probe    ProbeNames   // zero: names of the public DNS
	Log      *slog.Logger // nil: none
}

// A Checker checks next-hops and keeps what it finds. It is safe for concurrent use.
type Checker struct {
	resolver Resolver
	log      *slog.Logger
	prober   prober
	inUse    atomic.Bool // DANE is configured or was asked for
	lies     atomic.Bool // the last probe found a resolver that sets AD on anything
	turns    *turns

	mu   sync.Mutex
	hops *simplelru.LRU[NextHop, *entry]

	counts     [states]atomic.Uint64 // checks made, by what they found
	panics     atomic.Uint64
	panicLines rate.Sometimes
	lines      *rate.Limiter // about single next-hops
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
		turns:      newTurns(),
		panicLines: rate.Sometimes{Interval: panicEvery},
		lines:      rate.NewLimiter(logsPerSecond, logBurst),
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if len(o.Probe.Signed)+len(o.Probe.Unsigned) == 0 {
		c.prober.names = publicNames
	}
	return c
}

// Look checks a next-hop now and returns all that it saw, for -explain. It keeps
// nothing. Probe tells whether the resolver validates, and must come before.
func (c *Checker) Look(ctx context.Context, n NextHop, listed func(host string) bool) *Report {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	r := c.look(ctx, n.normal(), listed, nil)
	if v := c.Verdict().Verdict; v.proof() {
		r.Finding = brief(NotValidating, v.String())
	}
	return r
}

// recovered notes a panic that would have ended the daemon.
func (c *Checker) recovered(work string, panicked any) {
	c.panics.Add(1)
	c.panicLines.Do(func() {
		c.log.Error("bug: a panic was recovered from; please report it", "in", "dane", "work", work,
			"panic", fmt.Sprint(panicked), "stack", string(debug.Stack()))
	})
}

// Stats are a Checker's numbers.
type Stats struct {
	Findings [states]uint64 // checks made since the start, by State
	Held     int            // next-hops in memory
	Kept     int            // of these, next-hops with a Kept finding
	Checking int            // checks and MX lookups under way
	Panics   uint64         // recovered from
	Verdict  Verdict        // of the last probe of the resolver as it is configured now
}

// Stats returns the numbers. It asks nothing, and begins no probe.
func (c *Checker) Stats() Stats {
	s := Stats{Checking: len(c.turns.all), Panics: c.panics.Load()}
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
