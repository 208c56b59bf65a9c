package dane

import (
	"context"
	"sync"
	"time"

	"github.com/miekg/dns"
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
// configured now, and sees to it that there is a new one when it is time. It
// does not wait.
func (c *Checker) Verdict() Probe {
	if !c.resolver.TrustsAD() {
		return c.notBelieved()
	}
	p := &c.prober
	p.mu.Lock()
	defer p.mu.Unlock()
	last := p.last
	if c.resolver.Generation() != p.generation {
		last = Probe{}
	}
	again := probeRetry
	if last.Verdict == Validates {
		again = probeEvery
	}
	if last.When.IsZero() || time.Since(last.When) >= again {
		c.probing()
	}
	return last
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
	if !ended(ctx, done) {
		return Probe{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.generation != c.resolver.Generation() {
		return Probe{}
	}
	return p.last
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
	generation := c.resolver.Generation()
	go func() {
		defer close(done)
		ctx, cancel := context.WithTimeout(context.Background(), probeTime)
		defer cancel()
		lookups, verdict := c.probe(ctx)
		p.mu.Lock()
		defer p.mu.Unlock()
		c.say(verdict)
		p.last = Probe{Verdict: verdict, When: time.Now(), Lookups: lookups}
		p.generation, p.running = generation, nil
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
		c.log.Error("DNSSEC: maps with DANE answer as those without", "resolver", v.String())
	default:
		c.log.Warn("DNSSEC", "resolver", v.String())
	}
}

// probe asks for all the names and says what follows.
func (c *Checker) probe(ctx context.Context) ([]*Lookup, Verdict) {
	names := append(append([]string(nil), c.prober.names.Signed...), c.prober.names.Unsigned...)
	lookups := make([]*Lookup, len(names))
	var working sync.WaitGroup
	for i, name := range names {
		working.Go(func() { lookups[i] = c.lookup(ctx, name, dns.TypeSOA) })
	}
	working.Wait()
	n := len(c.prober.names.Signed)
	return lookups, judge(lookups[:n], lookups[n:])
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
