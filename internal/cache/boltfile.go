package cache

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"go.etcd.io/bbolt"

	"github.com/sts-tlsmap/sts-tlsmap/internal/boltfile"
)

const fileName = "the cache file" // in errors

func faultf(format string, args ...any) error {
	return &boltfile.Damage{File: fileName, Cause: fmt.Errorf(format, args...), Is: ErrUnreadable}
}

func isFault(err error) bool { return boltfile.IsDamage(err) }

// A boltFile is an open file of the cache.
type boltFile struct {
	*boltfile.File
	maxSize int64
	state   atomic.Pointer[state]
}

// A state is the counts of the whole file after a commit.
type state struct {
	counts       [4]int64 // policies by mode, those whose mode cannot be read at 0
	heartbeat    int64
	inDoubtSince int64
	used, size   int64 // bytes of used pages, and of all
}

// openBolt opens the file behind fd, which it closes after an error. Into an
// empty file fill writes; without fill an empty file is damage.
func openBolt(fd *os.File, maxSize int64, readOnly bool, fill func(*bbolt.Tx) error) (*boltFile, error) {
	f := &boltFile{maxSize: maxSize}
	_, err := boltfile.Open(fd, boltfile.Options{
		Name: fileName, Damaged: ErrUnreadable, MaxSize: maxSize, ReadOnly: readOnly, Fill: fill,
		Check: func(file *boltfile.File, tx *bbolt.Tx) error {
			f.File = file
			return f.check(tx, fd.Name())
		},
	})
	if errors.Is(err, boltfile.ErrLocked) {
		return nil, &LockedError{Path: fd.Name()}
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// check looks at the schema and reads the state.
func (f *boltFile) check(tx *bbolt.Tx, path string) error {
	var schema uint32
	meta := tx.Bucket(bucketMeta)
	if meta == nil || !decode(meta.Get(keySchema), &schema) {
		return faultf("it has no schema number")
	}
	if schema > schemaVersion {
		return &SchemaError{Path: path, Schema: schema}
	}
	st := new(state)
	decode(meta.Get(keyCounts), &st.counts)
	decode(meta.Get(keyNewest), &st.heartbeat)
	decode(meta.Get(keyInDoubt), &st.inDoubtSince)
	return f.publish(tx, st)
}

func (f *boltFile) publish(tx *bbolt.Tx, st *state) error {
	st.used, st.size = f.Sizes(tx)
	f.state.Store(st)
	return nil
}

// update runs fn in a writing transaction. Once that is on disk, the state that fn
// returned is published.
func (f *boltFile) update(fn func(*bbolt.Tx) (*state, error)) error {
	var st *state
	err := f.Update(func(tx *bbolt.Tx) (err error) {
		st, err = fn(tx)
		return err
	})
	if err != nil {
		return err
	}
	return f.View(func(tx *bbolt.Tx) error { return f.publish(tx, st) })
}

func (f *boltFile) close() error { return f.Close(ErrClosed) }
