package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
)

// errNotKept: too much waits for the disk already.
var errNotKept = errors.New("too many policies wait for the disk")

// A writer brings records to the disk. Those that come at the same time share
// a commit. One that has to wait too long, since the disk is slow or full, is
// answered from here until it is written: it is late.
type writer struct {
	store Store
	log   *slog.Logger
	// committed is told of each batch that is on disk.
	committed func([]*pending, cache.WriteResult)
	// becameLate is told of a record that is from now on answered from here.
	becameLate func(*pending)

	mu     sync.Mutex
	queue  []*pending          // in the order in which they came
	byName map[string]*pending // the newest of each domain
	bytes  int
	wake   chan struct{} // somebody waits
	linger chan struct{} // there is something, which may wait for company

	lates   atomic.Int64 // late ones; spares lookups the lock
	failing atomic.Bool  // the last commit failed
	failed  atomic.Int64 // failed commits so far
}

// A pending is a record to be put, or a domain to be deleted.
type pending struct {
	domain string
	record *cache.Record // nil: delete
	entry  *Entry        // of the record
	lazy   bool          // nobody waits for it: it may share a later commit
	size   int
	done   chan struct{} // closed when it is on disk
	late   bool          // answered from here
	passed bool          // memory has a newer one, which found no room in the queue
}

func newWriter(store Store, log *slog.Logger) *writer {
	return &writer{
		store: store, log: log,
		committed:  func([]*pending, cache.WriteResult) {},
		becameLate: func(*pending) {},
		byName:     make(map[string]*pending),
		wake:       make(chan struct{}, 1),
		linger:     make(chan struct{}, 1),
	}
}

// write brings p to the disk, and returns when it is there or is answered
// from memory. errNotKept says that it is neither.
func (w *writer) write(p *pending) error {
	if err := w.enqueue(p); err != nil {
		return err
	}
	timer := time.NewTimer(commitWait)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		w.markLate(p)
	}
	return nil
}

// enqueue has p written, and does not wait for it.
func (w *writer) enqueue(p *pending) error {
	p.done = make(chan struct{})
	p.size = entryOverhead + len(p.domain)
	if p.record != nil {
		// One record that the store cannot take would keep all others from
		// the disk, at every try.
		if err := p.record.Storable(); err != nil {
			w.pass(p.domain)
			return err
		}
		p.size += len(p.record.Text) + len(p.record.Ready)
	}
	late, err := w.push(p)
	if late {
		w.becameLate(p)
	}
	return err
}

// push appends p to the queue. What is already answered from here must stay
// the newest: then p is late from the beginning.
func (w *writer) push(p *pending) (late bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	old := w.byName[p.domain]
	if len(w.queue) >= maxPending || w.bytes+p.size > maxPendingBytes {
		if old != nil {
			old.passed = true
		}
		return false, errNotKept
	}
	if old != nil && old.late {
		p.late = true
		w.lates.Add(1)
	}
	w.queue = append(w.queue, p)
	w.byName[p.domain] = p
	w.bytes += p.size
	c := w.wake
	if p.lazy && len(w.queue) < commitPolicies {
		c = w.linger
	}
	select {
	case c <- struct{}{}:
	default:
	}
	return p.late, nil
}

// pass notes that memory is about to have a newer version of a domain than
// the one that waits here.
func (w *writer) pass(domain string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := w.byName[domain]; p != nil {
		p.passed = true
	}
}

// whileNewest calls publish, which brings the callers' memory to p, unless
// that is at a newer version of the domain already: one that is late, or one
// for which the queue had no room. The lock is held meanwhile, so that no newer
// one becomes late between the look and the publishing. A p that is on disk
// was published then.
func (w *writer) whileNewest(p *pending, publish func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	newest := w.byName[p.domain]
	if p.passed || isClosed(p.done) || newest != nil && newest != p && (newest.late || newest.passed) {
		return
	}
	publish()
}

