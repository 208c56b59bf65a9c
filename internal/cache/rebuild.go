package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	rebuildSuffix = ".rebuild"  // of the new file while it is being made
	asideSuffix   = ".damaged-" // and the date, of a damaged file that was moved aside
	asideKept     = 3           // of those; older ones are deleted

	// rebuildPause is the least time between two rebuilds, should the disk go
	// on damaging the file.
	rebuildPause = time.Minute
)

// rebuilds is the state of rebuilding while the store is in use.
type rebuilds struct {
	mu      sync.Mutex
	active  bool
	closed  bool
	notTill time.Time
	running sync.WaitGroup

	done atomic.Uint64
	last atomic.Pointer[Report]
}

// trouble begins a rebuild in the background, unless there is one.
func (s *Store) trouble(why error) {
	if s.readOnly {
		return
	}
	r := &s.rebuilds
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.active || r.closed || s.options.Now().Before(r.notTill) {
		return
	}
	r.active = true
	r.running.Go(func() {
		s.rebuild(why)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.active = false
		r.notTill = s.options.Now().Add(rebuildPause)
	})
}

// stop lets no rebuild begin, and waits for the one that runs, for so long: it
// may be in a read or a sync that the disk does not end. It says whether there
// is none any more.
func (r *rebuilds) stop(wait time.Duration) bool {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	done := make(chan struct{})
	go func() {
		r.running.Wait()
		close(done)
	}()
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

// rebuild makes a new file of what can be read of the current one. Lookups go
// on meanwhile, from the old file; writes are ErrBusy if it takes long.
func (s *Store) rebuild(why error) {
	s.log.Error("the cache file is damaged; rebuilding it", "path", s.path, "err", why)
	select {
	case s.turn <- struct{}{}:
	case <-s.closing:
		return
	}
	defer s.endTurn()
	current := s.current()
	if current == nil {
		return
	}
	defer current.release()
	file, sn, report, err := s.replaceFile(source{file: s.file.fd, current: current, complete: true})
	report.Why = why
	if err != nil {
		if !errors.Is(err, ErrClosed) {
			s.log.Error("the cache file cannot be rebuilt; what can be read of it stays in use",
				"path", s.path, "err", err)
		}
		return
	}
	old := s.file
	s.file = file
	sn.hints = newHints(sn.policies())
	old.retire(s.snap.Swap(sn))
	s.old = append(s.old, old)
	s.lines.forget()
	s.rebuilds.last.Store(&report)
	s.rebuilds.done.Add(1)
	s.logReport(report)
}

// settleRebuild clears up after a crash in the middle of a rebuild. The new file
// counts only once it stands in the old one's place; but where there are no
// hard links, there is a moment in which neither does.
func (s *Store) settleRebuild() error {
	rebuilt := s.path + rebuildSuffix
	if _, err := os.Lstat(s.path); errors.Is(err, fs.ErrNotExist) {
		err = os.Rename(rebuilt, s.path)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("open cache %s: %w", s.path, err)
	}
	if err := os.Remove(rebuilt); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("open cache %s: %w", s.path, err)
	}
	return nil
}

// putInPlace moves what is at path aside, under a name with the date, and the
// file rebuilt into its place. After an error what was at path is there still.
func putInPlace(rebuilt, path string, now time.Time) (aside string, err error) {
	aside = asideName(path, now)
	moved := false
	if err = os.Link(path, aside); err != nil { // a file system without links
		err = os.Rename(path, aside)
		moved = err == nil
	}
	if err != nil {
		return "", fmt.Errorf("move the damaged file aside: %w", err)
	}
	if err = os.Rename(rebuilt, path); err != nil {
		err = fmt.Errorf("put the new file in its place: %w", err)
		if moved {
			err = errors.Join(err, os.Rename(aside, path))
		}
		return "", err
	}
	return aside, nil
}

// asideName returns a name that is not taken. Two in one second are told apart
// by a number.
func asideName(path string, now time.Time) string {
	name := path + asideSuffix + now.UTC().Format("20060102T150405")
	free := name
	for i := 2; ; i++ {
		if _, err := os.Lstat(free); err != nil {
			return free
		}
		free = fmt.Sprintf("%s.%d", name, i)
	}
}

// pruneAside deletes the oldest of the files that were moved aside, but not the
// latest one: within a second, names do not tell the order.
func (s *Store) pruneAside(latest string) {
	aside := s.aside(latest)
	for len(aside) >= asideKept {
		s.deleteAside(aside[0])
		aside = aside[1:]
	}
}

// removeAside deletes all files that were moved aside, and says whether there
// were any: a cache that is kept on the disk is worth more than they are.
func (s *Store) removeAside() bool {
	aside := s.aside("")
	for _, path := range aside {
		s.deleteAside(path)
	}
	return len(aside) > 0
}

// aside returns the files that were moved aside in the order of their dates,
// but for one.
func (s *Store) aside(but string) (paths []string) {
	dir, base := filepath.Split(s.path)
	entries, err := os.ReadDir(filepath.Clean(dir)) // which sorts them
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if path := filepath.Join(dir, e.Name()); strings.HasPrefix(e.Name(), base+asideSuffix) && e.Name() != filepath.Base(but) {
			paths = append(paths, path)
		}
	}
	return paths
}

// deleteAside deletes a file that was moved aside. What is below a directory
// stays: it is not ours.
func (s *Store) deleteAside(path string) {
	if err := os.Remove(path); err != nil {
		s.log.Warn("cannot delete an old damaged cache file", "path", path, "err", err)
	}
}

// syncDir makes the names in path's directory last.
func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
