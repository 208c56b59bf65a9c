package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// The lock is a file of its own beside the cache, so that it also covers the
// moments in which the cache is moved aside or replaced.
const (
	lockSuffix = ".lock"
	lockWait   = 2 * time.Second // how long Open waits for one who only reads
	lockPoll   = 20 * time.Millisecond
)

// lockCache takes the lock of the cache at path until the file is closed. One
// who writes excludes all others; readers share it. A reader gets nil when no
// one has ever locked the cache.
func lockCache(path string, write bool) (*os.File, error) {
	flags, how := os.O_RDWR|os.O_CREATE, unix.LOCK_EX
	if !write {
		flags, how = os.O_RDONLY, unix.LOCK_SH
	}
	f, err := os.OpenFile(path+lockSuffix, flags, fileMode)
	if !write && errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("lock the cache: %w", err)
	}
	for deadline := time.Now().Add(lockWait); ; time.Sleep(lockPoll) {
		err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil || !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			break
		}
	}
	if err == nil && write {
		err = writePID(f)
	}
	if err != nil {
		locked := errors.Is(err, unix.EWOULDBLOCK)
		var holder *LockedError
		if locked {
			holder = &LockedError{Path: path}
		}
		f.Close()
		if locked {
			return nil, holder
		}
		return nil, fmt.Errorf("lock the cache: %s: %w", path+lockSuffix, err)
	}
	return f, nil
}

// writePID tells others who has the lock, unless there is no room for that.
func writePID(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); !noRoom(err) {
		return err
	}
	return nil
}
