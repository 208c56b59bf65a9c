package keeper

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"golang.org/x/net/publicsuffix"
)

// errEvicted ends a question or a fetch that makes room for a newer one.
var errEvicted = fmt.Errorf("%w: ended after long, to make room for another", policy.ErrBusy)

// A limiter decides who may use the network. A fetch from a policy host needs a
// place at the host's address, at its network, and in all. It takes the narrow
// place first and holds no wide one while it waits.
type limiter struct {
	most    int // places in all
	mu      sync.Mutex
	bounds  map[string]*bound // those in use
	waiting int
}

// A bound is a number of places: at an address, at a network, or in all. Visits
// that have lasted long are old. They count apart; where more than spare of them
// hold places that others wait for, the oldest one ends.
type bound struct {
	name               string
	young, most, spare int // visits that are not old at most; all visits at most
	taken              int // by visits that are not old
	old                []*visit
	queue              []chan struct{} // each is closed when a place was given
}

// A visit is a fetch or a question that holds places, or waits for them.
type visit struct {
	oldAfter time.Duration
	evict    func()       // ends it
	waited   *atomic.Bool // set if it had to wait
	places   []*bound
	old      bool
}

func newLimiter(most int) *limiter { return &limiter{most: most, bounds: make(map[string]*bound)} }

// acquire takes a place in each of the bounds, and waits for places until ctx ends.
// The error wraps policy.ErrBusy.
func (l *limiter) acquire(ctx context.Context, v *visit, bounds ...bound) (release func(), err error) {
	for i := range bounds {
		if !l.take(ctx, v, &bounds[i]) {
			l.leave(v)
			return nil, fmt.Errorf("%w %s (%d)", policy.ErrBusy, bounds[i].name, bounds[i].most)
		}
	}
	if v.oldAfter == 0 {
		l.age(v)
		return func() { l.leave(v) }, nil
	}
	timer := time.AfterFunc(v.oldAfter, func() { l.age(v) })
	return func() {
		timer.Stop()
		l.leave(v)
	}, nil
}

// take takes a place in the bound in use with the name of b, or in b itself.
func (l *limiter) take(ctx context.Context, v *visit, b *bound) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if used := l.bounds[b.name]; used != nil {
		b = used
	}
	l.bounds[b.name] = b
	given := make(chan struct{})
	b.queue = append(b.queue, given)
	b.admit()
	inTime := true
	if !isClosed(given) && l.waiting < maxWaiting {
		v.waited.Store(true)
		l.waiting++
		l.mu.Unlock()
		select {
		case <-given:
		case <-ctx.Done():
		}
		l.mu.Lock()
		l.waiting--
		inTime = ctx.Err() == nil
	}
	if !isClosed(given) {
		b.queue = slices.DeleteFunc(b.queue, func(c chan struct{}) bool { return c == given })
		l.drop(b)
		return false
	}
	v.places = append(v.places, b)
	return inTime
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// admit gives places to those that wait, first come first served.
func (b *bound) admit() {
	for len(b.queue) > 0 {
		switch {
		case b.taken < b.young && b.taken+len(b.old) < b.most:
			b.taken++
			close(b.queue[0])
			b.queue = b.queue[1:]
		case len(b.old) > b.spare:
			b.old[0].evict()
			b.old = b.old[1:]
		default:
			return
		}
	}
}

// age counts a visit among the old ones.
func (l *limiter) age(v *visit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v.old = true
	for _, b := range v.places {
		b.taken--
		b.old = append(b.old, v)
		b.admit()
	}
}

// leave gives the places of a visit back.
func (l *limiter) leave(v *visit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range v.places {
		if v.old {
			b.old = slices.DeleteFunc(b.old, func(o *visit) bool { return o == v })
		} else {
			b.taken--
		}
		b.admit()
		l.drop(b)
	}
	v.places = nil
}

// drop forgets a bound that nobody uses.
func (l *limiter) drop(b *bound) {
	if b.taken+len(b.old)+len(b.queue) == 0 && l.bounds[b.name] == b {
		delete(l.bounds, b.name)
	}
}

// A gate is the policy.Gate of one fetch.
type gate struct {
	*limiter
	within time.Duration // to wait for places at most; 0: not at all
	arrive func()        // called before it waits; may be nil
	evict  func()        // ends the fetch
	waited *atomic.Bool
}

// Acquire takes the places for a connection to an address. After slowFetch, the
// place at the address goes to another fetch, up to connectionsHost. In the wider
// bounds slow fetches keep at most half of the places while another fetch waits.
func (g *gate) Acquire(ctx context.Context, addr netip.Addr) (release func(), err error) {
	if g.arrive != nil {
		g.arrive()
	}
	ctx, cancel := context.WithTimeout(ctx, g.within)
	defer cancel()
	host, network := prefixOf(addr, 32, 64).String(), prefixOf(addr, 24, 48).String()
	return g.acquire(ctx, &visit{oldAfter: slowFetch, evict: g.evict, waited: g.waited},
		bound{name: "at " + host, young: fetchesAtHost, most: connectionsHost, spare: connectionsHost},
		bound{name: "in the network " + network, young: fetchesNetwork, most: fetchesNetwork, spare: fetchesNetwork / 2},
		bound{name: "in all", young: g.most, most: g.most, spare: g.most / 2})
}

// prefixOf returns what an address counts as: its first bits.
func prefixOf(addr netip.Addr, bits4, bits6 int) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := bits4
	if addr.Is6() {
		bits = bits6
	}
	prefix, _ := addr.Prefix(bits) // the bits fit the family
	return prefix
}

// ask takes the places of a discovery for its DNS questions. It does not wait: if
// there are too many, in all or below one registrable domain, the oldest is evicted.
func (l *limiter) ask(ctx context.Context, domain string, evict func(), waited *atomic.Bool) (done func(), err error) {
	registrable, err := publicsuffix.EffectiveTLDPlusOne(domain)
	if err != nil {
		registrable = domain // a public suffix itself
	}
	return l.acquire(ctx, &visit{evict: evict, waited: waited},
		bound{name: "below " + registrable, young: questionsPerDomain, most: questionsPerDomain},
		bound{name: "in all", young: l.most, most: l.most})
}
