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
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/sts-tlsmap/sts-tlsmap/internal/boltfile"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

const (
	// DefaultMaxSize and DefaultKeep are what Options has for 0.
	DefaultMaxSize = 2 << 30
	DefaultKeep    = 14 * 24 * time.Hour

	fileName    = "the file of TLS reports" // in errors
	closeWait   = 10 * time.Second          // how long Close waits for a commit
	upkeepEvery = time.Minute
	maxKnown    = 100_000 // policies of which it is known that the log has their text

	asideMark = ".damaged-" // and the date, in the name of a file that was set aside
	asideDate = "20060102T150405"
	asideMost = 1
	// crashes is how many starts in a row that ended before the first upkeep did count as
	// damage: a page that leads back to itself ends the process.
	crashes      = 10
	startsSuffix = ".starts"
)

var (
	bucketMeta     = []byte("meta")
	bucketDay      = []byte("day")    // day: domain, NUL, policy hash: counts and details
	bucketPolicy   = []byte("policy") // day: policy hash: text
	bucketState    = []byte("state")  // day: State.Key: state
	bucketClosed   = []byte("closed") // day
	bucketSuppress = []byte("suppress")
	buckets        = [][]byte{bucketMeta, bucketDay, bucketPolicy, bucketState, bucketClosed, bucketSuppress}

	keySchema   = []byte("schema")
	keyProgress = []byte("progress")
)

const schema = "1"

var (
	// ErrClosed: the store is closed.
	ErrClosed = errors.New("the store of TLS reports is closed")
	// ErrLost: a batch may be in the log or not, and must not be written again.
	ErrLost = errors.New("a batch of TLS sessions may be lost")

	errValue    = &boltfile.Damage{File: fileName, Cause: "a value cannot be read"}
	errCrash    = fmt.Errorf("%d starts in a row ended before its log was merged", crashes)
	errReplaced = errors.New("the file of TLS reports is being replaced")
	errSchema   = errors.New("another version of this program wrote it")
)

// Options of a store.
type Options struct {
	MaxSize int64            // bytes of used pages; 0: DefaultMaxSize. The log has 256 MiB at most beside it
	Keep    time.Duration    // for which a day is kept after its end; 0: DefaultKeep
	Log     *slog.Logger     // nil: none
	Now     func() time.Time // the clock; nil: time.Now
}

// A Store is safe for concurrent use.
type Store struct {
	path   string
	o      Options
	file   atomic.Pointer[boltfile.File] // nil: there is none, see why
	starts boltfile.Starts
	counts counts
	full   chan struct{} // holds a token when a segment was sealed because it was full

	opening sync.Mutex // held while the file is opened or replaced
	why     atomic.Pointer[error]
	shut    atomic.Bool

	turn      sync.Mutex // held by Upkeep and Merge
	lastMerge time.Time
	short     bool // sessions were dropped for want of room

	logSize  atomic.Int64 // bytes of the log; a copy, since a disk that hangs holds mu
	mu       sync.Mutex   // for what follows
	log      log
	knownDay tlsrpt.Day
	known    map[policyHash]struct{}
}

// Open opens the store at path, or makes it. If the path cannot be used now, Upkeep tries
// again, and Stats says why; the error is for another process that has it open.
func Open(path string, o Options) (*Store, error) {
	o.MaxSize = cmp.Or(max(o.MaxSize, 0), DefaultMaxSize)
	o.Keep = cmp.Or(max(o.Keep, 0), DefaultKeep)
	o.Log = cmp.Or(o.Log, slog.New(slog.DiscardHandler))
	if o.Now == nil {
		o.Now = time.Now
	}
	// Follow a symbolic link: a new file replaces its target, not the link.
	if p, err := filepath.EvalSymlinks(path); err == nil {
		path = p
	}
	s := &Store{path: path, o: o, starts: boltfile.Starts(path + startsSuffix), full: make(chan struct{}, 1),
		log: log{path: path}, known: make(map[policyHash]struct{})}
	s.why.Store(&ErrClosed)
	var why error
	if s.starts.Count() > crashes {
		why = errCrash
	}
	err := s.reopen(why)
	if errors.Is(err, boltfile.ErrLocked) {
		s.starts.Forget()
		return nil, fmt.Errorf("open %s: another process has it open", path)
	}
	if err != nil {
		s.o.Log.Error("TLS sessions cannot be recorded", "path", path, "err", err, "next", "the path is tried again each minute")
	}
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
		case <-s.full:
		}
	}
}

// Close ends the store. What is in the log is merged at the next start.
func (s *Store) Close() error {
	s.shut.Store(true) // ends a merge under way
	closed := make(chan error, 1)
	go func() {
		s.turn.Lock()
		defer s.turn.Unlock()
		err := s.seal()
		s.opening.Lock()
		defer s.opening.Unlock()
		s.why.Store(&ErrClosed)
		if file := s.file.Swap(nil); file != nil {
			err = errors.Join(err, file.Close(ErrClosed))
		}
		s.starts.Forget()
		closed <- err
	}()
	select {
	case err := <-closed:
		return err
	case <-time.After(closeWait):
		return fmt.Errorf("close %s: a commit does not end", s.path)
	}
}

