package cache

import (
	"errors"
	"fmt"
	"runtime/debug"
)

// Errors that a caller decides on.
var (
	// ErrNotFound: no policy is stored for the domain.
	ErrNotFound = errors.New("no policy is stored")
	// ErrUnreadable: a page that must be read cannot be. It counts as a miss.
	ErrUnreadable = errors.New("the cache file cannot be read here")
	// ErrBusy: the file is being rebuilt, or a commit hangs. Nothing was written.
	ErrBusy = errors.New("the cache file is busy")
	// ErrClosed: the store is closed.
	ErrClosed = errors.New("the cache is closed")
	// ErrReadOnly: the store was opened to read only.
	ErrReadOnly = errors.New("the cache was opened for reading only")

	errNoBucket = errors.New("it is missing")
)

// A DamagedError is a policy that we held and cannot read: the file has a value
// for the domain, and its checksum is wrong.
type DamagedError struct {
	Domain string
	Err    error // what is wrong with it
}

func (e *DamagedError) Error() string {
	return "the stored policy of " + e.Domain + ": " + e.Err.Error()
}

// Unwrap returns the underlying error.
func (e *DamagedError) Unwrap() error { return e.Err }

// A faultError is a panic, most often one by which the runtime reports that a
// mapped page could not be read.
type faultError struct {
	what  any
	stack []byte
}

func (e *faultError) Error() string { return fmt.Sprint("panic: ", e.what) }
func (e *faultError) Unwrap() error { return ErrUnreadable }

// guard is the only way into bbolt and into a mapped file: both panic, or
// fault, when the file is damaged or cut short under them. It runs fn and
// returns its error; a panic or a fault becomes a *faultError.
//
// It does not make bbolt usable again. A panic may leave any of bbolt's locks
// taken, so after one in bbolt the file's handle is never touched again (see
// boltFile.broken).
func guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = &faultError{what: p, stack: debug.Stack()}
		}
	}()
	return fn()
}

// unreadable reports whether err means that the file is damaged.
func unreadable(err error) bool {
	var page *pageError
	return errors.Is(err, ErrUnreadable) || errors.As(err, &page) || errors.Is(err, errNoBucket)
}
