package dane

import (
	"context"
	"hash/maphash"
	"time"
)

// An entry is the place of a next-hop, guarded by the Checker's mutex.
type entry struct {
	hop     *hop          // never nil, never changed
	running chan struct{} // closed at the end of the check under way; nil if there is none
}

// A hop is a next-hop in memory: the last finding and the protection, which outlives
// findings.
type hop struct {
	finding    Finding
	hosts      []*Host // without their lookups; those that the policy did not list are HostUnlisted
	protection protection
	logged     State // the state for which the log already names the lost hosts
}

// doubtful says whether only the resolver's AD bit supports the finding.
func (h *hop) doubtful() bool { return h.finding.State.protects() && !h.protection.vouched }

// fits says whether the finding was made for the hosts that are listed now.
func (h *hop) fits(listed func(string) bool) bool {
	for _, host := range h.hosts {
		if listed(host.Name) != (host.State != HostUnlisted) {
			return false
		}
	}
	return true
}

// Check returns the DANE finding for a next-hop and its listed MX hosts, from memory
// or from a check that all callers of the next-hop share. If ctx ends first, the
// finding is Undecided and the check goes on. listed gets names in lower case,
// without a trailing dot.
func (c *Checker) Check(ctx context.Context, n NextHop, listed func(host string) bool) Finding {
	n = n.normal()
	for waited := false; ; waited = true {
		h, running := c.held(n)
		doubted := c.lies.Load() && h.doubtful() && !waited // a check has then judged the resolver anew
		if time.Now().Before(h.finding.Until) && h.fits(listed) && !doubted {
			f := h.finding
			f.Waited = waited
			return f
		}
		if running == nil {
			release, ok := c.turns.take(ctx, n.Host)
			if !ok {
				return Finding{Why: "too many DANE checks are under way", Waited: true}
			}
			running = c.start(ctx, n, listed, h, release)
		}
		select {
		case <-running:
		case <-ctx.Done():
			return Finding{Why: "the DANE lookups took too long", Waited: true}
		}
	}
}

// held returns what is held of a next-hop, and the check under way.
func (c *Checker) held(n NextHop) (h *hop, running <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.hops.Get(n); ok {
		return e.hop, e.running
	}
	return new(hop), nil
}

// start starts a check, unless another check has begun or ended since seen was read.
func (c *Checker) start(ctx context.Context, n NextHop, listed func(string) bool, seen *hop, release func()) (running <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.hops.Get(n)
	if !ok {
		e = &entry{hop: seen}
		c.hops.Add(n, e)
	}
	done := make(chan struct{})
	switch {
	case e.running != nil:
		release()
		return e.running
	case e.hop != seen:
		release()
		close(done)
		return done
	}
	e.running = done
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTime)
	go func() {
		defer release()
		defer cancel()
		found := c.find(ctx, n, listed, seen)
		c.counts[found.finding.State].Add(1)
		c.mu.Lock()
		defer c.mu.Unlock()
		e.hop, e.running = found, nil
		close(done)
	}()
	return done
}

// Findings returns the findings in memory for next-hops with this host or domain.
func (c *Checker) Findings(host string) map[NextHop]Finding {
	found := make(map[NextHop]Finding)
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.hops.Keys() {
		if e, ok := c.hops.Peek(n); ok && n.Host == host && now.Before(e.hop.finding.Until) {
			found[n] = e.hop.finding
		}
	}
	return found
}

// turns bound the checks and MX lookups under way: in all, and for the domains
// with one hash, so that one domain with many ports cannot take them all.
type turns struct {
	all     chan struct{}
	seed    maphash.Seed
	domains [1024]chan struct{}
}

func newTurns() *turns {
	t := &turns{all: make(chan struct{}, maxChecks), seed: maphash.MakeSeed()}
	for i := range t.domains {
		t.domains[i] = make(chan struct{}, maxDomainChecks)
	}
	return t
}

// take waits for a turn, and is false if ctx ends first.
func (t *turns) take(ctx context.Context, domain string) (release func(), ok bool) {
	ofDomain := t.domains[maphash.String(t.seed, domain)%uint64(len(t.domains))]
	select {
	case ofDomain <- struct{}{}:
	case <-ctx.Done():
		return nil, false
	}
	select {
	case t.all <- struct{}{}:
		return func() { <-t.all; <-ofDomain }, true
	case <-ctx.Done():
		<-ofDomain
		return nil, false
	}
}
