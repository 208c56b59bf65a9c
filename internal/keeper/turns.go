package keeper

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// What bounds discoveries: how many there are at all, in their DNS part, and at
// the gate to policy hosts.

// find asks for the record and then for the policy. The DNS part, up to the
// addresses of the policy host, has slots of its own: policy hosts that never
// answer do not keep the domains waiting that have no policy at all.
func (k *Keeper) find(ctx context.Context, domain string) (policy.Record, *policy.Fetched, error) {
	leave, err := k.turn(ctx, domain)
	if err != nil {
		return policy.Record{}, nil, err
	}
	defer leave()
	record, _, err := k.o.Network.Record(ctx, domain)
	if err != nil {
		return policy.Record{}, nil, err
	}
	found, err := k.o.Network.Fetch(ctx, domain, &entrance{k.lookupGate, k.o.LookupTimeout, leave})
	return record, found, err
}

// turn waits for a slot of the DNS part within the time of a lookup: when it is
// over, nobody waits for this discovery any more. leave may be called twice.
func (k *Keeper) turn(ctx context.Context, domain string) (leave func(), err error) {
	timer := time.NewTimer(k.o.LookupTimeout)
	defer timer.Stop()
	select {
	case k.dnsSlots <- struct{}{}:
		return sync.OnceFunc(func() { <-k.dnsSlots }), nil
	case <-timer.C:
	case <-ctx.Done():
	}
	return nil, k.tooMany(domain, cap(k.dnsSlots))
}

func (k *Keeper) tooMany(domain string, most int) error {
	return &policy.Error{Domain: domain, Result: policy.ResultBusy,
		Err: fmt.Errorf("too many discoveries at once (%d; [lookup] concurrency = %d)", most, k.o.LookupConcurrency)}
}

// An entrance is the lookups' gate for one discovery. Whoever comes to it knows
// the policy host's addresses, and gives the slot of the DNS part back before
// waiting for a place: a wait at one address must hold nothing that discoveries
// elsewhere need. It waits within the time of a lookup.
type entrance struct {
	policy.Gate
	within time.Duration
	leave  func()
}

func (e *entrance) Acquire(ctx context.Context, addr netip.Addr) (release func(), err error) {
	e.leave()
	ctx, cancel := context.WithTimeout(ctx, e.within)
	defer cancel()
	return e.Gate.Acquire(ctx, addr)
}

// turnAway is what comes of a lookup that would begin one discovery too many.
// It is not remembered: the next one may find room.
func (k *Keeper) turnAway(domain string, damaged bool) {
	err := k.tooMany(domain, maxFlights*k.o.LookupConcurrency)
	k.counters.overloads.Add(1)
	k.o.Observe(Event{Step: StepDiscovery, Domain: domain, Result: policy.ResultBusy, Err: err})
	n := &Negative{Domain: domain, Result: policy.ResultBusy, Err: policy.Reason(err), Until: time.Now(), damaged: damaged}
	k.logFailure(n)
}
