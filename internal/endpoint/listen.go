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

// staleProbe is how long Listen waits for an answer on a socket file that
// exists already.
const staleProbe = time.Second

// Listen listens at e. A unix socket gets the mode, replaces a socket file on
// which nobody answers, and is removed when the listener is closed.
func Listen(e Endpoint, mode fs.FileMode) (net.Listener, error) {
	config := net.ListenConfig{KeepAlive: -1} // idle connections are closed long before
	if e.Network == "unix" {
		if err := removeStale(e); err != nil {
			return nil, err
		}
		config.Control = setMode(mode)
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

// ListenDatagrams makes the unix datagram socket at path, as Listen makes a stream
// socket.
func ListenDatagrams(path string, mode fs.FileMode) (*net.UnixConn, error) {
	e := Endpoint{Network: "unixgram", Address: path}
	if err := removeStale(e); err != nil {
		return nil, err
	}
	config := net.ListenConfig{Control: setMode(mode)}
	conn, err := config.ListenPacket(context.Background(), e.Network, path)
	if err == nil {
		if err = os.Chmod(path, mode.Perm()); err == nil {
			return conn.(*net.UnixConn), nil
		}
		err = errors.Join(err, conn.Close(), os.Remove(path))
	}
	return nil, listenError(e, err)
}

// setMode sets the mode of a socket before it is bound. The kernel gives the
// socket file that mode less the umask, so that the file is never open to more
// users than it should be.
func setMode(mode fs.FileMode) func(_, _ string, raw syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) error {
		var chmodErr error
		err := raw.Control(func(fd uintptr) { chmodErr = syscall.Fchmod(int(fd), uint32(mode.Perm())) })
		return errors.Join(err, chmodErr)
	}
}

// removeStale removes the socket file of a server that was killed.
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
	// permission does not.
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return listenError(e, syscall.EADDRINUSE)
	}
	if err := os.Remove(e.Address); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("listen at %s: remove the socket of a dead server: %w", e, err)
	}
	return nil
}

// listenError adds to err what to do about it.
func listenError(e Endpoint, err error) error {
	hint := ""
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		hint = "; another server runs there (ss -lxtp names it): stop it or choose another endpoint"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		hint = "; this machine does not have the address: see ip address"
	case errors.Is(err, fs.ErrPermission) && e.Network != "tcp":
		hint = "; the daemon's user must be able to write to the directory"
	case errors.Is(err, fs.ErrPermission):
		hint = "; choose a port above 1023"
	case errors.Is(err, fs.ErrNotExist):
		hint = "; make the directory first"
	}
	return fmt.Errorf("listen at %s: %w%s", e, err, hint)
}
