package keeper

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
)

// A writer brings changes to the disk. Those that come at the same time share a
// commit. What the disk does not take is tried again; meanwhile it counts, before
// what the store has.
type writer struct {
	mu      sync.Mutex
	changes map[string]*change // what waits for the disk, by domain
	queue   []*change          // the same, in its order
	bytes   int64              // of all of them
	wake    chan struct{}      // somebody waits for one

	begun   atomic.Int64 // when the commit under way began, Unix nanoseconds; 0: there is none
	failing atomic.Bool  // the last commit failed
	failed  atomic.Int64 // failed commits so far
	refused atomic.Int64 // when the store last had no room for a policy, Unix nanoseconds; 0: never
}

// A change is the newest record of a domain, which is to be stored.
type change struct {
	domain string
	record *cache.Record // nil: delete; it is not changed any more
	size   int64
	late   bool          // lookups are answered from it, before it is on disk
	onDisk chan struct{} // closed when it is
}

// Why a policy is not on disk.
const (
	waitsForDisk = "it waits for the disk"
	cacheIsFull  = "the cache is full, and a restart loses it: raise max_size in [cache]"
	notInFile    = "the cache file does not have it, and a restart loses it"
)

// errNotKept: too many changes wait for the disk.
var errNotKept = errors.New("too many changes wait for the disk")

