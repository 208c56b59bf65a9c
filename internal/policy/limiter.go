package policy

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
)

// The bounds of the gate at which one waits, beside those of an address and of
// all fetches: who has one network, of as many addresses as he likes, must not
// be able to take all places, nor all that wait for one.
const (
	maxAtNetwork = 64  // fetches at once at one network: a /24 of IPv4, a /48 of IPv6
	maxWaiting   = 512 // that wait at one network; one more is busy at once
)

// An AddressLimiter bounds how many fetches there are at once at one address
// of policy hosts: their names are always their own, their addresses are not.
// An IPv6 address counts as its /64. It remembers the addresses and networks in
// use and nothing else, so its size is bounded by the number of fetches under
// way.
type AddressLimiter struct {
	max   int
	mu    sync.Mutex
	slots map[netip.Prefix]*slots // of addresses and of networks: their lengths differ
}

// slots are the places at one address or network.
type slots struct {
	prefix netip.Prefix
	taken  chan struct{} // holds one element for each place taken
	users  int           // who holds a place, or waits here or on the way here; guarded by AddressLimiter.mu
}

// NewAddressLimiter returns a limiter with max places at each address, at
// least one.
func NewAddressLimiter(max int) *AddressLimiter {
	return &AddressLimiter{max: atLeastOne(max), slots: make(map[netip.Prefix]*slots)}
}

// NonWaiting returns the gate that answers ErrBusy where no place at the
// address is free.
func (l *AddressLimiter) NonWaiting() Gate { return nonWaiting{l} }

// Waiting returns the gate at which one waits for a place, until the context
// ends; then the error is ErrBusy. It has a total of places, at least one; the
// places at a network are its own, too. They are taken in the order address,
// network, total, so that whoever waits holds nothing that others need who are
// going elsewhere.
func (l *AddressLimiter) Waiting(total int) Gate {
	return waiting{limiter: l, total: make(chan struct{}, atLeastOne(total))}
}

func atLeastOne(n int) int { return max(n, 1) }

type nonWaiting struct{ limiter *AddressLimiter }

func (g nonWaiting) Acquire(_ context.Context, addr netip.Addr) (release func(), err error) {
	s, _ := g.limiter.enter(prefixOf(addr, 32, 64), g.limiter.max)
	select {
	case s.taken <- struct{}{}:
	default:
		g.limiter.leave(s)
		return nil, fmt.Errorf("%w at %s", ErrBusy, addr)
	}
	return sync.OnceFunc(func() {
		<-s.taken
		g.limiter.leave(s)
	}), nil
}

type waiting struct {
	limiter *AddressLimiter
	total   chan struct{}
}

func (g waiting) Acquire(ctx context.Context, addr netip.Addr) (release func(), err error) {
	l := g.limiter
	network, users := l.enter(prefixOf(addr, 24, 48), maxAtNetwork)
	if users > maxAtNetwork+maxWaiting {
		l.leave(network)
		return nil, fmt.Errorf("%w in the network %s", ErrBusy, network.prefix)
	}
	address, _ := l.enter(prefixOf(addr, 32, 64), l.max)
	var held []chan struct{}
	release = func() {
		for _, taken := range held {
			<-taken
		}
		l.leave(address)
		l.leave(network)
	}
	for _, place := range []struct {
		taken chan struct{}
		where string
	}{
		{address.taken, "at " + addr.String()},
		{network.taken, "in the network " + network.prefix.String()},
		{g.total, fmt.Sprintf("in all (%d)", cap(g.total))},
	} {
		if err := take(ctx, place.taken); err != nil {
			release()
			return nil, fmt.Errorf("%w %s: waited in vain: %w", ErrBusy, place.where, err)
		}
		held = append(held, place.taken)
	}
	return sync.OnceFunc(release), nil
}

// take waits for a place until ctx ends.
func take(ctx context.Context, places chan struct{}) error {
	select {
	case places <- struct{}{}:
		if ctx.Err() == nil {
			return nil
		}
		<-places // both happened at once, and it is too late to use the place
	case <-ctx.Done():
	}
	return ctx.Err()
}

// enter returns the slots of a prefix, of which there are so many if nobody is
// there yet, and how many there are with the one who enters.
func (l *AddressLimiter) enter(prefix netip.Prefix, places int) (s *slots, users int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s = l.slots[prefix]
	if s == nil {
		s = &slots{prefix: prefix, taken: make(chan struct{}, places)}
		l.slots[prefix] = s
	}
	s.users++
	return s, s.users
}

func (l *AddressLimiter) leave(s *slots) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.users--; s.users == 0 {
		delete(l.slots, s.prefix)
	}
}

// prefixOf returns what an address counts as: its first bits, of which there
// are so many for each family.
func prefixOf(addr netip.Addr, bits4, bits6 int) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := bits4
	if addr.Is6() {
		bits = bits6
	}
	prefix, err := addr.Prefix(bits)
	if err != nil {
		// The zero Addr: all of them share one place, whose key must differ
		// from that of their network, as for all others.
		return netip.PrefixFrom(netip.IPv6Unspecified(), bits4)
	}
	return prefix
}
