package control

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/user"
	"strconv"
	"syscall"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"golang.org/x/sys/unix"
)

// Group is the group whose members may read, where the system has it.
const Group = "sts-tlsmap"

// socketMode lets the owner and the group in.
const socketMode = 0o660

// Listen listens at the unix socket path. A socket that nobody answers on is
// replaced; one that is in use is an error that says so. The socket is given
// to Group if it exists and we may; if not, it stays with the process's own.
func Listen(path string) (net.Listener, error) {
	l, err := endpoint.Listen(endpoint.Endpoint{Network: "unix", Address: path}, socketMode)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if g, err := user.LookupGroup(Group); err == nil {
		if gid, err := strconv.Atoi(g.Gid); err == nil {
			_ = os.Chown(path, -1, gid) // not allowed: root and the daemon's user can still read
		}
	}
	return l, nil
}

// A peer is who is at the other end, as the kernel has it.
type peer struct {
	uid uint32
	err error
}

type peerKey struct{}

// withPeer notes in ctx who opened the connection.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, peerKey{}, peerOf(c))
}

func peerOf(c net.Conn) peer {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return peer{err: fmt.Errorf("%T has no credentials", c)}
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return peer{err: err}
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	switch {
	case err != nil:
		return peer{err: err}
	case credErr != nil:
		return peer{err: credErr}
	}
	return peer{uid: cred.Uid}
}

// mayWrite says whether the peer is root or the daemon's own user.
func (p peer) mayWrite(own uint32) bool {
	return p.err == nil && (p.uid == 0 || p.uid == own)
}
