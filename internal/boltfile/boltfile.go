// Package boltfile opens a bbolt file so that damage of the file is an error. bbolt panics
// on a damaged page, and the kernel raises a fault where the file was cut or the disk
// fails. After the first damage nothing is written through the file any more: the caller
// sets it aside and makes another. One damage cannot be caught: a page that leads back to
// itself makes bbolt recurse until the process ends (see Starts).
package boltfile

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

// ErrLocked: another process has the file open.
var ErrLocked = bolterrors.ErrTimeout

// Damage is the error of a damaged file: a page could not be read, or bbolt panicked on
// what it read.
type Damage struct {
	File  string // "the cache file"
	Cause any    // an error, or what bbolt panicked with
	Is    error  // what errors.Is finds in it; may be nil
}

func (e *Damage) Error() string { return fmt.Sprint(e.File, " is damaged: ", e.Cause) }

// Unwrap returns Is.
func (e *Damage) Unwrap() error { return e.Is }

// Options of a file.
type Options struct {
	Name     string // in errors: "the cache file"
	Damaged  error  // what errors.Is finds in a *Damage; may be nil
	MaxSize  int64  // bytes of the file, about
	ReadOnly bool
	Fill     func(*bbolt.Tx) error        // fills an empty file; nil: an empty file is damage
	Check    func(*File, *bbolt.Tx) error // looks at the content when the file is opened
}

// A File is an open bbolt file. Its first damage breaks it: no transaction begins after
// that, because bbolt's locks may never be released.
type File struct {
	// OnFault is called once, when the file breaks. Set it before the first transaction.
	OnFault func()

	o    Options
	db   *bbolt.DB
	fd   *os.File
	info os.FileInfo

	mu     sync.Mutex // see begin
	shut   error      // why no transaction may begin any more
	fault  error      // the first one
	once   sync.Once  // for it
	broken chan struct{}

	last atomic.Int64 // the newest transaction seen: an older one later means that a meta page was lost
}

func (o *Options) damage(cause any) error { return &Damage{o.Name, cause, o.Damaged} }

func (f *File) faultf(format string, args ...any) error {
	return f.o.damage(fmt.Errorf(format, args...))
}

// guard is the only way into bbolt: panics and page faults become a *Damage.
func (f *File) guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = f.o.damage(p)
		}
	}()
	return fn()
}

// Open opens the file behind fd, which it closes after an error. The error is a *Damage if
// the file is damaged, and ErrLocked if another process has it open.
func Open(fd *os.File, o Options) (*File, error) {
	f := &File{o: o, fd: fd, broken: make(chan struct{})}
	err := f.guard(f.open)
	if err == nil {
		return f, nil
	}
	if f.db != nil {
		_ = f.guard(f.db.Close)
	}
	f.giveUp()
	for _, damage := range []error{bolterrors.ErrInvalid, bolterrors.ErrVersionMismatch, bolterrors.ErrChecksum, unix.EIO} {
		if errors.Is(err, damage) {
			return nil, o.damage(err)
		}
	}
	return nil, err
}

