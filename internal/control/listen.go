package control

import (
	"fmt"
	"math"
	"net"
	"os"
	"os/user"
	"strconv"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
)

// Group is the group whose members may read, where the system has it.
const Group = "sts-tlsmap"

// socketMode lets the owner and the group in.
const socketMode = 0o660

// Listen listens at the unix socket path. A socket that nobody answers on is
// replaced; one in use is an error that says so. The socket is given to Group
// if it exists and we may; else it keeps the group of the process.
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

// unknownUID is no user's: where the kernel does not say who opened a
// connection, it may read.
const unknownUID = math.MaxUint32

// peerOf asks the kernel for the uid that opened a connection.
func peerOf(c net.Conn) uint32 {
	uid := uint32(unknownUID)
	if conn, ok := c.(*net.UnixConn); ok {
		if raw, err := conn.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) { uid = peerUID(int(fd)) })
		}
	}
	return uid
}
