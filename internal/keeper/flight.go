package keeper

import (
	"context"
	"sync"
)

// flights are the discoveries and refreshes under way: one a domain at a time.
type flights struct {
	mu       sync.Mutex
	byDomain map[string]*flight
	counted  int // of them, those that begin bounds
}

// A flight is one of them. Its results are set before done is closed.
type flight struct {
	done    chan struct{}
	counted bool   // by begin
	tried   bool   // something was asked of the network; otherwise the flight says nothing
	entry   *Entry // the live policy; nil if there is none
	err     error  // ErrNoPolicy, ErrUnreadable or ErrBrokenOff, where entry is nil

	outcome Refreshed // for the administrator
}

// join returns the flight of a domain, and whether it was begun by this call:
// then the caller must end it.
func (f *flights) join(domain string) (*flight, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.joinLocked(domain)
}

// begin is join for what anybody may cause: it returns nil where it would begin
// one more than most. Joining one that is under way costs nothing and is not
// bounded; what join begins is bounded by the slots of those who call it.
func (f *flights) begin(domain string, most int) (fl *flight, mine bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.counted >= most && f.byDomain[domain] == nil {
		return nil, false
	}
	fl, mine = f.joinLocked(domain)
	if mine {
		fl.counted = true
		f.counted++
	}
	return fl, mine
}

func (f *flights) joinLocked(domain string) (*flight, bool) {
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
	if fl.counted {
		f.counted--
	}
	f.mu.Unlock()
	close(fl.done)
}

func (f *flights) length() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.byDomain)
}
