package dane

import (
	"context"
	"sync"
	"time"
)

// An entry is the place of a next-hop in memory. It is guarded by the
// Checker's mutex.
type entry struct {
	hop   *hop   // never nil, never changed
	check *check // under way; nil if none is
}

// A hop is what is held of a next-hop: the last finding and what outlives it.
type hop struct {
	finding    Finding
	hosts      []*Host // without their lookups; those that the policy did not list are HostUnlisted
	protection protection
	logged     State // the log has the hosts that are lost in this state
}

// A check is one under way. Its hop is there when done is closed; nil if the
// check panicked.
type check struct {
	done chan struct{}
	hop  *hop
}

// fits says whether the finding was made for the hosts that are listed now.
func (h *hop) fits(listed func(string) bool) bool {
	for _, host := range h.hosts {
		if listed(host.Name) != (host.State != HostUnlisted) {
			return false
		}
	}
	return true
}

// Check returns what DANE says of a next-hop, and of those of its MX hosts that
// are listed: what is held, or what a check finds, which is shared by all who
// ask meanwhile. If ctx ends first, the check goes on, and the finding is
// Undecided. Listed gets names in lower case, without a trailing dot.
func (c *Checker) Check(ctx context.Context, n NextHop, listed func(host string) bool) Finding {
	n = n.normal()
	waited := false
	for {
		h, under := c.held(n)
		if time.Now().Before(h.finding.Until) && h.fits(listed) {
			return h.found(waited)
		}
		waited = true
		if under == nil {
			release, ok := c.turns.take(ctx, n.Host)
			if !ok {
				return Finding{Why: "too many DANE checks are under way", Waited: true}
			}
			under = c.start(ctx, n, listed, h, release)
		}
		select {
		case <-under.done:
		case <-ctx.Done():
			return Finding{Why: "the DANE lookups took too long", Waited: true}
		}
		switch {
		case under.hop == nil:
			return Finding{Why: errPanic.Error(), Waited: true}
		case under.hop.fits(listed):
			return under.hop.found(true)
		}
	}
}

func (h *hop) found(waited bool) Finding {
	f := h.finding
	f.Waited = waited
	return f
}

// held returns what is held of a next-hop, and the check under way.
func (c *Checker) held(n NextHop) (*hop, *check) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.hops.Get(n); ok {
		return e.hop, e.check
	}
	return new(hop), nil
}

// start starts a check, which calls release at its end. If another check has
// begun or ended since seen was held, it returns that one.
func (c *Checker) start(ctx context.Context, n NextHop, listed func(string) bool, seen *hop, release func()) *check {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.hops.Get(n)
	if !ok {
		e = &entry{hop: seen}
		c.hops.Add(n, e)
	}
	old := e.hop
	run := &check{done: make(chan struct{})}
	switch {
	case e.check != nil:
		release()
		return e.check
	case old != seen && time.Now().Before(old.finding.Until):
		release()
		run.hop = old
		close(run.done)
		return run
	}
	e.check = run
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTime)
	go func() {
		defer release()
		defer cancel()
		defer func() {
			if v := recover(); v != nil {
				c.recovered("check", v)
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			e.check = nil
			if run.hop != nil {
				e.hop = run.hop
			}
			close(run.done)
		}()
		found := c.find(ctx, n, listed, old)
		c.counts[found.finding.State].Add(1)
		run.hop = found
	}()
	return run
}

// Findings returns what is held of the next-hops with this host or domain, and
// still counts. It asks nothing.
func (c *Checker) Findings(host string) map[NextHop]Finding {
	found := make(map[NextHop]Finding)
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.hops.Keys() {
		if n.Host != host {
			continue
		}
		if e, ok := c.hops.Peek(n); ok && now.Before(e.hop.finding.Until) {
			found[n] = e.hop.finding
		}
	}
	return found
}

// turns bound the checks and MX lookups under way, in all and for a domain.
type turns struct {
	all     chan struct{}
	mu      sync.Mutex
	domains map[string]*domainTurns
}

type domainTurns struct {
	taken chan struct{}
	users int // under way and waiting
}

// take waits for a turn, and is false if ctx ends first. Whoever waits for a
// turn of the domain holds no other.
func (t *turns) take(ctx context.Context, domain string) (release func(), ok bool) {
	t.mu.Lock()
	d := t.domains[domain]
	if d == nil {
		d = &domainTurns{taken: make(chan struct{}, maxDomainChecks)}
		t.domains[domain] = d
	}
	d.users++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if d.users--; d.users == 0 {
			delete(t.domains, domain)
		}
	}
	select {
	case d.taken <- struct{}{}:
	case <-ctx.Done():
		leave()
		return nil, false
	}
	select {
	case t.all <- struct{}{}:
	case <-ctx.Done():
		<-d.taken
		leave()
		return nil, false
	}
	return func() { <-t.all; <-d.taken; leave() }, true
}
