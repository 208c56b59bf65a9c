package keeper

import (
	"context"
	"sync"
)

// flights are the discoveries and refreshes under way: one a domain at a time.
type flights struct {
	mu       sync.Mutex
	byDomain map[string]*flight
}

// A flight is one of them. Its results are set before done is closed.
type flight struct {
	done  chan struct{}
	tried bool   // something was asked of the network; otherwise the flight says nothing
	entry *Entry // the live policy; nil if there is none
	err   error  // ErrNoPolicy or ErrUnreadable, where entry is nil

	outcome Refreshed // for the administrator
}

// join returns the flight of a domain, and whether it was begun by this call:
// then the caller must end it.
func (f *flights) join(domain string) (*flight, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.byDomain[domain]; fl != nil {
		return fl, false
	}
	if f.byDomain == nil {
		f.byDomain = make(map[string]*flight)
	}
	fl := &flight{done: make(chan struct{}), err: ErrNoPolicy}
	f.byDomain[domain] = fl
	return fl, true
}

// alone begins a flight of a domain once none is under way. It returns nil if
// ctx ends before.
func (f *flights) alone(ctx context.Context, domain string) *flight {
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

func (f *flights) end(domain string, fl *flight) {
	f.mu.Lock()
	delete(f.byDomain, domain)
	f.mu.Unlock()
	close(fl.done)
}

func (f *flights) length() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.byDomain)
}
