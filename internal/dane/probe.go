package dane

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// A Verdict is what a probe says of the resolver.
type Verdict uint8

// The verdicts. The zero value is that of a probe that got no answer.
const (
	NoVerdict   Verdict = iota // no answer: nothing is known
	Validates                  // AD on a signed name
	NoAD                       // none on any of the signed names, although they were answered
	FalseAD                    // AD on names that are not signed: it vouches for anything
	NotBelieved                // the resolver's AD bit is not to be believed
)

func (v Verdict) String() string {
	switch v {
	case Validates:
		return "the resolver validates"
	case NoAD:
		return "the resolver does not validate: answers for signed names come without the AD bit"
	case FalseAD:
		return "the resolver does not validate: answers for unsigned names come with the AD bit"
	case NotBelieved:
		return "the resolver's AD bit is not believed: it is not on this machine, and neither resolv.conf nor [dns] trust_ad says to"
	}
	return "the probe of the resolver got no answer"
}

// proof says whether the verdict proves that answers cannot be authenticated.
func (v Verdict) proof() bool { return v == NoAD || v == FalseAD || v == NotBelieved }

// ProbeNames are the names that a probe asks for, all of them for their SOA
// record.
type ProbeNames struct {
	Signed   []string
	Unsigned []string
}

// DefaultProbeNames returns names of the public DNS. The root and two of the
// oldest signed domains must all come without AD before we conclude from it: a
// resolver with its own copy of the root serves that one without. home.arpa
// and 10.in-addr.arpa are unsigned by their specification, for good (RFC 8375;
// RFC 6303), which cannot be said of any public domain.
func DefaultProbeNames() ProbeNames {
	return ProbeNames{
		Signed:   []string{".", "com", "org"},
		Unsigned: []string{"home.arpa", "10.in-addr.arpa"},
	}
}

// A Probe is the outcome of a probe.
type Probe struct {
	Verdict Verdict
	When    time.Time // zero: there was none yet
	Lookups []*Lookup // the questions asked

	began time.Time
}

// A prober keeps the last outcome.
type prober struct {
	names ProbeNames

	mu         sync.Mutex
	last       Probe
	generation uint64        // of the resolver, when the last probe began
	running    chan struct{} // closed when the one at work is done; nil if none is
	said       Verdict       // what the log has last
	saidAny    bool
}

// Verdict returns the outcome of the last probe of the resolver as it is
// configured now, and sees to it that there is a new one when it is time: from
// then on, Run does too. It does not wait.
func (c *Checker) Verdict() Probe {
	c.inUse.Store(true)
	if !c.resolver.TrustsAD() {
		return c.notBelieved()
	}
	p := &c.prober
	p.mu.Lock()
	defer p.mu.Unlock()
	last := c.lastProbe()
	again := probeRetry
	if last.Verdict == Validates {
		again = probeEvery
	}
	if last.When.IsZero() || time.Since(last.When) >= again {
		c.probing()
	}
	return last
}

// Run keeps what is known of the resolver new until ctx ends, once Verdict has
// been called for the first time: a resolv.conf that changes, and a probe that
// failed, do not wait for the next lookup.
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

// lastProbe returns the outcome of the last probe, if it was one of the
// resolver as it is configured now. The caller holds the mutex.
func (c *Checker) lastProbe() Probe {
	if c.resolver.Generation() != c.prober.generation {
		return Probe{}
	}
	return c.prober.last
}

// recent returns the outcome of a probe that began at most probeRetry ago, if
// need be of a new one. When ctx ends first, it is that of a probe without an
// answer.
func (c *Checker) recent(ctx context.Context) Probe {
	if !c.resolver.TrustsAD() {
		return c.notBelieved()
	}
	p := &c.prober
	p.mu.Lock()
	if last := c.lastProbe(); !last.When.IsZero() && time.Since(last.began) < probeRetry {
		p.mu.Unlock()
		return last
	}
	done := c.probing()
	p.mu.Unlock()
	return c.awaitProbe(ctx, done)
}

// Probe asks the resolver whether it validates, now, and returns the outcome: a
// probe that is at work already may have seen it before it changed, and is
// waited for, but does not count. When ctx ends first, or the resolver is
// another one in the end, it is that of a probe without an answer.
func (c *Checker) Probe(ctx context.Context) Probe {
	if !c.resolver.TrustsAD() {
		return c.notBelieved()
	}
	p := &c.prober
	p.mu.Lock()
	earlier := p.running
	p.mu.Unlock()
	if earlier != nil && !ended(ctx, earlier) {
		return Probe{}
	}
	p.mu.Lock()
	done := c.probing()
	p.mu.Unlock()
	return c.awaitProbe(ctx, done)
}

