package cache

import (
	"errors"
	"fmt"
	"runtime/debug"
)

var errBusy, errNoBucket = errors.New("the cache file is busy"), errors.New("it is missing")

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
