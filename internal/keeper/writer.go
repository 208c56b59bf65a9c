package keeper

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
)

// A writer writes changes to the disk. Concurrent changes share a commit. Changes
// of a failed commit are written again.
type writer struct {
	urgent, lazy chan *change
	bytes        atomic.Int64 // of waiting changes
	begun        atomic.Int64 // when the commit under way began, Unix nanoseconds; 0: there is none
	failing      atomic.Bool  // the last commit failed
	failed       atomic.Int64 // failed commits so far
}

// A change is a record to be stored, or a domain to be deleted.
type change struct {
	flight *flight
	domain string
	record *cache.Record // nil: delete
	size   int64
	onDisk chan struct{} // closed when it is
}

// errNotKept: too many changes wait for the disk.
var errNotKept = errors.New("too many changes wait for the disk")

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// write queues a flight's change and waits for the disk, at most commitWait. onDisk
// says whether the change is on disk. A lazy change shares a later commit, and write
// does not wait for it.
func (k *Keeper) write(fl *flight, r *cache.Record, lazy bool) (onDisk bool, err error) {
	c := &change{flight: fl, domain: fl.domain, record: r, size: overheadBytes, onDisk: make(chan struct{})}
	if r != nil {
		// A record that the store cannot take would keep all others from the disk.
		if err := r.Storable(); err != nil {
			return false, err
		}
		c.size += int64(len(r.Text) + len(r.Match))
	}
	queue := k.writer.urgent
	if lazy {
		queue = k.writer.lazy
	}
	if k.writer.bytes.Add(c.size) > maxPendingBytes {
		k.writer.bytes.Add(-c.size)
		return false, errNotKept
	}
	fl.change = c
	select {
	case queue <- c:
	default:
		fl.change = nil
		k.writer.bytes.Add(-c.size)
		return false, errNotKept
	}
	if lazy {
		return false, nil
	}
	timer := time.NewTimer(commitWait)
	defer timer.Stop()
	select {
	case <-c.onDisk:
		return true, nil
	case <-timer.C:
		return false, nil
	}
}

// store writes a record to disk, or keeps it in memory until the disk takes it.
func (k *Keeper) store(fl *flight, r *cache.Record, lazy bool) {
	onDisk, err := k.write(fl, r, lazy)
	if onDisk || lazy && err == nil {
		return
	}
	k.remembered(r, true)
	if err == nil {
		return
	}
	k.counters.add(&k.counters.NotKept, 1)
	if k.mayLog(k.heldLines) {
		k.o.Log.Error("an MTA-STS policy could not be written; it is answered from memory", "domain", r.Domain, "err", err,
			"next", "it is discovered again after a restart")
	}
}

// remembered replaces the entry of the domain in memory. Without one, it adds an
// entry only if always is set.
func (k *Keeper) remembered(r *cache.Record, always bool) {
	e := k.entryOf(r)
	k.negative.drop(e.hash)
	k.memory.replace(e, always)
}

// runWriter writes until ctx ends, and then the remaining changes for a few seconds.
// Lazy changes wait for commitEvery, unless there are many.
func (k *Keeper) runWriter(ctx context.Context) error {
	tick := time.NewTicker(commitEvery)
	defer tick.Stop()
	var batch []*change
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case c := <-k.writer.urgent:
			batch = append(batch, c)
		case <-tick.C:
		}
		batch, _ = k.commitAll(ctx, batch)
	}
	last, cancel := context.WithTimeout(context.Background(), finalCommits)
	defer cancel()
	_, err := k.commitAll(last, batch)
	return err
}

// commitAll writes a batch and all other waiting changes. It repeats failed commits
// until ctx ends. rest are the changes that were not written.
func (k *Keeper) commitAll(ctx context.Context, batch []*change) (rest []*change, err error) {
	w := &k.writer
	for {
		for more := true; more && len(batch) < commitPolicies; {
			select {
			case c := <-w.urgent:
				batch = append(batch, c)
			case c := <-w.lazy:
				batch = append(batch, c)
			default:
				more = false
			}
		}
		if len(batch) == 0 {
			return nil, nil
		}
		for err := k.commit(batch); err != nil; err = k.commit(batch) {
			if !w.failing.Swap(true) { // one line, not one for each failed commit
				k.o.Log.Error("cannot write to the cache; new policies are kept in memory, and writing is tried again",
					"err", err, "next", "check whether the disk is full, and who owns the folder of the cache")
			}
			w.failed.Add(1)
			select {
			case <-time.After(commitEvery):
			case <-ctx.Done():
				return batch, fmt.Errorf("%d changes of the cache could not be written: %w", len(batch)+len(w.urgent)+len(w.lazy), err)
			}
		}
		w.failing.Store(false)
		batch = nil
	}
}

// commit writes a batch, and brings memory up to date with it.
func (k *Keeper) commit(batch []*change) error {
	ops := make([]cache.Op, len(batch))
	for i, c := range batch {
		if ops[i].Put = c.record; c.record == nil {
			ops[i].Delete = c.domain
		}
	}
	k.writer.begun.Store(time.Now().UnixNano())
	stuck := time.AfterFunc(commitStuck, func() {
		k.o.Log.Error("a commit of the cache does not end; new policies are kept in memory",
			"after", commitStuck, "next", "check the disk and the file system of the cache")
	})
	result, err := k.o.Store.Write(ops)
	stuck.Stop()
	k.writer.begun.Store(0)
	if err != nil {
		return err
	}
	for _, domain := range result.Evicted {
		k.memory.forget(k.hash(domain))
	}
	for _, c := range batch {
		if c.record == nil {
			k.memory.forget(k.hash(c.domain))
		} else {
			k.remembered(c.record, slices.Contains(result.Refused, c.domain))
		}
		k.writer.bytes.Add(-c.size)
		k.flights.written(c.flight)
		if c.record != nil && !c.record.Due.IsZero() && c.record.Due.Before(k.o.Now().Add(idlePoll)) {
			k.nudge() // the refresher would sleep too long
		}
	}
	if n := len(result.Refused); n > 0 {
		k.counters.add(&k.counters.Refused, n)
		if k.mayLog(k.heldLines) {
			k.o.Log.Warn("the cache is full of policies in use; new ones are kept in memory only", "refused", n, "next", "raise [cache] max_size")
		}
	}
	return nil
}

// commitTakes returns the age of the commit under way, 0 if there is none.
func (w *writer) commitTakes() time.Duration {
	if begun := w.begun.Load(); begun != 0 {
		return time.Duration(time.Now().UnixNano() - begun)
	}
	return 0
}
