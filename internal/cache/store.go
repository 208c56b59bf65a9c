package cache

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"

	"github.com/sts-tlsmap/sts-tlsmap/internal/boltfile"
)

const (
	unlimited  = 32 << 30         // Options.MaxSize if it is 0: twice as much address space is reserved
	closeWait  = 10 * time.Second // how long Close waits for a commit
	checkEvery = time.Minute      // how often the path is looked at
	maxLinks   = 40               // symbolic links followed to the file; as Linux
)

// Options of a store.
type Options struct {
	MaxSize int64            // bytes of used pages; 0: no limit
	Log     *slog.Logger     // nil: none
	Now     func() time.Time // the clock; nil: time.Now
	// InDoubtSince is since when the clock is in doubt, zero if it is not; nil: never. It
	// is stored with each commit.
	InDoubtSince func() time.Time
}

// A Store is an open cache. Its methods are safe for concurrent use.
type Store struct {
	path     string
	o        Options
	log      *slog.Logger
	readOnly bool
	starts   boltfile.Starts
	file     atomic.Pointer[boltFile] // nil: closed
	turn     chan struct{}            // holds a token while somebody writes or replaces the file

	closing   chan struct{}
	closeOnce sync.Once
	ended     chan struct{}  // closed when run has returned
	faults    chan *boltFile // a file that broke

	// Only for the goroutine of run, and Open before it.
	sources []source // damaged files that are to be searched
	damage  error    // why the file at the path is damaged; nil: it may be whole

	salvaging           atomic.Bool // damaged files are still to be searched
	memoryOnly          atomic.Pointer[error]
	report              atomic.Pointer[Report]
	damaged, unreadable atomic.Uint64
	stale               atomic.Pointer[[][]byte] // entries of the due index that match no record; the next write deletes them
	files               atomic.Uint64            // see Stats
}

// Open opens the cache at path, or makes it. The error is a *LockedError if another
// process has it open, and a *NotAFileError if path is not a regular file. Open sets
// aside a damaged file and a file of a newer program: see Stats().Salvage. If path
// cannot be written, the store is a file in memory: see Stats().MemoryOnly.
//
// Open and Close count crashes: ten starts in a row that end within a minute of Open
// and without Close count as damage. So call Open last at the start, and Close on
// every way out.
func Open(path string, o Options) (*Store, error) {
	s := newStore(path, o)
	if err := CheckPath(s.path); err != nil {
		return nil, err
	}
	file, err := s.openDisk(s.countStart())
	var locked *LockedError
	if err != nil && !errors.As(err, &locked) {
		file, err = s.openMemory(err)
	}
	if err != nil {
		s.forgetStarts()
		return nil, fmt.Errorf("open the cache: %w", err)
	}
	s.use(file)
	go s.run()
	return s, nil
}

// OpenReadOnly opens the cache at path for reading, while no daemon has it. It
// changes nothing.
func OpenReadOnly(path string) (*Store, error) {
	s := newStore(path, Options{})
	s.readOnly = true
	close(s.ended)
	file, err := openToRead(s.path)
	if isFault(err) {
		err = fmt.Errorf("%w: the daemon saves what can be read when it starts", err)
	}
	if err != nil {
		return nil, fmt.Errorf("read the cache %s: %w", s.path, err)
	}
	s.use(file)
	return s, nil
}

func openToRead(path string) (*boltFile, error) {
	if err := CheckPath(path); err != nil {
		return nil, err
	}
	fd, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return openBolt(fd, 0, true, nil)
}

func newStore(path string, o Options) *Store {
	path = followLinks(path)
	o.MaxSize = cmp.Or(max(o.MaxSize, 0), unlimited)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.InDoubtSince == nil {
		o.InDoubtSince = func() time.Time { return time.Time{} }
	}
	return &Store{
		path: path, o: o,
		starts:  boltfile.Starts(path + startsSuffix),
		log:     cmp.Or(o.Log, slog.New(slog.DiscardHandler)),
		turn:    make(chan struct{}, 1),
		closing: make(chan struct{}),
		ended:   make(chan struct{}),
		faults:  make(chan *boltFile, 1),
	}
}

// followLinks follows symbolic links, since a new file replaces their target and not
// the link. The target need not exist yet.
func followLinks(path string) string {
	for range maxLinks {
		if target, err := filepath.EvalSymlinks(path); err == nil {
			return target
		}
		target, err := os.Readlink(path)
		if err != nil {
			return path
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(path), target)
		}
		path = target
	}
	return path
}

// Close ends the store. Calls under way end first; later ones are ErrClosed.
func (s *Store) Close() error {
	err := ErrClosed
	s.closeOnce.Do(func() {
		close(s.closing)
		closed := make(chan error, 1)
		go func() {
			<-s.ended
			s.turn <- struct{}{} // and keep it
			closed <- s.file.Swap(nil).close()
		}()
		select {
		case err = <-closed:
			s.forgetStarts()
		case <-time.After(closeWait):
			err = fmt.Errorf("close the cache %s: a commit does not end", s.path)
		}
	})
	return err
}

// run works in the background: it searches damaged files, replaces a file after a
// fault, and checks the path once a minute.
func (s *Store) run() {
	defer close(s.ended)
	minute := time.NewTicker(checkEvery)
	defer minute.Stop()
	for {
		s.search()
		select {
		case <-s.closing:
			return
		case file := <-s.faults:
			if s.file.Load() == file { // else the minute came first
				s.replace(file)
			}
		case <-minute.C:
			s.forgetStarts()
			s.checkPath()
		}
	}
}

// use makes file the current one. The caller closes the one that it replaces.
func (s *Store) use(file *boltFile) {
	s.salvaging.Store(len(s.sources) > 0) // before a policy can be missed in file
	file.OnFault = func() {
		s.unreadable.Add(1)
		s.salvaging.Store(true)
		s.faults <- file
	}
	s.file.Store(file)
	s.files.Add(1)
}

// view runs fn in a reading transaction; twice, if the file is replaced meanwhile.
func (s *Store) view(fn func(*bbolt.Tx) error) error {
	for {
		file := s.file.Load()
		if file == nil {
			return ErrClosed
		}
		if err := file.View(fn); err != ErrClosed || s.file.Load() == file {
			return err
		}
	}
}

// update runs fn in a writing transaction of the current file. Nobody else writes
// or replaces the file meanwhile.
func (s *Store) update(fn func(*writing) error) error {
	if s.readOnly {
		return ErrReadOnly
	}
	if !s.takeTurn() {
		return ErrClosed
	}
	defer s.endTurn()
	return s.updateIn(s.file.Load(), fn)
}

func (s *Store) takeTurn() bool {
	select {
	case <-s.closing:
		return false
	case s.turn <- struct{}{}:
		return true
	}
}

func (s *Store) endTurn() { <-s.turn }

// Stats returns the counts. It reads nothing from the file.
func (s *Store) Stats() Stats {
	st := Stats{
		Damaged:    s.damaged.Load(),
		Unreadable: s.unreadable.Load(),
		Files:      s.files.Load(),
		Salvage:    s.report.Load(),
		Salvaging:  s.salvaging.Load(),
	}
	if why := s.memoryOnly.Load(); why != nil {
		st.MemoryOnly = *why
	}
	if file := s.file.Load(); file != nil {
		is := file.state.Load()
		st.ByMode, st.Heartbeat, st.InDoubtSince = is.counts, timeOf(is.heartbeat), timeOf(is.inDoubtSince)
		st.UsedSize, st.FileSize, st.MaxSize = is.used, is.size, file.maxSize
	}
	return st
}