// put has a record written, or a domain deleted if r is nil. It takes the place of
// what waits already of the domain. full says whether enough waits for a commit.
func (w *writer) put(domain string, r *cache.Record, late bool) (c *change, full bool, err error) {
	size := int64(overheadBytes)
	if r != nil {
		size += int64(len(r.Text) + len(r.Match))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if c = w.changes[domain]; c == nil {
		c = &change{domain: domain, onDisk: make(chan struct{})}
	}
	if grown := size - c.size; grown > 0 && w.bytes+grown > maxPendingBytes || c.size == 0 && len(w.queue) >= maxPending {
		return nil, false, errNotKept
	}
	if c.size == 0 {
		w.changes[domain], w.queue = c, append(w.queue, c)
	}
	w.bytes += size - c.size
	c.record, c.size, c.late = r, size, late || c.late && w.failing.Load()
	return c, len(w.queue) >= commitPolicies, nil
}

// pending returns what waits for the disk of a domain; ok is false where nothing
// does. late says whether lookups are answered from it.
func (w *writer) pending(domain []byte) (r *cache.Record, late, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c, ok := w.changes[string(domain)]
	if !ok {
		return nil, false, false
	}
	return c.record, c.late, true
}

// pendingAfter returns what waits for the disk, of the domains after one.
func (w *writer) pendingAfter(after string) map[string]*cache.Record {
	w.mu.Lock()
	defer w.mu.Unlock()
	found := make(map[string]*cache.Record)
	for domain, c := range w.changes {
		if domain > after {
			found[domain] = c.record
		}
	}
	return found
}

// write has a change written, and waits for the disk, but not for long. onDisk
// says whether it is there. A lazy change shares a later commit, and nobody waits
// for it.
func (k *Keeper) write(domain string, r *cache.Record, lazy bool) (onDisk bool, err error) {
	if r != nil {
		// A record that the store cannot take would keep all others from the disk.
		if err := r.Storable(); err != nil {
			return false, err
		}
	}
	w := &k.writer
	c, full, err := w.put(domain, r, lazy)
	if err == nil && (full || !lazy) {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
	if err != nil || lazy {
		return false, err
	}
	timer := time.NewTimer(commitWait)
	defer timer.Stop()
	select {
	case <-c.onDisk:
		return true, nil
	case <-timer.C:
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	c.late = true
	return false, nil
}

// store brings a record to the disk, or as near as it can.
func (k *Keeper) store(r *cache.Record, lazy bool) {
	onDisk, err := k.write(r.Domain, r, lazy)
	if onDisk || lazy && err == nil {
		return
	}
	if err == nil {
		k.remembered(r, waitsForDisk)
		return
	}
	k.remembered(r, err.Error()+", and a restart loses it")
	k.counters.add(&k.counters.NotKept, 1)
	if k.mayLog(k.heldLines) {
		k.o.Log.Error("an MTA-STS policy could not be written; it is answered from memory", "domain", r.Domain, "err", err,
			"next", "it is discovered again after a restart")
	}
}

// remembered replaces the entry of the domain in memory. Without one, it adds an
// entry only if the record is not on disk. unstored says why; empty: it is.
func (k *Keeper) remembered(r *cache.Record, unstored string) {
	e := k.entryOf(r)
	e.unstored = unstored
	k.negative.drop(e.hash)
	k.memory.replace(e)
}

// runWriter writes until ctx ends, and then for a few seconds what is left. Lazy
// changes wait for commitEvery.
func (k *Keeper) runWriter(ctx context.Context) error {
	tick := time.NewTicker(commitEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-k.writer.wake:
		case <-tick.C:
		}
		_ = k.commitAll(ctx)
	}
	last, cancel := context.WithTimeout(context.Background(), finalCommits)
	defer cancel()
	return k.commitAll(last)
}

// commitAll writes all that waits. What cannot be written is tried again until ctx
// ends.
func (k *Keeper) commitAll(ctx context.Context) error {
	w := &k.writer
	for {
		left, err := k.commit()
		if err != nil {
			if !w.failing.Swap(true) { // one line, not one for each time
				k.o.Log.Error("cannot write to the cache; new policies are kept in memory, and writing is tried again",
					"err", err, "next", "check whether the disk is full, and who owns the folder of the cache")
			}
			w.failed.Add(1)
			select {
			case <-time.After(commitEvery):
				continue
			case <-ctx.Done():
				return fmt.Errorf("%d changes of the cache could not be written: %w", left, err)
			}
		}
		w.failing.Store(false)
		if left == 0 {
			return nil
		}
	}
}

// commit writes a batch of changes, and brings memory up to date with it. It
// returns how many are left.
func (k *Keeper) commit() (left int, err error) {
	w := &k.writer
	w.mu.Lock()
	batch := slices.Clone(w.queue[:min(len(w.queue), commitPolicies)])
	ops := make([]cache.Op, len(batch))
	for i, c := range batch {
		if ops[i].Put = c.record; c.record == nil {
			ops[i].Delete = c.domain
		}
	}
	left = len(w.queue)
	w.mu.Unlock()
	if left == 0 {
		return 0, nil
	}
	w.begun.Store(time.Now().UnixNano())
	stuck := time.AfterFunc(commitStuck, func() {
		k.o.Log.Error("a commit of the cache does not end; new policies are kept in memory",
			"after", commitStuck, "next", "check the disk and the file system of the cache")
	})
	result, err := k.o.Store.Write(ops)
	stuck.Stop()
	w.begun.Store(0)
	if err != nil {
		return left, err
	}
	for _, domain := range result.Evicted {
		k.memory.forget(k.hash(domain))
	}
	left = k.written(batch, ops, result.Refused)
	if n := len(result.Refused); n > 0 {
		k.counters.add(&k.counters.Refused, n)
		w.refused.Store(time.Now().UnixNano())
		if k.mayLog(k.heldLines) {
			k.o.Log.Warn("the cache is full of policies in use; new ones are kept in memory only", "refused", n, "next", "raise [cache] max_size")
		}
	}
	return left, nil
}

// written takes what is on disk from the front of the queue, and returns how many
// changes are left. One that has got a newer record meanwhile stays.
func (k *Keeper) written(batch []*change, ops []cache.Op, refused []string) (left int) {
	w := &k.writer
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = slices.Delete(w.queue, 0, len(batch))
	for i, c := range batch {
		if c.record != ops[i].Put {
			w.queue = append(w.queue, c)
			continue
		}
		if c.record == nil {
			k.memory.forget(k.hash(c.domain))
		} else {
			unstored := ""
			if slices.Contains(refused, c.domain) {
				unstored = cacheIsFull
			}
			k.remembered(c.record, unstored)
			if !c.record.Due.IsZero() && c.record.Due.Before(k.o.Now().Add(idlePoll)) {
				k.nudge()
			}
		}
		w.bytes -= c.size
		delete(w.changes, c.domain)
		close(c.onDisk)
	}
	return len(w.queue)
}

// full reports whether the store had no room for a policy within fullFor.
func (w *writer) full() bool {
	at := w.refused.Load()
	return at != 0 && time.Duration(time.Now().UnixNano()-at) < fullFor
}

// commitTakes returns the age of the commit under way, 0 if there is none.
func (w *writer) commitTakes() time.Duration {
	if begun := w.begun.Load(); begun != 0 {
		return time.Duration(time.Now().UnixNano() - begun)
	}
	return 0
}
