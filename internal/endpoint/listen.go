package endpoint

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"
)

// staleProbe is how long Listen waits for an answer on a socket that it finds
// in its place.
const staleProbe = time.Second

// Listen listens at e. A unix socket gets the mode, replaces a socket file on
// which nobody answers, and is removed when the listener is closed.
func Listen(e Endpoint, mode fs.FileMode) (net.Listener, error) {
	config := net.ListenConfig{KeepAlive: noKeepAlive}
	if e.Network == "unix" {
		if err := removeStale(e); err != nil {
			return nil, err
		}
		config = listenConfig(mode)
	}
	l, err := config.Listen(context.Background(), e.Network, e.Address)
	if err != nil {
		return nil, listenError(e, err)
	}
	if e.Network == "unix" {
		if err := os.Chmod(e.Address, mode.Perm()); err != nil { // gives back what the umask took
			l.Close()
			return nil, fmt.Errorf("listen at %s: set the socket's mode: %w", e, err)
		}
	}
	return l, nil
}

// noKeepAlive turns keep-alives off: idle connections are closed long before
// one would be sent.
const noKeepAlive = -1

// listenConfig makes a socket file with the mode, less the umask.
//
// The kernel takes the mode from the socket as it is before it is bound. With
// that set first, the file is at no moment open to more users than it should
// be, and the umask, which is the whole process's, is left alone.
func listenConfig(mode fs.FileMode) net.ListenConfig {
	return net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var chmodErr error
		err := raw.Control(func(fd uintptr) { chmodErr = syscall.Fchmod(int(fd), uint32(mode.Perm())) })
		return errors.Join(err, chmodErr)
	}}
}

// removeStale removes the socket file that a server which was killed has left
// behind.
func removeStale(e Endpoint) error {
	info, err := os.Lstat(e.Address)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return listenError(e, err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("listen at %s: a file that is not a socket is in the way; remove it or choose another path", e)
	}
	nc, err := net.DialTimeout(e.Network, e.Address, staleProbe)
	if err == nil {
		nc.Close()
	}
	// Only a refusal proves that nobody listens: a full queue or missing
	// permission do not.
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return listenError(e, syscall.EADDRINUSE)
	}
	if err := os.Remove(e.Address); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("listen at %s: remove the socket of a server that is gone: %w", e, err)
	}
	return nil
}

// listenError adds what to do about err.
func listenError(e Endpoint, err error) error {
	hint := ""
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		hint = "; another server runs there (see who with ss -lxtp): stop it or choose another endpoint"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		hint = "; this machine does not have the address: see ip address"
	case errors.Is(err, fs.ErrPermission) && e.Network == "unix":
		hint = "; the daemon's user must be able to write to the directory"
	case errors.Is(err, fs.ErrPermission):
		hint = "; choose a port above 1023"
	case errors.Is(err, fs.ErrNotExist):
		hint = "; make the directory first"
	}
	return fmt.Errorf("listen at %s: %w%s", e, err, hint)
}
