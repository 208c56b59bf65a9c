//go:build !linux

package cache

import (
	"errors"
	"os"
)

// memoryFile makes a file without a name where temporary files are.
func memoryFile() (*os.File, error) {
	fd, err := os.CreateTemp("", "sts-tlsmap-cache")
	if err == nil {
		if err = os.Remove(fd.Name()); err != nil {
			err = errors.Join(err, fd.Close())
		}
	}
	return fd, err
}
