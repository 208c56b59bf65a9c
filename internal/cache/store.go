package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

)

const (
	// DefaultMaxSize is the bytes of used pages when Options.MaxSize is 0.
	DefaultMaxSize = 4 << 30

	turnWait  = 2 * time.Second  // how long a write waits for another, or for a rebuild, before it is ErrBusy
	closeWait = 10 * time.Second // how long Close waits for a rebuild, then for a write, then for readers
)

// Options of a store.
type Options struct {
	MaxSize int64            // bytes of used pages; 0: DefaultMaxSize
	Log     *slog.Logger     // nil: none
	Now     func() time.Time // the clock that eviction goes by; nil: time.Now

}

// A Store is an open cache file. All its methods are safe for concurrent use.
type Store struct {
	path     string
	options  Options
	readOnly bool
	log      *slog.Logger
	lock     *os.File // of the cache; see lockCache

	snap atomic.Pointer[snapshot] // the current state; nil: closed

	// turn is held, by a token in it, by the one who writes, rebuilds or
	// closes. It alone enters bbolt, and guards file
	// and old.
	turn chan struct{}
	file *boltFile // the current one; its db is nil in a store that only reads
	old  []*boltFile

	closeOnce sync.Once
	closing   chan struct{}
	rebuilds  rebuilds
	lines     lines
	stale     stale

	damaged    atomic.Uint64
	unreadable atomic.Uint64
	salvaged   *Report
}

// Open opens the cache at path, for this process alone, or makes it. Another
// process that has it is a *LockedError, a file from a later version a
// *SchemaError, and what is no file at all a *NotAFileError. A damaged file is moved aside, what can be read of it is carried
// over into a new one, and Stats().Salvage says so; that takes the time to read
// the file through. Any other error means that there can be no cache there: no
// such directory, no space, no permission.
func Open(path string, o Options) (*Store, error) {
	path = resolve(path)
	if err := CheckPath(path); err != nil {
		return nil, err
	}
	lock, err := lockCache(path, true)
	if err != nil {
		return nil, err
	}
	s := newStore(path, o)
	s.lock = lock
	if err := s.open(); err != nil {
		lock.Close()
		return nil, err
	}
	return s, nil
}

// resolve follows a symbolic link, so that a new file comes to stand where the
// old one is.
func resolve(path string) string {
	if p, err := filepath.EvalSymlinks(path); err == nil {
		return p
	}
	return path
}

