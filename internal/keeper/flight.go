package keeper

import (
	"context"
	"sync"
	"sync/atomic"
)

// flights are the discoveries, refreshes and changes under way: one a domain at a
// time. A flight ends when its change is on disk, or waits for it in memory: see
// writer.
type flights struct {
	mu       sync.Mutex
	byDomain map[string]*flight
}

// A flight is the work on one domain. Its results are set before done is closed.
type flight struct {
	domain string
	done   chan struct{} // closed when the results are there, and another may begin
	tried  bool          // the network was asked; otherwise the flight says nothing
	waited atomic.Bool   // for a place of ours
	entry  *Entry        // the live policy; nil: there is none
	err    error         // of a lookup, where entry is nil

	outcome Refreshed // for the administrator

	outside func() *Foreign // waits for the fleet's answer; nil: it is not asked
}

// found returns the fleet's policy, nil if there is none.
func (fl *flight) found() *Foreign {
	if fl.outside == nil {
		return nil
	}
	return fl.outside()
}

// join returns the flight of a domain, and whether this call began it. The caller
// must end a flight that it began.
func (f *flights) join(domain string) (fl *flight, mine bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.byDomain[domain]; fl != nil {
		return fl, false
	}
	fl = &flight{domain: domain, done: make(chan struct{}), err: ErrOurFault}
	f.byDomain[domain] = fl
	return fl, true
}

// beginExclusive begins a flight of a domain once none is under way. It returns
// nil if ctx ends before.
func (f *flights) beginExclusive(ctx context.Context, domain string) *flight {
	for {
		fl, mine := f.join(domain)
		if mine {
			return fl
		}
		select {
		case <-fl.done:
		case <-ctx.Done():
			return nil
		}
	}
}

// end makes the results of a flight known.
func (f *flights) end(fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.byDomain, fl.domain)
	close(fl.done)
}

func (f *flights) length() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.byDomain)
}

// runOrJoin starts do for a domain, or waits for the flight under way if that
// asks the network. It waits until ctx ends; do goes on after that, and ends its
// flight.
func (k *Keeper) runOrJoin(ctx context.Context, domain string, do func(*flight)) (*flight, error) {
	for k.life.Err() == nil {
		fl, mine := k.flights.join(domain)
		if mine {
			k.wg.Go(func() { do(fl) })
		}
		select {
		case <-fl.done:
		case <-ctx.Done():
			return fl, ctx.Err()
		case <-k.life.Done():
			return fl, ErrBrokenOff
		}
		if mine || fl.tried {
			return fl, nil
		}
	}
	return nil, ErrBrokenOff
}