// Write appends a batch to the log. When it returns nil, the batch is on disk, or was
// dropped and counted because the log is full. ErrLost: the batch was dropped. After
// another error it may be written again.
func (s *Store) Write(b *Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := uint64(b.Sessions())
	switch {
	case s.shut.Load():
		return ErrClosed
	case s.file.Load() == nil:
		return *s.why.Load()
	case s.logSize.Load() >= maxLog:
		s.counts.LogFull.Add(n)
		return nil
	}
	if s.knownDay != b.day || len(s.known) >= maxKnown {
		s.knownDay = b.day
		clear(s.known)
	}
	lost, err := s.log.append(b, s.known)
	s.logSize.Store(s.log.size + s.log.good)
	if lost {
		s.counts.Lost.Add(n)
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	if err != nil {
		return fmt.Errorf("write to the log of TLS sessions: %w", err)
	}
	for _, p := range b.policies {
		s.known[p.hash] = struct{}{}
	}
	if s.log.fd == nil { // it was sealed
		select {
		case s.full <- struct{}{}:
		default:
		}
	}
	return nil
}

// forgetKnown has the next batches bring the texts of their policies again.
func (s *Store) forgetKnown() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.known)
}

func (s *Store) firstSealed() (uint64, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.log.sealed) == 0 {
		return 0, false
	}
	return s.log.sealed[0], true
}

// removeSealed removes the first sealed segment, which is merged.
func (s *Store) removeSealed(number uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if info, err := os.Stat(s.log.name(number)); err == nil {
		s.log.size -= info.Size()
	}
	if s.log.sealed = s.log.sealed[1:]; len(s.log.sealed) == 0 {
		s.log.size = 0
	}
	s.logSize.Store(s.log.size + s.log.good)
	if err := os.Remove(s.log.name(number)); err != nil {
		s.o.Log.Warn("a merged log of TLS sessions cannot be removed", "err", err)
	}
}

// view runs fn in a reading transaction.
func (s *Store) view(fn func(*bbolt.Tx) error) error {
	return s.in(func(file *boltfile.File) error { return file.View(fn) })
}

// update runs fn in a writing transaction, which is on disk when update returns nil.
func (s *Store) update(fn func(*bbolt.Tx) error) error {
	return s.in(func(file *boltfile.File) error { return file.Update(fn) })
}

func (s *Store) in(do func(*boltfile.File) error) error {
	file := s.file.Load()
	if file == nil {
		return *s.why.Load()
	}
	err := do(file)
	if boltfile.IsDamage(err) {
		s.replace(file, err)
	}
	return err
}

// replace sets a broken file aside and begins a new one.
func (s *Store) replace(broken *boltfile.File, why error) {
	s.opening.Lock()
	defer s.opening.Unlock()
	s.why.Store(&errReplaced)
	if !s.file.CompareAndSwap(broken, nil) {
		return
	}
	if !broken.IsAt(s.path) {
		why = nil // another file is there
	}
	_ = broken.Close(errReplaced)
	if err := s.openFile(why); err != nil {
		s.o.Log.Error("the damaged file of TLS reports cannot be replaced", "path", s.path, "err", err, "next", "it is tried again in a minute")
	}
}

// reopen opens the file if there is none. If why is not nil, that at the path is damaged.
func (s *Store) reopen(why error) error {
	s.opening.Lock()
	defer s.opening.Unlock()
	if s.file.Load() != nil {
		return nil
	}
	return s.openFile(why)
}

// openFile opens the file at the path, or makes one. The caller holds opening.
func (s *Store) openFile(damage error) error {
	file, err := s.openPath(damage)
	if damage == nil && (boltfile.IsDamage(err) || errors.Is(err, errSchema)) {
		file, err = s.openPath(err)
	}
	if err == nil && s.shut.Load() {
		err = errors.Join(ErrClosed, file.Close(ErrClosed))
	}
	if err != nil {
		s.why.Store(&err)
		return err
	}
	s.file.Store(file)
	return nil
}

// openPath opens the file at the path. If damage is not nil, it sets that aside first.
func (s *Store) openPath(damage error) (*boltfile.File, error) {
	if damage != nil {
		if err := s.setAside(damage); err != nil {
			return nil, errors.Join(damage, err)
		}
	}
	o := boltfile.Options{Name: fileName, MaxSize: s.o.MaxSize, Check: s.check}
	fd, err := os.OpenFile(s.path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		o.Fill = fill // an empty file that is there is damage
		fd, err = boltfile.Create(s.path)
		syncFolder(s.path)
	}
	if err != nil {
		return nil, err
	}
	return boltfile.Open(fd, o)
}

func fill(tx *bbolt.Tx) error {
	for _, name := range buckets {
		if _, err := tx.CreateBucket(name); err != nil {
			return err
		}
	}
	return tx.Bucket(bucketMeta).Put(keySchema, []byte(schema))
}

// check looks at the buckets, and takes from them what is kept in memory.
func (s *Store) check(_ *boltfile.File, tx *bbolt.Tx) error {
	for _, name := range buckets {
		if tx.Bucket(name) == nil {
			return &boltfile.Damage{File: fileName, Cause: fmt.Errorf("it has no bucket %s", name)}
		}
	}
	if string(tx.Bucket(bucketMeta).Get(keySchema)) != schema {
		return errSchema
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.known)
	done := readProgress(tx)
	if len(done.after) > 0 {
		done.segment--
	}
	if s.log.last > 0 { // it is open: the file was replaced
		return nil
	}
	err := s.log.open(done.segment)
	s.logSize.Store(s.log.size)
	return err
}

// setAside gives the file at the path another name. It keeps the newest one.
func (s *Store) setAside(why error) error {
	aside := s.path + asideMark + s.o.Now().UTC().Format(asideDate)
	if err := os.Rename(s.path, aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.counts.Damaged.Add(1)
	s.o.Log.Error("the file of TLS reports cannot be used; it was set aside, and the days in it are lost",
		"path", s.path, "moved_to", aside, "err", why)
	if old, _ := filepath.Glob(s.path + asideMark + "*"); len(old) > asideMost {
		_ = os.Remove(old[0])
	}
	return nil
}

// recoverPanic turns a panic into an error: nothing here may end the daemon.
func recoverPanic(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("bug: recovered from a panic; please report it: %v\n%s", p, debug.Stack())
	}
}
