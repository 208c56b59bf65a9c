package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

const (
	fileMode = 0o640

	// reserveMin is the least address space reserved for a file. What is
	// reserved bounds the file: bbolt refuses to grow beyond it, rather than
	// map the file anew, which would wait for its readers.
	reserveMin = 1 << 30

	boltLockWait = time.Second // for the lock that bbolt itself takes
)

var (
	errNotWhole = errors.New("one of its two meta pages, or both, cannot be read")
	errCut      = errors.New("it is shorter than it was")
	errFreelist = errors.New("its list of free pages cannot be read")
)

// A boltFile is an open cache file. bbolt writes it; it is read through a
// mapping of our own (see page.go), whose life does not depend on what a
// damaged page does to bbolt.
//
// All of it but data is for the holder of the Store's turn only: bbolt is
// entered by one goroutine at a time, so that no other can be caught in one of
// its locks.
type boltFile struct {
	db   *bbolt.DB
	data []byte // the whole reserved range
	fd   *os.File

	// broken is set after a panic in bbolt, whose locks may then be taken for
	// ever. Nothing enters bbolt again; the file is still read.
	broken  bool
	retired []*snapshot // states that were replaced and may still be read
}

// reserveFor returns how much address space to reserve for a file of size bytes
// in a cache of up to maxSize used bytes. A file does not shrink, and the pages
// that are free need not be where they are wanted: twice as much is plenty.
func reserveFor(maxSize, size int64) int {
	n := max(2*max(maxSize, size), reserveMin)
	if strconv.IntSize == 32 {
		return int(min(n, 1<<30))
	}
	return int(min(n, 1<<46))
}

// openBoltFile opens or makes the file at path and checks what can be checked
// without reading it through. It says with unreadable errors what is wrong with
// a damaged file, and leaves it as it is.
func openBoltFile(path string, maxSize int64, sync bool) (*boltFile, error) {
	size, err := checkFile(path)
	if err != nil {
		return nil, err
	}
	reserve := reserveFor(maxSize, size)
	b := &boltFile{}
	err = guard(func() (err error) {
		b.db, err = bbolt.Open(path, fileMode, &bbolt.Options{
			Timeout: boltLockWait,
			// The map type takes single pages from anywhere, and so cuts up
			// the runs of pages that the list itself, written with every
			// commit, needs: a file of a million policies grew by 1.4 GB a
			// day. The array type takes them from the front.
			FreelistType:    bbolt.FreelistArrayType,
			InitialMmapSize: reserve,
			MaxSize:         reserve,
			NoSync:          !sync,
			NoGrowSync:      !sync,
			OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
				f, err := os.OpenFile(name, flag, mode)
				b.fd = f
				return f, err
			},
		})
		return err
	})
	if errors.Is(err, bolterrors.ErrTimeout) {
		err = &LockedError{Path: path}
	}
	if err == nil {
		b.data, err = mapFile(b.fd, reserve)
	}
	if err == nil && size == 0 {
		err = b.create()
	}
	if err != nil {
		b.broken = b.broken || errors.Is(err, ErrUnreadable) || b.db == nil
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

func mapFile(f *os.File, reserve int) ([]byte, error) {
	data, err := unix.Mmap(int(f.Fd()), 0, reserve, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", reserve, err)
	}
	// Lookups jump about: reading ahead would only push useful pages out.
	if err := unix.Madvise(data, unix.MADV_RANDOM); err != nil && !errors.Is(err, unix.ENOSYS) {
		return nil, errors.Join(fmt.Errorf("advise on the mapping: %w", err), unix.Munmap(data))
	}
	return data, nil
}

// checkFile looks at the file before bbolt does, which would take a file that
// was cut short, and would believe any list of free pages. It returns the
// file's size, 0 if there is none.
func checkFile(path string) (int64, error) {
	f, err := openRegular(path)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return 0, err
	}
	m, whole := readMetas(f)
	switch {
	case whole < 2:
		return 0, errors.Join(ErrUnreadable, errNotWhole)
	case m.limit > uint64(info.Size())/uint64(m.pageSize):
		return 0, errors.Join(ErrUnreadable, errCut)
	}
	return info.Size(), readFreelist(f, m, func(uint64) {})
}

// openRegular opens the file at path for reading, if it is a regular one: a
// pipe would wait, a directory be of no use.
func openRegular(path string) (*os.File, error) {
	if err := CheckPath(path); err != nil {
		return nil, err
	}
	return os.Open(path)
}

// create makes the buckets of a new file.
func (b *boltFile) create() error {
	return b.update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketMeta, bucketPolicy, bucketDue, bucketExpiry, bucketEvict} {
			if _, err := tx.CreateBucket(name); err != nil {
				return fmt.Errorf("make bucket %s: %w", name, err)
			}
		}
		m := tx.Bucket(bucketMeta)
		if err := m.Put(keySchema, binary.LittleEndian.AppendUint32(nil, schemaVersion)); err != nil {
			return err
		}
		return m.Put(keyCounts, counts{}.encode())
	})
}

// update runs fn in a transaction that is on disk when update returns nil.
func (b *boltFile) update(fn func(*bbolt.Tx) error) error {
	if b.broken {
		return fmt.Errorf("%w: bbolt gave it up", ErrUnreadable)
	}
	err := guard(func() error { return b.db.Update(fn) })
	b.broken = isFault(err)
	return err
}

func isFault(err error) bool {
	var fault *faultError
	return errors.As(err, &fault)
}

// close gives back what can be. It must be called when nobody reads any more.
func (b *boltFile) close() error {
	if b.broken {
		// bbolt's locks may be taken, so its mapping stays: address space,
		// not memory. Closing the file also gives up the lock on it.
		if b.fd != nil {
			return errors.Join(b.unmap(), ignoreClosed(b.fd.Close()))
		}
		return b.unmap()
	}
	err := guard(b.db.Close)
	return errors.Join(b.unmap(), err)
}

func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

func (b *boltFile) unmap() error {
	if b.data == nil {
		return nil
	}
	data := b.data
	b.data = nil
	return unix.Munmap(data)
}
