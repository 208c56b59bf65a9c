package boltfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Create makes a file that belongs to the owner of its folder, so that a
// start by root leaves none that the daemon's user cannot open. It must not exist.
func Create(path string) (*os.File, error) {
	fd, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o640)
	if err != nil || os.Geteuid() != 0 {
		return fd, err
	}
	info, err := os.Stat(filepath.Dir(path))
	if err == nil {
		owner := info.Sys().(*syscall.Stat_t)
		err = fd.Chown(int(owner.Uid), int(owner.Gid))
	}
	if err != nil {
		return nil, errors.Join(err, fd.Close(), os.Remove(path))
	}
	return fd, nil
}

// Starts counts starts by the size of the file of that name, because damage that ends
// the process would end it again before bbolt could read a count.
type Starts string

// Count counts a start, and returns how many there were since Forget; 0 if the file
// cannot be written.
func (s Starts) Count() int64 {
	fd, err := os.OpenFile(string(s), os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		fd, err = Create(string(s))
	}
	if err != nil {
		return 0
	}
	defer fd.Close()
	if _, err = fd.Write([]byte{'.'}); err == nil {
		if info, err := fd.Stat(); err == nil {
			return info.Size()
		}
	}
	return 0
}

// Forget resets the count.
func (s Starts) Forget() { _ = os.Remove(string(s)) }