// awaitProbe waits until the probe at work is done, and returns its outcome.
// When ctx ends first, it is that of a probe without an answer.
func (c *Checker) awaitProbe(ctx context.Context, done <-chan struct{}) Probe {
	if !ended(ctx, done) {
		return Probe{}
	}
	c.prober.mu.Lock()
	defer c.prober.mu.Unlock()
	return c.lastProbe()
}

// vouched says whether the last probe began at that time or later, and found a
// resolver that validates.
func (c *Checker) vouched(since time.Time) bool {
	c.prober.mu.Lock()
	defer c.prober.mu.Unlock()
	p := c.lastProbe()
	return p.Verdict == Validates && !p.began.Before(since)
}

// ended waits until done is closed, and is false if ctx ends first.
func ended(ctx context.Context, done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	}
}

// notBelieved is the outcome where there is nothing to ask.
func (c *Checker) notBelieved() Probe {
	c.prober.mu.Lock()
	defer c.prober.mu.Unlock()
	c.say(NotBelieved)
	return Probe{Verdict: NotBelieved, When: time.Now()}
}

// probing starts a probe, unless one is at work, and returns what is closed at
// its end. The caller holds the mutex.
func (c *Checker) probing() <-chan struct{} {
	p := &c.prober
	if p.running != nil {
		return p.running
	}
	done := make(chan struct{})
	p.running = done
	generation, began := c.resolver.Generation(), time.Now()
	go func() {
		probe := Probe{began: began}
		defer func() {
			if v := recover(); v != nil {
				c.survived("probe", v)
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			probe.When = time.Now()
			p.last, p.generation, p.running = probe, generation, nil
			c.say(probe.Verdict)
			close(done)
		}()
		ctx, cancel := context.WithTimeout(context.Background(), probeTime)
		defer cancel()
		probe.Lookups, probe.Verdict = c.probe(ctx)
		if probe.Verdict == FalseAD {
			c.doubt()
		}
	}()
	return done
}

// say logs a verdict that is another than the last one. The caller holds the
// mutex.
func (c *Checker) say(v Verdict) {
	p := &c.prober
	if p.saidAny && p.said == v {
		return
	}
	p.said, p.saidAny = v, true
	switch {
	case v == Validates:
		c.log.Info("DNSSEC", "resolver", v.String())
	case v.proof():
		c.log.Error("DNSSEC: maps with DANE answer as those without, but for next-hops that had DANE before: those keep it", "resolver", v.String())
	default:
		c.log.Warn("DNSSEC", "resolver", v.String())
	}
}

// probe asks for all the names and says what follows. Next-hops may wait for
// it: once it is decided that the resolver validates, the rest gets a little
// more time.
func (c *Checker) probe(ctx context.Context) ([]*Lookup, Verdict) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	names := append(append([]string(nil), c.prober.names.Signed...), c.prober.names.Unsigned...)
	lookups := make([]*Lookup, len(names))
	signed := len(c.prober.names.Signed)
	var yes, no sync.Once // a signed name with AD, an unsigned one without
	var left atomic.Int32
	left.Store(2)
	decided := func() {
		if left.Add(-1) == 0 {
			time.AfterFunc(settleTime, cancel)
		}
	}
	var working sync.WaitGroup
	for i, name := range names {
		working.Go(func() {
			l := c.lookupSafely(ctx, name, resolver.TypeSOA)
			lookups[i] = l
			switch {
			case i < signed && l.Security == Secure && l.found():
				yes.Do(decided)
			case i >= signed && l.Security == Insecure:
				no.Do(decided)
			}
		})
	}
	working.Wait()
	return lookups, judge(lookups[:signed], lookups[signed:])
}

// lookupSafely is lookup, and has no answer when that panics.
func (c *Checker) lookupSafely(ctx context.Context, name string, qtype resolver.Type) (l *Lookup) {
	defer func() {
		if v := recover(); v != nil {
			c.survived("probe", v)
			l = &Lookup{Name: name, Type: qtype, Err: errBrokeOff}
		}
	}()
	return c.lookup(ctx, name, qtype)
}

// judge draws the conclusion. Only what was answered counts, and for a proof
// against the resolver, all of it has to.
func judge(signed, unsigned []*Lookup) Verdict {
	if all(unsigned, func(l *Lookup) bool { return l.Security == Secure }) {
		return FalseAD
	}
	if all(signed, func(l *Lookup) bool { return l.Security == Insecure && l.found() }) {
		return NoAD
	}
	for _, l := range signed {
		if l.Security == Secure && l.found() {
			return Validates
		}
	}
	return NoVerdict
}

// all says whether there are lookups, and f holds for each.
func all(lookups []*Lookup, f func(*Lookup) bool) bool {
	for _, l := range lookups {
		if !f(l) {
			return false
		}
	}
	return len(lookups) > 0
}
