package cache

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

const (
	// The address space that is reserved for a file.
	reserveLeast = 1 << 30
	reserveMost  = 1 << (30 + strconv.IntSize/64*16)

	lockWait = 2 * time.Second // how long Open waits for a process that only reads
)

// A faultError says that the file is damaged: a page could not be read, or bbolt
// panicked on what it read.
type faultError struct{ what any }

func (e *faultError) Error() string { return fmt.Sprint("the cache file is damaged: ", e.what) }
func (e *faultError) Unwrap() error { return ErrUnreadable }

func faultf(format string, args ...any) error { return &faultError{fmt.Errorf(format, args...)} }

func isFault(err error) bool { return errors.As(err, new(*faultError)) }

// guard is the only way into bbolt: bbolt panics on a damaged page, and the
// kernel raises a fault where the file was cut or the disk fails. Both become a
// *faultError. A page that leads back to itself cannot be caught: bbolt's
// recursion ends the process (see starts).
func guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = &faultError{p}
		}
	}()
	return fn()
}

// A boltFile is an open bbolt file. Its first fault breaks it: no transaction begins
// after that, because bbolt's locks may never be released.
type boltFile struct {
	db      *bbolt.DB
	fd      *os.File
	info    os.FileInfo // tells whether the path still leads to this file
	maxSize int64

	mu      sync.Mutex // see begin
	shut    error      // why no transaction may begin any more
	fault   error      // the first one
	once    sync.Once  // for it
	broken  chan struct{}
	onFault func(*boltFile)

	last  atomic.Int64 // the newest transaction seen: an older one later means that a meta page was lost
	state atomic.Pointer[state]
}

// A state is the counts of the whole file after a commit.
type state struct {
	counts     [4]int64 // policies by mode, those whose mode cannot be read at 0
	heartbeat  int64
	used, size int64 // bytes of used pages, and of all
}

// openBolt opens the file behind fd, which it closes after an error. Into an
// empty file fill writes; without fill an empty file is damage.
func openBolt(fd *os.File, maxSize int64, readOnly bool, fill func(*bbolt.Tx) error) (*boltFile, error) {
	f := &boltFile{fd: fd, maxSize: maxSize, broken: make(chan struct{})}
	err := guard(func() error { return f.open(readOnly, fill) })
	if err == nil {
		return f, nil
	}
	if f.db != nil {
		_ = guard(f.db.Close)
	}
	f.giveUp()
	for _, damage := range []error{bolterrors.ErrInvalid, bolterrors.ErrVersionMismatch, bolterrors.ErrChecksum, unix.EIO} {
		if errors.Is(err, damage) {
			return nil, &faultError{err}
		}
	}
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, &LockedError{Path: fd.Name()}
	}
	return nil, err
}

func (f *boltFile) open(readOnly bool, fill func(*bbolt.Tx) error) (err error) {
	if f.info, err = f.fd.Stat(); err != nil {
		return err
	}
	if f.info.Size() < int64(2*os.Getpagesize()) && fill == nil {
		return faultf("it has %d bytes, fewer than two pages", f.info.Size())
	}
	// The map is reserved once, at twice max_size. To map the file again, bbolt would
	// wait for all readers, so it refuses to grow beyond the reservation instead.
	reserve := int(min(max(2*max(f.maxSize, f.info.Size()), reserveLeast), reserveMost))
	f.db, err = bbolt.Open(f.fd.Name(), 0, &bbolt.Options{
		Timeout:  lockWait,
		ReadOnly: readOnly,
		// The array type uses the first free pages. The map type uses any, and
		// fragments the free space: a file of a million policies grew by 1.4 GB a day.
		FreelistType:    bbolt.FreelistArrayType,
		InitialMmapSize: reserve,
		MaxSize:         reserve,
		OpenFile:        func(string, int, os.FileMode) (*os.File, error) { return f.fd, nil },
	})
	if err != nil {
		return err
	}
	if !f.wholeMeta(0) || !f.wholeMeta(int64(f.db.Info().PageSize)) {
		// bbolt would use the other meta page, which is one commit older.
		return faultf("one of its two meta pages cannot be read")
	}
	if f.info.Size() == 0 {
		err = f.update(func(tx *bbolt.Tx) (*state, error) { return &state{}, fill(tx) })
	}
	return errors.Join(err, f.view(f.check))
}

// wholeMeta reports whether the meta page at offset has its magic number and the
// right checksum, an FNV-1a of its fields.
func (f *boltFile) wholeMeta(offset int64) bool {
	const fields, sum, end, magic = 16, 72, 80, 0xED0CDAED
	var page [end]byte
	if _, err := f.fd.ReadAt(page[:], offset); err != nil {
		return false
	}
	h := fnv.New64a()
	h.Write(page[fields:sum])
	return binary.NativeEndian.Uint32(page[fields:]) == magic && binary.NativeEndian.Uint64(page[sum:]) == h.Sum64()
}

