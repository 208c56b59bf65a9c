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
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// A Resolver is what is asked; *resolver.Resolver is one.
type Resolver interface {
	Query(ctx context.Context, name string, qtype resolver.Type) (*resolver.Answer, error)
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

// MarshalText writes the state's word.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the word of a state.
func (s *State) UnmarshalText(word []byte) error {
	for known := Undecided; known <= NotValidating; known++ {
		if known.String() == string(word) {
			*s = known
			return nil
		}
	}
	return fmt.Errorf("%q is no DANE state", word)
}

// binds says whether the state demands DANE of the MTA.
func (s State) binds() bool { return s == Usable || s == LookupFailed }

// A Finding is a state and the reason for it.
type Finding struct {
	State State
	Why   string    // one sentence, for the log; names from the network in it are host names
	Until time.Time // kept until then

	bound binding // what demanded DANE of the MTA last; outlives a state that is Undecided
	told  bool    // the log has the hosts that are lost; remembered as long as the next-hop is
}

// A binding is a state that binds, and how far it is to be relied on. The zero
// value is that of a next-hop that had no DANE, or has given it up.
type binding struct {
	state   State
	since   time.Time // when the next-hop came to have DANE
	vouched bool      // a probe that began after that found a resolver that validates
	kept    bool      // the state is not what the last check found, which nothing vouches for
	because Verdict   // why it is kept, as the log has it
}

// Kept says whether the finding is one from before: the last check found
// another, and may have done so because the resolver does not validate.
func (f Finding) Kept() bool { return f.bound.kept }

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
	inUse    atomic.Bool   // DANE is configured or was asked for
	slots    chan struct{} // one held by each check at work
	found    *table[NextHop, Finding]
	mx       *table[string, mxAnswer]
	counts   [NotValidating + 1]atomic.Uint64 // findings made, by state
	panics   atomic.Uint64
	panicLog *rate.Limiter

	lostLines, keptLines *rate.Limiter
	linesDropped         atomic.Uint64
}