func (f *File) open() (err error) {
	if f.info, err = f.fd.Stat(); err != nil {
		return err
	}
	if f.info.Size() < int64(2*os.Getpagesize()) && f.o.Fill == nil {
		return f.faultf("it has %d bytes, fewer than two pages", f.info.Size())
	}
	// The map is reserved once, at twice MaxSize. To map the file again, bbolt would
	// wait for all readers, so it refuses to grow beyond the reservation instead.
	reserve := int(min(max(2*max(f.o.MaxSize, f.info.Size()), reserveLeast), reserveMost))
	f.db, err = bbolt.Open(f.fd.Name(), 0, &bbolt.Options{
		Timeout:  lockWait,
		ReadOnly: f.o.ReadOnly,
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
		return f.faultf("one of its two meta pages cannot be read")
	}
	if f.info.Size() == 0 {
		err = f.Update(f.o.Fill)
	}
	return errors.Join(err, f.View(f.check))
}

// wholeMeta reports whether the meta page at offset has its magic number and the
// right checksum, an FNV-1a of its fields.
func (f *File) wholeMeta(offset int64) bool {
	const fields, sum, end, magic = 16, 72, 80, 0xED0CDAED
	var page [end]byte
	if _, err := f.fd.ReadAt(page[:], offset); err != nil {
		return false
	}
	h := fnv.New64a()
	h.Write(page[fields:sum])
	return binary.NativeEndian.Uint32(page[fields:]) == magic && binary.NativeEndian.Uint64(page[sum:]) == h.Sum64()
}

// check looks at what can be checked without reading the file through.
func (f *File) check(tx *bbolt.Tx) error {
	if info, err := f.fd.Stat(); err != nil || tx.Size() > info.Size() {
		return f.faultf("it is shorter than it was (%v)", err)
	}
	f.last.Store(int64(tx.ID()))
	if f.o.Check == nil {
		return nil
	}
	return f.o.Check(f, tx)
}

// Sizes returns the bytes of used pages, and of all.
func (f *File) Sizes(tx *bbolt.Tx) (used, size int64) {
	stats := f.db.Stats()
	size = tx.Size()
	return size - int64(stats.FreePageN+stats.PendingPageN)*int64(f.db.Info().PageSize), size
}

// View runs fn in a reading transaction.
func (f *File) View(fn func(*bbolt.Tx) error) error {
	return f.noted(f.guard(func() error {
		tx, err := f.begin()
		if err != nil {
			return err
		}
		defer f.end(tx)
		return fn(tx)
	}))
}

var errStuck = errors.New("bbolt panicked with its locks taken")

// begin begins a reading transaction. If both meta pages are damaged, bbolt panics
// and keeps a lock. So transactions begin and end one at a time, and none begins
// after a fault. This cannot deadlock with a writer, because the file is never
// mapped again (see open).
func (f *File) begin() (*bbolt.Tx, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.shut == errStuck {
		return nil, f.o.damage(errStuck)
	}
	if f.shut != nil {
		return nil, f.shut
	}
	f.shut = errStuck
	last := f.last.Load() // before the transaction begins: a commit may end meanwhile
	tx, err := f.db.Begin(false)
	f.shut = nil
	if err == nil && int64(tx.ID()) < last {
		return nil, f.faultf("its newest meta page was lost")
	}
	return tx, err
}

func (f *File) end(tx *bbolt.Tx) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.shut != errStuck {
		_ = tx.Rollback()
	}
}

// Update runs fn in a writing transaction, which is on disk when Update returns nil.
// After a fault, fn may still wait for a lock of bbolt.
func (f *File) Update(fn func(*bbolt.Tx) error) error {
	if f.IsBroken() {
		return f.fault
	}
	done := make(chan error, 1)
	go func() {
		var id int64
		err := f.noted(f.guard(func() error {
			return f.db.Update(func(tx *bbolt.Tx) (err error) {
				if id = int64(tx.ID()); id <= f.last.Load() {
					return f.faultf("its newest meta page was lost")
				}
				if !f.wholeFreelist(tx) {
					return f.faultf("its list of free pages cannot be read")
				}
				return fn(tx)
			})
		}))
		if err == nil {
			f.last.Store(id)
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
func (f *File) wholeFreelist(tx *bbolt.Tx) bool {
	const inMeta = 48
	var id [8]byte
	pageSize := int64(f.db.Info().PageSize)
	if _, err := f.fd.ReadAt(id[:], int64(tx.ID()-1)%2*pageSize+inMeta); err != nil {
		return false
	}
	page, err := tx.Page(int(binary.NativeEndian.Uint64(id[:])))
	return err == nil && page != nil && page.Type == "freelist" && int64(page.OverflowCount) < tx.Size()/pageSize
}

// noted breaks the file if err is damage.
func (f *File) noted(err error) error {
	if IsDamage(err) {
		f.once.Do(func() {
			f.mu.Lock()
			f.shut = cmp.Or(f.shut, err)
			f.mu.Unlock()
			f.fault = err
			f.giveUp() // so that a writer under way writes no more
			close(f.broken)
			if f.OnFault != nil {
				f.OnFault()
			}
		})
	}
	return err
}

// IsDamage reports whether err is a *Damage.
func IsDamage(err error) bool { return errors.As(err, new(*Damage)) }

// IsBroken reports whether the file has met damage.
func (f *File) IsBroken() bool {
	select {
	case <-f.broken:
		return true
	default:
		return false
	}
}

// Fault returns the first damage that a broken file has met.
func (f *File) Fault() error {
	<-f.broken
	return f.fault
}

// IsAt reports whether the path leads to the file.
func (f *File) IsAt(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && os.SameFile(info, f.info)
}

// OpenedSize returns the bytes that the file had when it was opened.
func (f *File) OpenedSize() int64 { return f.info.Size() }

// giveUp closes the file under bbolt. The lock would last as long as the map.
func (f *File) giveUp() {
	_ = unix.Flock(int(f.fd.Fd()), unix.LOCK_UN)
	_ = f.fd.Close()
}

// Close waits for the transactions under way; later ones fail with the error closed. A
// broken file stays mapped, which costs address space and no memory.
func (f *File) Close(closed error) error {
	if f.IsBroken() {
		return nil
	}
	f.mu.Lock()
	f.shut = closed
	f.mu.Unlock()
	return f.guard(f.db.Close)
}