func newStore(path string, o Options) *Store {
	if o.MaxSize <= 0 {
		o.MaxSize = DefaultMaxSize
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Store{
		path:    path,
		options: o,
		log:     o.Log,
		turn:    make(chan struct{}, 1),
		closing: make(chan struct{}),
	}
}

func (s *Store) open() error {
	if err := s.settleRebuild(); err != nil {
		return err
	}
	_, err := os.Lstat(s.path)
	isNew := errors.Is(err, fs.ErrNotExist)
	file, sn, err := openPinned(s.path, s.options.MaxSize, true)
	if why := err; damage(why) {
		var report Report
		file, sn, report, err = s.salvage(why)
		s.salvaged = &report
	}
	if err != nil {
		var newer *SchemaError
		var locked *LockedError
		if errors.As(err, &newer) {
			newer.Path = s.path
			return newer
		}
		if errors.As(err, &locked) {
			return locked
		}
		return fmt.Errorf("open cache %s: %w", s.path, err)
	}
	s.file = file
	sn.hints = newHints(sn.policies())
	s.snap.Store(sn)
	if isNew {
		return syncDir(s.path)
	}
	return nil
}

// openPinned opens the file at path and its newest state.
func openPinned(path string, maxSize int64, sync bool) (*boltFile, *snapshot, error) {
	file, err := openBoltFile(path, maxSize, sync)
	if err != nil {
		return nil, nil, err
	}
	sn, err := file.snapshot()
	if err != nil {
		return nil, nil, errors.Join(err, file.close())
	}
	return file, sn, nil
}

// OpenReadOnly opens the cache at path for reading, while no daemon has it. It
// changes nothing, and salvages nothing: that is for the daemon.
func OpenReadOnly(path string) (*Store, error) {
	path = resolve(path)
	if err := CheckPath(path); err != nil {
		return nil, err
	}
	lock, err := lockCache(path, false)
	if err != nil {
		return nil, err
	}
	s := newStore(path, Options{})
	s.readOnly = true
	s.lock = lock
	file, sn, _, err := openMapped(path)
	if err == nil && sn == nil {
		err = fmt.Errorf("%w: it is damaged; the daemon saves what can be read when it starts", ErrUnreadable)
	}
	if err != nil {
		if file != nil {
			err = errors.Join(err, file.close())
		}
		if lock != nil {
			lock.Close()
		}
		return nil, fmt.Errorf("read cache %s: %w", path, err)
	}
	s.file = file
	s.snap.Store(sn)
	return s, nil
}

// openMapped maps the file at path without bbolt. The state is nil if the file
// does not show where one begins; whole is the number of whole meta pages.
func openMapped(path string) (file *boltFile, sn *snapshot, whole int, err error) {
	fd, err := openRegular(path)
	if err != nil {
		return nil, nil, 0, err
	}
	file = &boltFile{fd: fd, broken: true} // there is no bbolt to enter
	info, err := fd.Stat()
	if err != nil || info.Size() == 0 {
		return file, nil, 0, err
	}
	m, whole := readMetas(fd)
	if whole == 0 {
		return file, nil, 0, nil
	}
	if file.data, err = mapFile(fd, int(info.Size())); err != nil {
		return file, nil, whole, err
	}
	sn = &snapshot{file: file, done: make(chan struct{}), fileSize: info.Size(), used: info.Size()}
	sn.refs.Store(1)
	err = guard(func() error { return sn.open(uint64(m.pageSize), m.limit, m.root) })
	if unreadable(err) {
		return file, nil, whole, nil
	}
	return file, sn, whole, err
}

// Close ends the store. Calls that are under way end first; those that come
// later are ErrClosed.
func (s *Store) Close() error {
	err := ErrClosed
	s.closeOnce.Do(func() { err = s.close() })
	return err
}

func (s *Store) close() error {
	close(s.closing)
	if !s.rebuilds.stop(closeWait) {
		return fmt.Errorf("close cache %s: a rebuild does not end", s.path)
	}
	if !s.takeTurn(closeWait) {
		return fmt.Errorf("close cache %s: a commit does not end", s.path)
	}
	defer s.endTurn()
	deadline := time.NewTimer(closeWait)
	defer deadline.Stop()
	sn := s.snap.Swap(nil)
	s.file.retire(sn)
	var err error
	for _, file := range append(s.old, s.file) {
		for _, sn := range file.retired {
			select {
			case <-sn.done:
			case <-deadline.C:
				return fmt.Errorf("close cache %s: a reader does not end", s.path)
			}
		}
		file.retire(nil)
		err = errors.Join(err, file.close())
	}
	if s.lock != nil {
		err = errors.Join(err, s.lock.Close())
	}
	return err
}

// takeTurn waits until the turn is free, for so long.
func (s *Store) takeTurn(wait time.Duration) bool {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case s.turn <- struct{}{}:
		return true
	case <-t.C:
		return false
	}
}

func (s *Store) endTurn() { <-s.turn }

// current returns the current state and a reference to it, nil if the store is
// closed.
func (s *Store) current() *snapshot {
	for {
		sn := s.snap.Load()
		if sn == nil || sn.hold() {
			return sn
		}
	}
}

// renew replaces the current state by the newest one in the file, to which p
// has led if it was committed. The caller has the turn.
func (s *Store) renew(p *plan, committed bool) error {
	sn, err := s.file.snapshot()
	if err != nil {
		return err
	}
	s.file.retire(s.publish(sn, p, committed))
	s.closeOld()
	return nil
}

// closeOld closes files that were replaced and that nobody reads any more.
func (s *Store) closeOld() {
	kept := s.old[:0]
	for _, file := range s.old {
		file.retire(nil)
		if len(file.retired) > 0 {
			kept = append(kept, file)
		} else if err := file.close(); err != nil {
			s.log.Warn("cannot close the old cache file", "path", s.path, "err", err)
		}
	}
	clear(s.old[len(kept):])
	s.old = kept
}

// Stats returns the counts. It reads nothing from the file.
func (s *Store) Stats() Stats {
	st := Stats{
		MaxSize:    s.options.MaxSize,
		Damaged:    s.damaged.Load(),
		Unreadable: s.unreadable.Load(),
		Salvage:    s.salvaged,
	}
	if sn := s.current(); sn != nil {
		defer sn.release()
		st.ByMode = sn.counts
		st.Heartbeat = timeOf(sn.newest)
		st.UsedSize, st.FileSize = sn.used, sn.fileSize
	}
	return st
}
