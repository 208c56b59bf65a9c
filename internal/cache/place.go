package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/sts-tlsmap/sts-tlsmap/internal/boltfile"
)

const (
	startsSuffix = ".starts"
	asideMark    = ".damaged-" // and the date, in the name of a file that was set aside
	asideDate    = "20060102T150405"
	asideMost    = 5                  // files set aside; then the oldest one is deleted
	asideLeft    = 7 * 24 * time.Hour // but never a younger file

	// memorySize is the max_size of a file in memory.
	memorySize = 128 << 20
)

// openDisk opens the file at the path, or makes it. It sets a damaged file aside. If
// why is not nil, the damage is already known.
func (s *Store) openDisk(why error) (*boltFile, error) {
	s.damage = nil
	if err := CheckPath(s.path); err != nil {
		return nil, err
	}
	fd, err := os.OpenFile(s.path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return s.create(s.sources)
	}
	if err != nil {
		return nil, err
	}
	if why != nil {
		_ = fd.Close()
		return s.setAside(why)
	}
	file, err := openBolt(fd, s.o.MaxSize, false, nil)
	if isFault(err) || errors.As(err, new(*SchemaError)) {
		return s.setAside(err)
	}
	if err != nil {
		return nil, err
	}
	// Continue a search that the last stop interrupted.
	return file, file.View(func(tx *bbolt.Tx) error {
		for name := range strings.FieldsSeq(string(tx.Bucket(bucketMeta).Get(keySalvage))) {
			path := filepath.Join(filepath.Dir(s.path), name)
			s.sources = append(s.sources, source{path, Report{Why: errors.New("its search was broken off"), MovedTo: path, Lost: -1}})
		}
		return nil
	})
}

