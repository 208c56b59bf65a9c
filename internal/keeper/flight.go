package keeper

import (
	"context"
	"sync"
	"sync/atomic"
)

// flights are the discoveries, refreshes and changes under way, one per domain at a
// time. A flight ends when its record is on disk, so that the next one does not
// change an older record. Lookups may use its result before: while the disk is slow
// or full, they are answered from flights (the overlay).
type flights struct {
	mu       sync.Mutex
	byDomain map[string]*flight
}

// A flight is the work on one domain. Its results are set before done is closed.
type flight struct {
	domain string
	done   chan struct{} // closed when the results are there
	gone   chan struct{} // closed when another may begin
	tried  bool          // the network was asked; if not, the results mean nothing
	waited atomic.Bool   // the flight waited for a place of the limiter
	entry  *Entry        // the live policy; nil: there is none
	err    error         // for lookups; set if entry is nil
	change *change       // the change to be written; nil: none

	outcome Refreshed // for the administrator
}

// join returns the flight of a domain, and whether this call began it. The caller
// must end a flight that it began.
func (f *flights) join(domain string) (fl *flight, mine bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.byDomain[domain]; fl != nil {
		return fl, false
	}
	fl = &flight{domain: domain, done: make(chan struct{}), gone: make(chan struct{}), err: ErrOurFault}
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
		case <-fl.gone:
		case <-ctx.Done():
			return nil
		}
	}
}

// end publishes the results of a flight. The flight ends now, or once its change is
// on disk.
func (f *flights) end(fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(fl.done)
	f.remove(fl)
}

// written says that the change of a flight is on disk.
func (f *flights) written(fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(fl.change.onDisk)
	f.remove(fl)
}

func (f *flights) remove(fl *flight) {
	if isClosed(fl.done) && (fl.change == nil || isClosed(fl.change.onDisk)) {
		delete(f.byDomain, fl.domain)
		close(fl.gone)
	}
}

// pending returns the unwritten changes of domains after one domain and up to
// another. An empty upTo sets no bound.
func (f *flights) pending(after, upTo string) (found []*change) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for domain, fl := range f.byDomain {
		if domain > after && (upTo == "" || domain <= upTo) && isClosed(fl.done) && fl.change != nil {
			found = append(found, fl.change)
		}
	}
	return found
}

// changeOf returns the unwritten change of a domain, or nil.
func (f *flights) changeOf(domain string) *change {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.byDomain[domain]; fl != nil && isClosed(fl.done) {
		return fl.change
	}
	return nil
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
		select {
		case <-fl.gone:
		case <-ctx.Done():
			return fl, ctx.Err()
		}
	}
	return nil, ErrBrokenOff
}