// late returns what is answered from here of a domain: an entry, or nil for
// one that is being deleted.
func (w *writer) late(domain []byte) (*Entry, bool) {
	if w.lates.Load() == 0 {
		return nil, false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := w.byName[string(domain)]; p != nil && p.late {
		return p.entry, true
	}
	return nil, false
}

// record returns the newest version of a domain that is not on disk yet.
func (w *writer) record(domain string) (r *cache.Record, found bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := w.byName[domain]; p != nil {
		return p.record, true
	}
	return nil, false
}

// markLate makes p late, unless it is on disk, and with it what came after it
// of the same domain: lookups are answered from the newest.
func (w *writer) markLate(p *pending) {
	var became []*pending
	w.mu.Lock()
	if !isClosed(p.done) {
		for _, q := range []*pending{p, w.byName[p.domain]} {
			if q != nil && !q.late {
				q.late = true
				w.lates.Add(1)
				became = append(became, q)
			}
		}
	}
	w.mu.Unlock()
	for _, q := range became {
		w.becameLate(q)
	}
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// run writes until ctx ends.
func (w *writer) run(ctx context.Context) {
	pause := commitRetryFirst
	for w.awaken(ctx) {
		for {
			err := w.commit()
			if errors.Is(err, errNothing) {
				break
			}
			if err == nil {
				pause = commitRetryFirst
				continue
			}
			if pause == commitRetryFirst { // one line, not one for each time
				w.log.Error("cannot write to the cache; new policies are kept in memory, and writing is tried again",
					"err", err, "pending", w.length(), "next", "see whether the disk is full, and who owns the cache's folder")
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			pause = min(2*pause, commitRetryMax)
		}
	}
}

// awaken waits until there is something to write. It is false when ctx ends.
func (w *writer) awaken(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-w.wake:
		return true
	case <-w.linger:
	}
	select {
	case <-ctx.Done():
		return false
	case <-w.wake:
	case <-time.After(commitLinger):
	}
	return true
}

// flush writes what is pending, for a few seconds at most.
func (w *writer) flush() error {
	deadline := time.Now().Add(finalCommits)
	for {
		err := w.commit()
		switch {
		case errors.Is(err, errNothing):
			return nil
		case err != nil:
			return fmt.Errorf("%d changes of the cache could not be written: %w", w.length(), err)
		case time.Now().After(deadline):
			return fmt.Errorf("%d changes of the cache were not written: no time left", w.length())
		}
	}
}

// length returns how many changes wait for the disk.
func (w *writer) length() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.queue)
}

var errNothing = errors.New("nothing to write")

// commit writes one batch from the head of the queue.
func (w *writer) commit() error {
	batch := w.batch()
	if len(batch) == 0 {
		return errNothing
	}
	ops := make([]cache.Op, len(batch))
	for i, p := range batch {
		if p.record != nil {
			ops[i].Put = p.record
		} else {
			ops[i].Delete = p.domain
		}
	}
	result, err := w.store.Write(ops)
	w.failing.Store(err != nil)
	if err != nil {
		w.failed.Add(1)
		for _, p := range batch {
			w.markLate(p)
		}
		return err
	}
	// The callers' memory is brought up to date before the late ones are let
	// go, so that no lookup sees an older policy in between.
	w.committed(batch, result)
	w.settle(batch)
	return nil
}

// batch returns the head of the queue, without removing it.
func (w *writer) batch() []*pending {
	w.mu.Lock()
	defer w.mu.Unlock()
	bytes := 0
	for i, p := range w.queue {
		bytes += p.size
		if i == commitPolicies || i > 0 && bytes > commitBytes {
			return append([]*pending(nil), w.queue[:i]...)
		}
	}
	return append([]*pending(nil), w.queue...)
}

// settle removes a batch that is on disk from the head of the queue.
func (w *writer) settle(batch []*pending) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range batch {
		w.bytes -= p.size
		if p.late {
			w.lates.Add(-1)
		}
		if w.byName[p.domain] == p {
			delete(w.byName, p.domain)
		}
		close(p.done)
	}
	n := copy(w.queue, w.queue[len(batch):])
	clear(w.queue[n:])
	w.queue = w.queue[:n]
}