// New returns a Checker that has asked nothing yet.
func New(o Options) *Checker {
	c := &Checker{
		resolver: o.Resolver, log: o.Log, slots: make(chan struct{}, maxChecks),
		lostLines: rate.NewLimiter(logsPerSecond, logBurst), keptLines: rate.NewLimiter(logsPerSecond, logBurst),
		panicLog: rate.NewLimiter(rate.Every(panicEvery), 1),
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.prober.names = o.Probe
	if len(o.Probe.Signed)+len(o.Probe.Unsigned) == 0 {
		c.prober.names = DefaultProbeNames()
	}
	c.found = newTable(maxFindings, c.renew, func(v any) { c.survived("check", v) })
	c.mx = newTable(maxMXSets, c.renewMX, func(v any) { c.survived("mx", v) })
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

// Findings returns what is held of the next-hops whose host or domain that is,
// and still counts, in no order. It asks nothing.
func (c *Checker) Findings(host string) map[NextHop]Finding {
	found := make(map[NextHop]Finding)
	now := time.Now()
	c.found.each(func(n NextHop, f Finding) {
		if n.Host == host && now.Before(f.Until) {
			found[n] = f
		}
	})
	return found
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

// find checks a next-hop. Where it comes to have DANE or leaves it, the answers
// alone do not tell whether that is the domain's doing or the resolver's: the
// resolver is probed. Between two findings of one kind it is not.
func (c *Checker) find(ctx context.Context, n NextHop, old Finding) Finding {
	now := time.Now()
	if p := c.Verdict(); p.Verdict.proof() {
		return c.noWeaker(n, old, notValidating(p.Verdict), p.Verdict)
	}
	r := c.inTurn(ctx, n)
	if r.State == Undecided && now.Before(old.Until) {
		return old
	}
	f := Finding{State: r.State, Why: r.Why, Until: time.Now().Add(r.keep()), told: old.told}
	switch {
	case f.State == Undecided:
		f.bound = old.bound // an outage is no reason to forget it
	case f.State.binds():
		return c.come(ctx, n, old, f, r)
	case old.bound.state.binds():
		return c.leave(ctx, n, old, f, r)
	}
	return f
}

// come returns what to make of f, which binds.
func (c *Checker) come(ctx context.Context, n NextHop, old, f Finding, r *Report) Finding {
	b, v := c.vouchFor(ctx, f.State, old.bound)
	switch {
	case v == FalseAD:
		return c.noWeaker(n, old, notValidating(v), v)
	case ctx.Err() != nil && !b.vouched: // the probe is at work, and the next check will know
		if time.Now().Before(old.Until) {
			return old
		}
		return Finding{State: Undecided, Why: "the probe of the resolver took too long", Until: time.Now().Add(failKeep), told: old.told, bound: old.bound}
	}
	f.bound = b
	if f.State == Usable && !f.told {
		f.told = c.logLost(n, r)
	}
	return f
}

// notValidating is the finding under a verdict that proves that nothing can be
// found.
func notValidating(v Verdict) Finding {
	return Finding{State: NotValidating, Why: v.String(), Until: time.Now().Add(failKeep)}
}

// vouchFor returns the binding for a state that binds, and what the resolver
// was probed to be if nothing has vouched for the state before.
//
// A probe of just before is good enough to come to DANE by, so that not each
// new domain costs one. But it may have seen the resolver before that began to
// lie: a later one has to vouch for the state before it is relied on.
func (c *Checker) vouchFor(ctx context.Context, s State, old binding) (binding, Verdict) {
	b := binding{state: s, since: old.since, vouched: old.vouched}
	if !old.state.binds() {
		b.since = time.Now()
	}
	if b.vouched = b.vouched || c.vouched(b.since); b.vouched {
		return b, Validates
	}
	v := c.recent(ctx).Verdict
	b.vouched = c.vouched(b.since)
	return b, v
}

// leave returns what to make of f, which does not bind any more.
func (c *Checker) leave(ctx context.Context, n NextHop, old, f Finding, r *Report) Finding {
	v := c.Probe(ctx).Verdict
	switch {
	case v == FalseAD:
		f = notValidating(v)
	case !r.Unsigned && !old.bound.vouched:
		// Presence and absence rest on the same word.
		return f
	}
	return c.noWeaker(n, old, f, v)
}

// noWeaker returns f, or the state that bound before, if f is weaker and may be
// the doing of the resolver; under one that vouches for anything it is undecided
// instead. A domain that had DANE and now comes without has given it up, or the
// resolver no longer checks. Only a resolver that validates can tell. A state for
// which nothing but a resolver's word ever stood falls with that word.
func (c *Checker) noWeaker(n NextHop, old, f Finding, v Verdict) Finding {
	f.told = old.told
	b := old.bound
	if !b.state.binds() || v == Validates || v == FalseAD && !b.vouched {
		return f
	}
	if !b.kept || b.because != v {
		c.logKept(n, v)
	}
	b.kept, b.because = true, v
	state := b.state
	if v == FalseAD {
		// The MTA would believe the same resolver, which has anybody's TLSA
		// records authenticated: the held policy is worth more than that, and
		// less than the DANE that the domain has.
		state = Undecided
	}
	return Finding{State: state, Until: time.Now().Add(failKeep), told: old.told, bound: b,
		Why: "it had DANE while answers were authenticated, and now nothing is known: " + v.String()}
}

// logKept says that a next-hop keeps its state.
func (c *Checker) logKept(n NextHop, v Verdict) {
	if !c.mayLog(c.keptLines) {
		return // the metric has the number
	}
	c.log.Error("next-hop keeps its DANE state: its answers are no longer authenticated", "domain", n.Host, "resolver", v.String(),
		"next", "have the resolver validate again: sts-tlsmap -check says when it does; until then mail to the domain may wait")
}

// doubt ends the life of what rests on nothing but the word of a resolver that
// has turned out to vouch for anything.
func (c *Checker) doubt() {
	c.found.end(func(f Finding) bool { return f.State.binds() && !f.bound.vouched })
}

// survived notes a panic that was recovered from: nobody else would, and mail
// waits while the daemon is down. Its caller is the deferred function.
func (c *Checker) survived(what string, panicked any) {
	c.panics.Add(1)
	if !c.panicLog.Allow() {
		return // the metric has the number
	}
	c.log.Error("bug: a panic was recovered from; please report it", "in", "dane", "work", what,
		"panic", fmt.Sprint(panicked), "stack", string(debug.Stack()))
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
