package policy

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
)

// A Gate is asked before a connection to an address is opened, and told when
// the connection is closed. Acquire may wait, until ctx ends at the latest. An
// error that wraps ErrBusy ends the attempt with ResultBusy. Release is called
// once.
type Gate interface {
	Acquire(ctx context.Context, addr netip.Addr) (release func(), err error)
}

// An AddressLimiter bounds how many fetches there are at once at one address
// of policy hosts: their names are always their own, their addresses are not.
// An IPv6 address counts as its /64. It remembers the addresses in use and
// nothing else, so its size is bounded by the number of fetches under way.
type AddressLimiter struct {
	max   int
	mu    sync.Mutex
	slots map[netip.Prefix]*addressSlots
}

// addressSlots are the places at one address.
type addressSlots struct {
	taken chan struct{} // holds one element for each place taken
	users int           // who holds or waits for a place; guarded by AddressLimiter.mu
}

// NewAddressLimiter returns a limiter with max places at each address, at
// least one.
func NewAddressLimiter(max int) *AddressLimiter {
	if max < 1 {
		max = 1
	}
	return &AddressLimiter{max: max, slots: make(map[netip.Prefix]*addressSlots)}
}

// Waiting returns the gate at which one waits for a place, until the context
// ends; then the error is ErrBusy.
func (l *AddressLimiter) Waiting() Gate { return gate{limiter: l, wait: true} }

// NonWaiting returns the gate that answers ErrBusy where no place is free.
// Both gates count the same places.
func (l *AddressLimiter) NonWaiting() Gate { return gate{limiter: l} }

type gate struct {
	limiter *AddressLimiter
	wait    bool
}

func (g gate) Acquire(ctx context.Context, addr netip.Addr) (release func(), err error) {
	key := limiterKey(addr)
	s := g.limiter.enter(key)
	select {
	case s.taken <- struct{}{}:
	default:
		if err := g.join(ctx, s); err != nil {
			g.limiter.leave(key, s)
			return nil, fmt.Errorf("%w (%s)", err, addr)
		}
	}
	return sync.OnceFunc(func() {
		<-s.taken
		g.limiter.leave(key, s)
	}), nil
}

func (g gate) join(ctx context.Context, s *addressSlots) error {
	if !g.wait {
		return ErrBusy
	}
	select {
	case s.taken <- struct{}{}:
		if ctx.Err() == nil {
			return nil
		}
		<-s.taken // both happened at once, and it is too late to use the place
	case <-ctx.Done():
	}
	return fmt.Errorf("%w: waited in vain: %w", ErrBusy, ctx.Err())
}

func (l *AddressLimiter) enter(key netip.Prefix) *addressSlots {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.slots[key]
	if s == nil {
		s = &addressSlots{taken: make(chan struct{}, l.max)}
		l.slots[key] = s
	}
	s.users++
	return s
}

func (l *AddressLimiter) leave(key netip.Prefix, s *addressSlots) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.users--; s.users == 0 {
		delete(l.slots, key)
	}
}

func limiterKey(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	key, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // the zero Addr: all of them share one key
	}
	return key
}
