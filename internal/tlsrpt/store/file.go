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
	schema   = "2"

	asideSuffix = ".damaged" // of a file that was set aside
	// crashes is how many starts in a row that ended before the first upkeep did count as
	// damage: a page that leads back to itself ends the process.
	crashes      = 10
	startsSuffix = ".starts"
)

var (
	bucketMeta     = []byte("meta")
	bucketDay      = []byte("day")      // day: domain, NUL, policy hash: JSON of a Summary
	bucketPolicy   = []byte("policy")   // day: policy hash: JSON of a Policy
	bucketStage    = []byte("stage")    // day: its Stage
	bucketDelivery = []byte("delivery") // day: domain: JSON of a Delivery

	keySchema     = []byte("schema")
	keyProgress   = []byte("progress")   // the segment that is merged, NUL, its last key that is
	keySuppressed = []byte("suppressed") // JSON of addresses and times
	keyRelay      = []byte("relay")      // see RelayID

	errValue  = &boltfile.Damage{File: fileName, Cause: "a value cannot be read"}
	errSchema = &boltfile.Damage{File: fileName, Cause: "another version of this program wrote it"}
	errCrash  = fmt.Errorf("%d starts in a row ended before its log was merged", crashes)
)

// reopen replaces the file if it is damaged, or is not at its path any more.
func (s *Store) reopen() error {
	old := s.file.Load()
	var damage error
	switch {
	case !old.IsAt(s.path):
		s.o.Log.Error("the file of TLS reports was removed or replaced; the days in it are lost", "path", s.path)
	case old.IsBroken():
		damage = old.Fault()
	default:
		return nil
	}
	file, err := s.open(damage)
	if err != nil {
		return err
	}
	s.file.Store(file)
	_ = old.Close(ErrClosed)
	return nil
}

// open opens the file at the path, or makes it. It sets a damaged one aside; damage: it is
// known to be damaged.
func (s *Store) open(damage error) (*boltfile.File, error) {
	if damage == nil {
		file, err := s.openPath()
		if !boltfile.IsDamage(err) {
			return file, err
		}
		damage = err
	}
	aside := s.path + asideSuffix // replaces one from before
	if err := os.Rename(s.path, aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(damage, err)
	}
	s.mu.Lock()
	s.stats.Damaged++
	s.mu.Unlock()
	s.o.Log.Error("the file of TLS reports cannot be used; it was set aside, and the days in it are lost",
		"path", s.path, "moved_to", aside, "err", damage)
	return s.openPath()
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
	for _, name := range [][]byte{bucketMeta, bucketDay, bucketPolicy, bucketStage, bucketDelivery} {
		if _, err := tx.CreateBucket(name); err != nil {
			return err
		}
	}
	return tx.Bucket(bucketMeta).Put(keySchema, []byte(schema))
}

// check looks at the schema. A bucket that is missing is damage too, once it is used.
func check(_ *boltfile.File, tx *bbolt.Tx) error {
	if meta := tx.Bucket(bucketMeta); meta == nil || string(meta.Get(keySchema)) != schema {
		return errSchema
	}
	return nil
}

// used returns the bytes of the file that are in use.
func (s *Store) used() (used int64) {
	file := s.file.Load()
	_ = file.View(func(tx *bbolt.Tx) error {
		used, _ = file.Sizes(tx)
		return nil
	})
	return used
}
