// Package dane tells whether a next-hop is protected by DANE, as RFC 7672 has
// it for SMTP, and looks up MX hosts. It relies on the AD bit of a resolver
// that validates, and probes whether it does.
//
// It asks what it must know so that MTA-STS does not override DANE (RFC 8461,
// 2), and no more: it makes no connection and matches no certificate. That is
// the MTA's, which asks the same questions again.
package dane

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// A Resolver is what is asked; *resolver.Resolver is one.
type Resolver interface {
	Query(ctx context.Context, name string, qtype uint16) (*resolver.Answer, error)
	TrustsAD() bool
	Generation() uint64
}

// A NextHop is where mail is to go, as the MTA has it.
type NextHop struct {
	Host      string // a domain or host: A-labels, lower case, no trailing dot
	Port      uint16 // where TLSA records are asked for; zero is 25
	Bracketed bool   // Host is the host itself: its MX records do not count
}

func (n NextHop) normal() NextHop {
	if n.Port == 0 {
		n.Port = 25
	}
	return n
}

// A State is what DANE has to say of a next-hop.
type State uint8

// The states: one for each row of the decision's table, and one for a resolver
// that is proven not to validate. The zero value is the one that defers.
const (
	Undecided     State = iota // the MX lookup fails, or time or a bound runs out before it is decided
	Usable                     // MX authenticated, a usable TLSA record at one host or more
	LookupFailed               // MX authenticated, but a lookup at one of its hosts fails
	Absent                     // MX authenticated, TLSA absent or not usable, or no host with authenticated addresses
	UnsignedMX                 // MX not authenticated, whatever there is at its hosts
	NoMail                     // null MX, or the domain does not exist
	NotValidating              // the resolver does not validate: nothing can be known
)

func (s State) String() string {
	switch s {
	case Undecided:
		return "undecided"
	case Usable:
		return "usable"
	case LookupFailed:
		return "lookup-failed"
	case Absent:
		return "absent"
	case UnsignedMX:
		return "unsigned-mx"
	case NoMail:
		return "no-mail"
	case NotValidating:
		return "not-validating"
	}
	return "invalid"
}

// binds says whether the state demands DANE of the MTA.
func (s State) binds() bool { return s == Usable || s == LookupFailed }

// A Finding is a state and the reason for it.
type Finding struct {
	State State
	Why   string    // one sentence, for the log; names from the network in it are host names
	Until time.Time // kept until then

	told bool // the log has the hosts that are lost; remembered as long as the next-hop is
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
	slots    chan struct{} // one held by each check at work
	found    *table[NextHop, Finding]
	mx       *table[string, mxAnswer]
	counts   [NotValidating + 1]atomic.Uint64 // findings made, by state

	lostLines, keptLines *rate.Limiter
	linesDropped         atomic.Uint64
}

// New returns a Checker that has asked nothing yet.
func New(o Options) *Checker {
	c := &Checker{
		resolver: o.Resolver, log: o.Log, slots: make(chan struct{}, maxChecks),
		lostLines: rate.NewLimiter(logsPerSecond, logBurst), keptLines: rate.NewLimiter(logsPerSecond, logBurst),
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.prober.names = o.Probe
	if len(o.Probe.Signed)+len(o.Probe.Unsigned) == 0 {
		c.prober.names = DefaultProbeNames()
	}
	c.found = newTable(maxFindings, c.renew)
	c.mx = newTable(maxMXSets, c.renewMX)
	return c
}

// Check returns what DANE has to say of a next-hop: what is held of it, or
// what a check finds, which is shared by all who ask meanwhile. When ctx ends
// first, the check goes on, and the finding is Undecided.
func (c *Checker) Check(ctx context.Context, n NextHop) Finding {
	f, err := c.found.get(ctx, n.normal())
	if err != nil {
		return Finding{State: Undecided, Why: "the DANE lookups took too long"}
	}
	return f
}

// Held returns what is held of a next-hop. It does not wait: where nothing is
// held it is false, and a check has begun.
func (c *Checker) Held(ctx context.Context, n NextHop) (Finding, bool) {
	f, wait := c.found.start(ctx, n.normal())
	return f, wait == nil
}

// Look checks a next-hop now and returns all that it saw, for -explain. It
// asks for the addresses of both families, waits for all hosts, and keeps
// nothing. Whether the resolver validates is for Probe to find out, before.
func (c *Checker) Look(ctx context.Context, n NextHop) *Report {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	r := c.look(ctx, n.normal(), true)
	if p := c.Verdict(); p.Verdict.proof() {
		r.State, r.Why = NotValidating, p.Verdict.String()
	}
	return r
}

// renew makes the finding that takes the place of old, and counts it.
func (c *Checker) renew(ctx context.Context, n NextHop, old Finding) Finding {
	f := c.find(ctx, n, old)
	c.counts[f.State].Add(1)
	return f
}

func (c *Checker) find(ctx context.Context, n NextHop, old Finding) Finding {
	now := time.Now()
	if p := c.Verdict(); p.Verdict.proof() {
		f := Finding{State: NotValidating, Why: p.Verdict.String(), Until: now.Add(failKeep), told: old.told}
		return c.noWeaker(n, old, f, p.Verdict)
	}
	r := c.inTurn(ctx, n)
	if r.State == Undecided && now.Before(old.Until) {
		return old
	}
	f := Finding{State: r.State, Why: r.Why, Until: time.Now().Add(r.keep()), told: old.told}
	if r.State == Usable && !f.told {
		f.told = c.logLost(n, r)
	}
	if old.State.binds() && r.Unsigned {
		return c.noWeaker(n, old, f, c.Probe(ctx).Verdict)
	}
	return f
}

// noWeaker returns f, or the old state if f is weaker and may be the doing of
// the resolver. A domain that had DANE and now comes without signatures has
// given them up, or the resolver no longer checks them. Only a resolver that
// validates can tell.
func (c *Checker) noWeaker(n NextHop, old, f Finding, v Verdict) Finding {
	if v == Validates || !old.State.binds() || f.State.binds() || f.State == Undecided {
		return f
	}
	if c.mayLog(c.keptLines) {
		c.log.Error("next-hop keeps its DANE state: its answers are no longer authenticated", "domain", n.Host, "resolver", v.String())
	}
	return Finding{State: old.State, Until: time.Now().Add(failKeep), told: old.told,
		Why: "it had DANE while answers were authenticated, and now nothing is known: " + v.String()}
}

// logLost says which hosts of a next-hop an MTA that insists on DANE skips,
// the first few by name. It is false if that has not been said: there are none,
// or there is no room in the log.
func (c *Checker) logLost(n NextHop, r *Report) bool {
	lost := r.lost()
	if len(lost) == 0 || !c.mayLog(c.lostLines) {
		return false
	}
	c.log.Warn("mail goes to the hosts with TLSA records only", "domain", n.Host,
		"skipped", len(lost), "hosts", lost[:min(len(lost), loggedHosts)])
	return true
}

// mayLog says whether there is room in the log for one more line about a
// next-hop.
func (c *Checker) mayLog(limit *rate.Limiter) bool {
	if limit.Allow() {
		return true
	}
	c.linesDropped.Add(1)
	return false
}

// inTurn waits for one of the slots and checks.
func (c *Checker) inTurn(ctx context.Context, n NextHop) *Report {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
		return c.look(ctx, n, false)
	case <-ctx.Done():
		return &Report{NextHop: n, Why: "too many next-hops are being checked"}
	}
}
