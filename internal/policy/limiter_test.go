package policy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
)

// A crowd is at a gate: it is told who has come in.
type crowd struct {
	t    *testing.T
	ctx  context.Context
	gate Gate

	mu       sync.Mutex
	inside   []func() // their releases
	busy     []error
	everyone sync.WaitGroup
}

// come has n more go to addresses made of the format and their numbers, and
// returns when they are in, have given up, or wait.
func (c *crowd) come(n int, format string) {
	c.t.Helper()
	for i := range n {
		text := format
		if strings.Contains(format, "%") {
			text = fmt.Sprintf(format, i)
		}
		addr := netip.MustParseAddr(text)
		c.everyone.Go(func() {
			release, err := c.gate.Acquire(c.ctx, addr)
			c.mu.Lock()
			defer c.mu.Unlock()
			if err != nil {
				c.busy = append(c.busy, err)
				return
			}
			c.inside = append(c.inside, release)
		})
	}
	synctest.Wait()
}

// leave has all leave who are inside.
func (c *crowd) leave() {
	c.mu.Lock()
	out := c.inside
	c.inside = nil
	c.mu.Unlock()
	for _, release := range out {
		release()
	}
	synctest.Wait()
}

func (c *crowd) expect(what string, inside, busy int) {
	c.t.Helper()
	if len(c.inside) != inside || len(c.busy) != busy {
		c.t.Errorf("%s: %d are inside and %d gave up; want %d and %d", what, len(c.inside), len(c.busy), inside, busy)
	}
	for _, err := range c.busy {
		if !errors.Is(err, ErrBusy) {
			c.t.Errorf("%s: %v", what, err)
		}
	}
}

// atGate runs a test with a gate of a limiter with places at each address, and
// at the end has everybody leave.
func atGate(t *testing.T, places, total int, test func(t *testing.T, l *AddressLimiter, c *crowd)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := NewAddressLimiter(places)
		ctx, cancel := context.WithCancel(t.Context())
		c := &crowd{t: t, ctx: ctx, gate: l.Waiting(total)}
		test(t, l, c)
		cancel()
		c.everyone.Wait()
		c.leave()
		if len(l.slots) != 0 {
			t.Errorf("the limiter still holds %v", l.slots)
		}
	})
}

func TestWhoeverWaitsAtAnAddressHoldsNoneOfAllPlaces(t *testing.T) {
	atGate(t, 2, 3, func(t *testing.T, l *AddressLimiter, c *crowd) {
		c.come(300, "93.184.215.14")
		c.expect("at one address", 2, 0)
		c.come(1, "93.184.215.15")
		c.expect("at another", 3, 0)
		c.come(1, "93.184.215.16")
		c.expect("beyond the total", 3, 0)
		c.leave()
		c.expect("when all have left", 3, 0)
	})
}

func TestANetworkHasABoundOfItsOwn(t *testing.T) {
	for format, other := range map[string]string{
		"2a00:0:0:%x::1": "2a00:0:1::1", // in /64s of a /48
		"93.184.215.%d":  "93.184.216.1",
	} {
		atGate(t, 8, 256, func(t *testing.T, l *AddressLimiter, c *crowd) {
			c.come(200, format)
			c.expect(format, maxAtNetwork, 0)
			c.come(1, other)
			c.expect("in another network", maxAtNetwork+1, 0)
			// The refresher is not in their way, nor are they in its.
			release, err := l.NonWaiting().Acquire(c.ctx, netip.MustParseAddr(fmt.Sprintf(format, 201)))
			if err != nil {
				t.Fatalf("at an address that is free: %v", err)
			}
			release()
		})
	}
}

func TestOnlySoManyWaitAtOneNetwork(t *testing.T) {
	atGate(t, 8, 4096, func(t *testing.T, l *AddressLimiter, c *crowd) {
		const most = maxAtNetwork + maxWaiting
		c.come(most+10, "93.184.215.14")
		c.expect("at one address", 8, 10)
		c.come(10, "93.184.215.%d")
		c.expect("at others of its network", 8, 20)
		c.come(10, "93.184.216.%d")
		c.expect("in another one", 18, 20)
		c.leave()
		c.come(8, "93.184.215.15")
		c.expect("those who left made room", 16, 20)
	})
}

func TestAnEndedContextGetsNoPlaceEvenIfOneIsFree(t *testing.T) {
	atGate(t, 8, 8, func(t *testing.T, l *AddressLimiter, c *crowd) {
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		c.ctx = ended
		c.come(100, "93.184.215.14")
		c.expect("too late", 0, 100)
	})
}

func TestWhoeverWaitsAtTheGateIsLetInWhenAPlaceIsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limiter := NewAddressLimiter(0) // one, at least
		addr := netip.MustParseAddr("93.184.215.14")
		release, err := limiter.NonWaiting().Acquire(t.Context(), addr)
		if err != nil {
			t.Fatal(err)
		}
		entered := make(chan error)
		go func() {
			release, err := limiter.Waiting(9).Acquire(t.Context(), netip.MustParseAddr("::ffff:93.184.215.14"))
			if err == nil {
				release()
			}
			entered <- err
		}()
		synctest.Wait()
		select {
		case err := <-entered:
			t.Fatalf("it did not wait: %v", err)
		default:
		}
		release()
		if err := <-entered; err != nil {
			t.Error(err)
		}
		if len(limiter.slots) != 0 {
			t.Errorf("the limiter still holds %v", limiter.slots)
		}
	})
}

func TestIPv6AddressesCountByTheirNetwork(t *testing.T) {
	limiter := NewAddressLimiter(1)
	gate := limiter.NonWaiting()
	if _, err := gate.Acquire(t.Context(), netip.MustParseAddr("2a00::1")); err != nil {
		t.Fatal(err)
	}
	if _, err := gate.Acquire(t.Context(), netip.MustParseAddr("2a00::ffff:0:0:2")); !errors.Is(err, ErrBusy) {
		t.Errorf("the same /64: %v", err)
	}
	for _, addr := range []string{"2a00:0:0:1::1", "93.184.215.14", "93.184.215.15"} {
		if _, err := gate.Acquire(t.Context(), netip.MustParseAddr(addr)); err != nil {
			t.Errorf("%s: %v", addr, err)
		}
	}
}