// create makes a new file at the path. It holds the names of the files to search
// from the beginning, so that a crash does not lose them.
func (s *Store) create(sources []source) (*boltFile, error) {
	path := s.path + ".new"
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	fd, err := boltfile.Create(path)
	if err != nil {
		return nil, err
	}
	file, err := openBolt(fd, s.o.MaxSize, false, func(tx *bbolt.Tx) error {
		return errors.Join(s.makeBuckets(tx), s.putSearches(tx, sources))
	})
	if err == nil {
		if err = os.Rename(path, s.path); err != nil {
			err = errors.Join(err, file.close())
		}
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	if dir, err := os.Open(filepath.Dir(s.path)); err == nil {
		_ = dir.Sync() // makes the names last
		_ = dir.Close()
	}
	return file, nil
}

func (s *Store) makeBuckets(tx *bbolt.Tx) error {
	for _, name := range buckets {
		if _, err := tx.CreateBucket(name); err != nil {
			return err
		}
	}
	// What is written from now on is newer than what a search finds.
	return errors.Join(tx.Bucket(bucketPolicy).SetSequence(uint64(s.o.Now().Unix())<<20),
		tx.Bucket(bucketMeta).Put(keySchema, encoded(uint32(schemaVersion))))
}

// setAside gives the file at the path another name, puts a new one in its place
// and has the old one searched. After an error nothing has changed.
func (s *Store) setAside(why error) (*boltFile, error) {
	s.damage = why
	old := s.asideSince(math.MaxInt64)
	if young := s.asideSince(asideLeft); len(young) >= asideMost {
		return nil, fmt.Errorf("%w; %d damaged files were set aside within a week: the disk may be failing", why, len(young))
	}
	aside := s.path + asideMark + s.o.Now().UTC().Format(asideDate)
	for slices.Contains(old, aside) {
		aside += "b" // another file in the same second
	}
	if err := os.Link(s.path, aside); err != nil {
		return nil, fmt.Errorf("%w; it cannot be set aside: %w", why, err)
	}
	src := source{aside, Report{Why: why, MovedTo: aside, Lost: -1}}
	file, err := s.create(append(slices.Clone(s.sources), src))
	if err != nil {
		return nil, errors.Join(why, err, os.Remove(aside))
	}
	s.log.Error("the cache file cannot be used; it was set aside, and its enforced policies are carried over",
		"path", s.path, "moved_to", aside, "err", why)
	s.addSource(src, file)
	if len(old) >= asideMost {
		_ = os.Remove(old[0])
	}
	return file, nil
}

// asideSince returns the files set aside within a duration, in order.
func (s *Store) asideSince(d time.Duration) (paths []string) {
	all, _ := filepath.Glob(s.path + asideMark + "*") // sorted
	first := s.path + asideMark + s.o.Now().UTC().Add(-d).Format(asideDate)
	return slices.DeleteFunc(all, func(path string) bool { return path < first })
}

// addSource queues a damaged file for the search and copies its readable exemptions
// into file. It does not open a file that may have crashed the process.
func (s *Store) addSource(src source, file *boltFile) {
	s.sources = append(s.sources, src)
	s.report.Store(&src.report)
	if errors.Is(src.report.Why, errCrashed) {
		return
	}
	old, err := openToRead(src.path)
	if err == nil {
		err = errors.Join(s.copyExemptions(old, file), old.close())
	}
	if err != nil {
		s.log.Error("not all exemptions can be read; those that are lost are over", "path", src.path, "err", err)
	}
}

// openMemory makes a file in memory, because the path cannot be used: why says why.
// It copies what can be read at the path.
func (s *Store) openMemory(why error) (*boltFile, error) {
	fd, err := memoryFile()
	if err != nil {
		return nil, errors.Join(why, err)
	}
	file, err := openBolt(fd, min(s.o.MaxSize, memorySize), false, s.makeBuckets)
	if err != nil {
		return nil, errors.Join(why, err)
	}
	s.setMemoryOnly(why)
	if s.damage != nil {
		s.addSource(source{s.path, Report{Why: s.damage, Lost: -1}}, file)
		return file, nil
	}
	old, err := openToRead(s.path)
	if err == nil {
		err = errors.Join(s.copyAll(old, file), old.close())
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Error("not all policies of the cache file can be read", "path", s.path, "err", err)
	}
	return file, nil
}

// setMemoryOnly notes why the store is not on disk, and logs that once.
func (s *Store) setMemoryOnly(why error) {
	if was := s.memoryOnly.Swap(&why); was == nil || (*was).Error() != why.Error() {
		s.log.Error("the cache file cannot be written; policies are kept in memory, and a restart loses them",
			"path", s.path, "err", why, "next", "the path is tried again each minute")
	}
}

// replace puts a new file in the place of a broken one.
func (s *Store) replace(broken *boltFile) {
	var why error
	if s.isAtPath(broken) {
		why = broken.Fault()
	}
	file, err := s.openDisk(why)
	if err != nil {
		file, err = s.openMemory(err)
	}
	if err != nil {
		s.log.Error("the damaged cache file cannot be replaced", "path", s.path, "err", err, "next", "it is tried again in a minute")
		return
	}
	s.use(file)
}

// isAtPath reports whether the path leads to the file.
func (s *Store) isAtPath(file *boltFile) bool { return file.IsAt(s.path) }

// checkPath moves the store back to the path if it is in memory, or if its file was
// removed or replaced.
func (s *Store) checkPath() {
	file := s.file.Load()
	if file.IsBroken() {
		s.replace(file)
		return
	}
	if s.isAtPath(file) || !s.takeTurn() {
		return
	}
	defer s.endTurn()
	if s.memoryOnly.Load() == nil {
		s.log.Error("the cache file was removed or replaced while the daemon had it open", "path", s.path,
			"next", "its policies are written to the file at the path now; see who changed it")
	}
	there, err := s.openDisk(nil)
	if err == nil {
		if err = s.copyAll(file, there); err != nil {
			err = errors.Join(err, there.close())
		}
	}
	if err != nil {
		s.setMemoryOnly(err)
		return
	}
	// A damaged file at the path is searched under its new name.
	s.sources = slices.DeleteFunc(s.sources, func(src source) bool { return src.path == s.path })
	s.use(there)
	s.memoryOnly.Store(nil)
	s.log.Info("the cache is on disk again", "path", s.path)
	if err := file.close(); err != nil {
		s.log.Warn("the old cache file cannot be closed", "err", err)
	}
}

// crashes is how many starts in a row that ended within a minute, without a
// clean stop, count as damage of the file; but not within a day of other damage.
const crashes = 10

var errCrashed = fmt.Errorf("%d starts in a row ended within a minute of opening it", crashes)

// countStart counts a start. It returns errCrashed if there were too many.
func (s *Store) countStart() error {
	if s.starts.Count() > crashes && len(s.asideSince(24*time.Hour)) == 0 {
		return errCrashed
	}
	return nil
}

// forgetStarts resets the count, after a run of a minute or at a clean stop.
func (s *Store) forgetStarts() { s.starts.Forget() }
