// Package store keeps the outcome of TLS sessions until it is reported (RFC 8460), in one
// bbolt file and a log beside it. Write appends a batch of sessions to the log; Upkeep
// merges the log into the days once an hour, closes days, and deletes old ones. Reports
// are made of closed days.
//
// A crash loses what was not written, and counts nothing twice. Damage of the file costs
// the days in it: the file is set aside and a new one begun. The package asks no DNS and
// sends nothing.
package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"

	"github.com/sts-tlsmap/sts-tlsmap/internal/boltfile"
)

const (
	// DefaultMaxSize and DefaultKeep are what Options has for 0.
	DefaultMaxSize = 2 << 30
	DefaultKeep    = 14 * 24 * time.Hour

	upkeepEvery = time.Minute
)

// ErrClosed: the store is closed.
var ErrClosed = errors.New("the store of TLS reports is closed")

// Options of a store.
type Options struct {
	MaxSize int64            // bytes of used pages; 0: DefaultMaxSize. The log has 256 MiB at most beside it
	Keep    time.Duration    // for which a day is kept after its end; 0: DefaultKeep
	Log     *slog.Logger     // nil: none
	Now     func() time.Time // the clock, by which days are closed and deleted; nil: time.Now
}

// A Store is safe for concurrent use.
type Store struct {
	path   string
	o      Options
	log    log
	file   atomic.Pointer[boltfile.File]
	starts boltfile.Starts
	shut   atomic.Bool

	turn      sync.Mutex // held by who replaces or closes the file, or merges
	lastMerge time.Time

	mu    sync.Mutex
	stats Stats
}

// Open opens the store at path, or makes it.
func Open(path string, o Options) (*Store, error) {
	o.MaxSize = cmp.Or(max(o.MaxSize, 0), DefaultMaxSize)
	o.Keep = cmp.Or(max(o.Keep, 0), DefaultKeep)
	o.Log = cmp.Or(o.Log, slog.New(slog.DiscardHandler))
	if o.Now == nil {
		o.Now = time.Now
	}
	path = filepath.Clean(path)
	if target, err := filepath.EvalSymlinks(path); err == nil { // a new file replaces the target, not the link
		path = target
	}
	s := &Store{path: path, o: o, log: log{path: path}, starts: boltfile.Starts(path + startsSuffix)}
	s.stats.Dropped = map[string]uint64{"late": 0, "full": 0, "policies": 0, "log": 0}
	s.log.sealed() // for its size
	var damage error
	if s.starts.Count() > crashes {
		damage = errCrash
	}
	file, err := s.open(damage)
	if errors.Is(err, boltfile.ErrLocked) {
		err = errors.New("another process has it open")
	}
	if err != nil {
		s.starts.Forget()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	s.file.Store(file)
	return s, nil
}

// Run keeps the store up until the context ends. It is the only goroutine of the store.
func (s *Store) Run(ctx context.Context) {
	tick := time.NewTicker(upkeepEvery)
	defer tick.Stop()
	for {
		if err := s.Upkeep(); err != nil {
			s.o.Log.Error("the store of TLS reports could not be kept up", "path", s.path, "err", err, "next", "it is tried again in a minute")
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Close ends the store when the commit under way has ended. What is in the log is merged at
// the next start.
func (s *Store) Close() error {
	s.shut.Store(true) // ends a merge under way
	s.turn.Lock()
	defer s.turn.Unlock()
	s.starts.Forget()
	return errors.Join(s.log.seal(), s.file.Load().Close(ErrClosed))
}

// Write appends a batch to the log. When it returns nil, the batch is on disk, or was
// dropped and counted because the log is full. After an error it may be written again.
func (s *Store) Write(b *Batch) error {
	if s.shut.Load() {
		return ErrClosed
	}
	if s.log.size.Load() >= maxLog {
		s.count(0, map[string]uint64{"log": uint64(b.Sessions())})
		return nil
	}
	if err := s.log.append(b); err != nil {
		return fmt.Errorf("write to the log of TLS sessions: %w", err)
	}
	return nil
}

// view runs fn in a reading transaction.
func (s *Store) view(fn func(*bbolt.Tx) error) error { return s.file.Load().View(fn) }

// update runs fn in a writing transaction, which is on disk when update returns nil.
func (s *Store) update(fn func(*bbolt.Tx) error) error { return s.file.Load().Update(fn) }

// Stats are the numbers of a store. Counts are since Open.
type Stats struct {
	Err     error  // of the last upkeep; nil: all is well
	Damaged uint64 // files that were set aside

	LogSize           int64 // bytes that wait to be merged
	UsedSize, MaxSize int64 // bytes of the file

	Merged uint64 // sessions
	// Dropped is sessions by reason:
	//
	//	late      their day was closed
	//	full      a domain or policy not seen that day, and the file has MaxSize
	//	policies  the 65th policy of a domain's day
	//	log       the log has 256 MiB
	Dropped map[string]uint64
}

// Stats returns the numbers of the store.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	st := s.stats
	st.Dropped = maps.Clone(st.Dropped)
	s.mu.Unlock()
	st.LogSize, st.UsedSize, st.MaxSize = s.log.size.Load(), s.used(), s.o.MaxSize
	return st
}

// count counts sessions that were merged, and those that were dropped.
func (s *Store) count(merged uint64, dropped map[string]uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.Merged += merged
	for why, n := range dropped {
		s.stats.Dropped[why] += n
	}
}
