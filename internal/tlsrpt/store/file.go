package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/sts-tlsmap/sts-tlsmap/internal/boltfile"
)

// This file: how the database is opened, and set aside where it is damaged.

const (
	fileName = "the file of TLS reports" // in errors
	schema   = "1"

	asideMark = ".damaged-" // and the date, in the name of a file that was set aside
	asideDate = "20060102T150405"
	// crashes is how many starts in a row that ended before the first upkeep did count as
	// damage: a page that leads back to itself ends the process.
	crashes      = 10
	startsSuffix = ".starts"
)

var (
	bucketMeta     = []byte("meta")
	bucketDay      = []byte("day")    // day: domain, NUL, policy hash: JSON of a Summary
	bucketPolicy   = []byte("policy") // day: policy hash: JSON of a Policy
	bucketState    = []byte("state")  // day: State.Key: JSON of a State
	bucketClosed   = []byte("closed") // day: when it was closed
	bucketSuppress = []byte("suppress")
	buckets        = [][]byte{bucketMeta, bucketDay, bucketPolicy, bucketState, bucketClosed, bucketSuppress}

	keySchema   = []byte("schema")
	keyProgress = []byte("progress") // the segment that is merged, NUL, its last key that is

	errValue    = &boltfile.Damage{File: fileName, Cause: "a value cannot be read"}
	errCrash    = fmt.Errorf("%d starts in a row ended before its log was merged", crashes)
	errReplaced = errors.New("the file of TLS reports is being replaced")
	errSchema   = errors.New("another version of this program wrote it")
)

// reopen opens the file, or makes it, if that is not done, if it has broken, and if
// another one is at the path. It sets a damaged file aside; damage: it is known to be one.
func (s *Store) reopen(damage error) (err error) {
	if s.shut.Load() {
		return ErrClosed
	}
	if file := s.file.Load(); file != nil {
		switch isThere := file.IsAt(s.path); {
		case file.IsBroken() && isThere:
			damage = file.Fault()
		case isThere:
			return nil
		default:
			s.o.Log.Error("the file of TLS reports was removed or replaced; the days in it are lost", "path", s.path)
		}
		s.why.Store(&errReplaced)
		s.file.Store(nil)
		_ = file.Close(errReplaced)
	}
	var file *boltfile.File
	if damage == nil {
		if file, err = s.openPath(); boltfile.IsDamage(err) || errors.Is(err, errSchema) {
			damage = err
		}
	}
	if damage != nil {
		if err = s.setAside(damage); err == nil {
			file, err = s.openPath()
		}
	}
	if err != nil {
		s.why.Store(&err)
		return err
	}
	file.OnFault = s.wakeRun
	s.file.Store(file)
	return nil
}

// openPath opens the file at the path, or makes it.
func (s *Store) openPath() (*boltfile.File, error) {
	o := boltfile.Options{Name: fileName, MaxSize: s.o.MaxSize, Check: check}
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

func check(_ *boltfile.File, tx *bbolt.Tx) error {
	for _, name := range buckets {
		if tx.Bucket(name) == nil {
			return &boltfile.Damage{File: fileName, Cause: fmt.Errorf("it has no bucket %s", name)}
		}
	}
	if string(tx.Bucket(bucketMeta).Get(keySchema)) != schema {
		return errSchema
	}
	return nil
}

// setAside gives the file at the path another name. It keeps the newest such file.
func (s *Store) setAside(why error) error {
	old := beside(s.path, asideMark)
	aside := s.path + asideMark + s.o.Now().UTC().Format(asideDate)
	if err := os.Rename(s.path, aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(why, err)
	}
	s.mu.Lock()
	s.stats.Damaged++
	s.mu.Unlock()
	s.o.Log.Error("the file of TLS reports cannot be used; it was set aside, and the days in it are lost",
		"path", s.path, "moved_to", aside, "err", why)
	for _, name := range old {
		if name != aside {
			_ = os.Remove(name)
		}
	}
	return nil
}

// used returns the bytes of the file that are in use.
func (s *Store) used() (used int64) {
	if file := s.file.Load(); file != nil {
		_ = file.View(func(tx *bbolt.Tx) error {
			used, _ = file.Sizes(tx)
			return nil
		})
	}
	return used
}