// check looks at what can be checked without reading the file through, and reads
// the state.
func (f *boltFile) check(tx *bbolt.Tx) error {
	if info, err := f.fd.Stat(); err != nil || tx.Size() > info.Size() {
		return faultf("it is shorter than it was (%v)", err)
	}
	var schema uint32
	meta := tx.Bucket(bucketMeta)
	if meta == nil || !decode(meta.Get(keySchema), &schema) {
		return faultf("it has no schema number")
	}
	if schema > schemaVersion {
		return &SchemaError{Path: f.fd.Name(), Schema: schema}
	}
	st := new(state)
	decode(meta.Get(keyCounts), &st.counts)
	decode(meta.Get(keyNewest), &st.heartbeat)
	f.last.Store(int64(tx.ID()))
	return f.publish(tx, st)
}

func (f *boltFile) publish(tx *bbolt.Tx, st *state) error {
	stats := f.db.Stats()
	st.size = tx.Size()
	st.used = st.size - int64(stats.FreePageN+stats.PendingPageN)*int64(f.db.Info().PageSize)
	f.state.Store(st)
	return nil
}

// view runs fn in a reading transaction.
func (f *boltFile) view(fn func(*bbolt.Tx) error) error {
	return f.noted(guard(func() error {
		tx, err := f.begin()
		if err != nil {
			return err
		}
		defer f.end(tx)
		return fn(tx)
	}))
}

var errStuck = faultf("bbolt panicked with its locks taken")

// begin begins a reading transaction. If both meta pages are damaged, bbolt panics
// and keeps a lock. So transactions begin and end one at a time, and none begins
// after a fault. This cannot deadlock with a writer, because the file is never
// mapped again (see openBolt).
func (f *boltFile) begin() (*bbolt.Tx, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.shut != nil {
		return nil, f.shut
	}
	f.shut = errStuck
	last := f.last.Load() // before the transaction begins: a commit may end meanwhile
	tx, err := f.db.Begin(false)
	f.shut = nil
	if err == nil && int64(tx.ID()) < last {
		return nil, faultf("its newest meta page was lost")
	}
	return tx, err
}

func (f *boltFile) end(tx *bbolt.Tx) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.shut != errStuck {
		_ = tx.Rollback()
	}
}

// update runs fn in a writing transaction. Once that is on disk, the state that fn
// returned is published. After a fault, fn may still wait for a lock of bbolt.
func (f *boltFile) update(fn func(*bbolt.Tx) (*state, error)) error {
	if f.isBroken() {
		return f.fault
	}
	done := make(chan error, 1)
	go func() {
		var st *state
		var id int64
		err := f.noted(guard(func() error {
			return f.db.Update(func(tx *bbolt.Tx) (err error) {
				if id = int64(tx.ID()); id <= f.last.Load() {
					return faultf("its newest meta page was lost")
				}
				if !f.wholeFreelist(tx) {
					return faultf("its list of free pages cannot be read")
				}
				st, err = fn(tx)
				return err
			})
		}))
		if err == nil {
			f.last.Store(id)
			err = f.view(func(tx *bbolt.Tx) error { return f.publish(tx, st) })
		}
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-f.broken:
		return f.fault
	}
}

// wholeFreelist looks at the page of the free list, since bbolt frees as many
// pages behind it as it says, up to 2^32.
func (f *boltFile) wholeFreelist(tx *bbolt.Tx) bool {
	const inMeta = 48
	var id [8]byte
	pageSize := int64(f.db.Info().PageSize)
	if _, err := f.fd.ReadAt(id[:], int64(tx.ID()-1)%2*pageSize+inMeta); err != nil {
		return false
	}
	page, err := tx.Page(int(binary.NativeEndian.Uint64(id[:])))
	return err == nil && page != nil && page.Type == "freelist" && int64(page.OverflowCount) < tx.Size()/pageSize
}

// noted breaks the file if err is a fault.
func (f *boltFile) noted(err error) error {
	if isFault(err) {
		f.once.Do(func() {
			f.mu.Lock()
			f.shut = cmp.Or(f.shut, err)
			f.mu.Unlock()
			f.fault = err
			f.giveUp() // so that a writer under way writes no more
			close(f.broken)
			if f.onFault != nil {
				f.onFault(f)
			}
		})
	}
	return err
}

func (f *boltFile) isBroken() bool {
	select {
	case <-f.broken:
		return true
	default:
		return false
	}
}

// giveUp closes the file under bbolt. The lock would last as long as the map.
func (f *boltFile) giveUp() {
	_ = unix.Flock(int(f.fd.Fd()), unix.LOCK_UN)
	_ = f.fd.Close()
}

// close waits for the transactions under way. A broken file stays mapped, which
// costs address space and no memory.
func (f *boltFile) close() error {
	if f.isBroken() {
		return nil
	}
	f.mu.Lock()
	f.shut = ErrClosed
	f.mu.Unlock()
	return guard(f.db.Close)
}
