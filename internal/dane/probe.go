package dane

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// A Verdict is what a probe says of the resolver.
type Verdict uint8

// The verdicts. The zero value is that of a probe that got no answer.
const (
	NoVerdict   Verdict = iota // no answer: nothing is known
	Validates                  // AD on a signed name
	NoAD                       // no AD on any of the signed names, although all were answered
	FalseAD                    // AD on all names that are not signed
	NotBelieved                // the resolver's AD bit is not to be believed
	verdicts
)

var verdictWords = [verdicts]string{
	NoVerdict:   "the probe of the resolver got no answer",
	Validates:   "the resolver validates",
	NoAD:        "the resolver does not validate: answers for signed names come without the AD bit",
	FalseAD:     "the resolver does not validate: answers for unsigned names come with the AD bit",
	NotBelieved: "the resolver's AD bit is not believed: it is not on this machine, and neither resolv.conf nor [dns] trust_ad says to",
}

func (v Verdict) String() string { return verdictWords[v] }

// Name is a verdict in a word, as the label of a metric.
func (v Verdict) Name() string {
	return [verdicts]string{"unknown", "validates", "no-ad", "false-ad", "not-believed"}[v]
}

// proof says whether the verdict proves that answers cannot be authenticated.
func (v Verdict) proof() bool { return v == NoAD || v == FalseAD || v == NotBelieved }

// ProbeNames are the names of which a probe asks for the SOA record.
type ProbeNames struct {
	Signed   []string
	Unsigned []string
}

// publicNames are names of the public DNS. There are several signed ones, since a
// resolver with its own copy of the root serves that one without AD. The unsigned
// ones are so by their specification (RFC 8375; RFC 6303).
var publicNames = ProbeNames{Signed: []string{".", "com", "org"}, Unsigned: []string{"home.arpa", "10.in-addr.arpa"}}

// A Probe is the outcome of a probe.
type Probe struct {
	Verdict Verdict
	Began   time.Time // zero: there was none yet
	Lookups []*Lookup // the questions asked
}

// A prober keeps the last outcome.
type prober struct {
	names ProbeNames

	mu         sync.Mutex
	last       Probe
	generation uint64        // of the resolver, when the last probe began
	running    chan struct{} // closed at the end of the probe under way; nil if there is none
	logged     *Verdict      // the last one in the log
}

// Verdict returns the outcome of the last probe of the resolver as it is
// configured now, and starts a new one when it is due. It does not wait.
func (c *Checker) Verdict() Probe {
	c.inUse.Store(true)
	p := &c.prober
	p.mu.Lock()
	defer p.mu.Unlock()
	last := c.lastProbe()
	again := probeRetry
	if last.Verdict == Validates {
		again = probeEvery
	}
	if time.Since(last.Began) >= again {
		c.startProbe()
	}
	return last
}

// Run probes the resolver when that is due, without lookups, too, once Verdict has
// been called for the first time. It ends with ctx.
func (c *Checker) Run(ctx context.Context) {
	tick := time.NewTicker(probeLook)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if c.inUse.Load() {
				c.Verdict()
			}
		case <-ctx.Done():
			return
		}
	}
}

// Probe probes the resolver now and returns the outcome. If ctx ends first, the
// outcome is that of a probe without an answer.
func (c *Checker) Probe(ctx context.Context) Probe {
	probe, _ := c.probeSince(ctx, time.Now())
	return probe
}

// probeSince returns the outcome of the last probe if it began at that time or
// later, or of a new one. It is false if ctx ends first.
func (c *Checker) probeSince(ctx context.Context, began time.Time) (Probe, bool) {
	p := &c.prober
	for {
		p.mu.Lock()
		if last := c.lastProbe(); !last.Began.Before(began) {
			p.mu.Unlock()
			return last, true
		}
		running := c.startProbe()
		p.mu.Unlock()
		select {
		case <-running:
		case <-ctx.Done():
			return Probe{}, false
		}
	}
}

// lastProbe returns the outcome of the last probe, if it was one of the
// resolver as it is configured now. The caller holds the mutex.
func (c *Checker) lastProbe() Probe {
	switch {
	case !c.resolver.TrustsAD(): // there is nothing to ask
		if c.inUse.Load() {
			c.logVerdict(NotBelieved)
		}
		return Probe{Verdict: NotBelieved, Began: time.Now()}
	case c.resolver.Generation() != c.prober.generation:
		return Probe{}
	}
	return c.prober.last
}

// startProbe starts a probe, unless one is under way. The caller holds the mutex.
func (c *Checker) startProbe() <-chan struct{} {
	p := &c.prober
	if p.running != nil {
		return p.running
	}
	done := make(chan struct{})
	p.running = done
	generation, probe := c.resolver.Generation(), Probe{Began: time.Now()}
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), probeTime)
		defer cancel()
		probe.Lookups, probe.Verdict = c.probe(ctx)
		c.lies.Store(probe.Verdict == FalseAD)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.last, p.generation, p.running = probe, generation, nil
		c.logVerdict(probe.Verdict)
		close(done)
	}()
	return done
}

// logVerdict logs a verdict unless the log has it. The caller holds the mutex.
func (c *Checker) logVerdict(v Verdict) {
	p := &c.prober
	if p.logged != nil && *p.logged == v {
		return
	}
	p.logged = &v
	switch {
	case v == Validates:
		c.log.Info("DNSSEC", "resolver", v.String())
	case v.proof():
		c.log.Error("DNSSEC: DANE maps fall back to MTA-STS, except for domains that had DANE", "resolver", v.String())
	default:
		c.log.Warn("DNSSEC", "resolver", v.String())
	}
}

// probe asks for all the names and says what follows. When it is clear that
// the resolver validates, the other names get a little more time.
func (c *Checker) probe(ctx context.Context) ([]*Lookup, Verdict) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	signed := len(c.prober.names.Signed)
	names := slices.Concat(c.prober.names.Signed, c.prober.names.Unsigned)
	lookups := make([]*Lookup, len(names))
	answered := make(chan int, len(names))
	for i, name := range names {
		go func() {
			lookups[i] = c.lookup(ctx, name, resolver.TypeSOA)
			answered <- i
		}()
	}
	var ad, noAD bool // on a signed name, on an unsigned one
	var settle *time.Timer
	for range names {
		i := <-answered
		ad = ad || i < signed && isSigned(lookups[i])
		noAD = noAD || i >= signed && lookups[i].Security == Insecure
		if ad && noAD && settle == nil {
			settle = time.AfterFunc(settleTime, cancel)
		}
	}
	return lookups, judge(lookups[:signed], lookups[signed:])
}

// judge draws the conclusion. Only answers count, and for a proof against the
// resolver, all names must have one.
func judge(signed, unsigned []*Lookup) Verdict {
	switch {
	case all(unsigned, func(l *Lookup) bool { return l.Security == Secure }):
		return FalseAD
	case all(signed, func(l *Lookup) bool { return l.Security == Insecure && l.found() }):
		return NoAD
	case slices.ContainsFunc(signed, isSigned):
		return Validates
	}
	return NoVerdict
}

func isSigned(l *Lookup) bool { return l.Security == Secure && l.found() }

// all says whether there are lookups, and f holds for each.
func all(lookups []*Lookup, f func(*Lookup) bool) bool {
	return len(lookups) > 0 && !slices.ContainsFunc(lookups, func(l *Lookup) bool { return !f(l) })
}
