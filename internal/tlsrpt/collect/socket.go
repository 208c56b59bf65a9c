package collect

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
)

const (
	// Group is the group of Postfix's daemons: whoever may write can forge sessions.
	Group = "postfix"

	socketMode = 0o660
	folderMode = 0o710

	// MinQueue is the least net.unix.max_dgram_qlen that loses nothing at an ordinary pace.
	MinQueue = 128
)

// eximGroups are the groups of Exim's daemons: Debian's, and those of others.
var eximGroups = []string{"Debian-exim", "exim", "mail"}

// Listen makes the datagram socket, and its folder if that is missing. Both are given to
// Group where it exists; not to be allowed to is an error, because Postfix could not
// write. A socket on which nobody listens is replaced.
func Listen(path string) (*net.UnixConn, error) {
	gid := gidOf(Group)
	folder := filepath.Dir(path)
	if err := os.Mkdir(folder, folderMode); err == nil {
		if err := errors.Join(os.Chmod(folder, folderMode), give(folder, gid, "")); err != nil {
			return nil, err
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make the folder of the socket for TLS sessions: %w", err)
	}
	conn, err := endpoint.ListenDatagrams(path, socketMode)
	if err != nil {
		return nil, err
	}
	if err := give(path, gid, ""); err != nil {
		return nil, errors.Join(err, conn.Close(), os.Remove(path))
	}
	return conn, nil
}

// ListenLines makes the stream socket for Exim, and gives it to Exim's group, as Listen.
func ListenLines(path string) (net.Listener, error) {
	l, err := endpoint.Listen(endpoint.Endpoint{Network: "unix", Address: path}, socketMode)
	if err != nil {
		return nil, err
	}
	if err := give(path, gidOf(eximGroups...), "-exim"); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// gidOf returns the number of the first group that exists; -1: none does.
func gidOf(groups ...string) int {
	for _, name := range groups {
		if g, err := user.LookupGroup(name); err == nil {
			if gid, err := strconv.Atoi(g.Gid); err == nil {
				return gid
			}
		}
	}
	return -1
}

// give gives a file to a group.
func give(path string, gid int, unit string) error {
	if gid < 0 {
		return nil
	}
	if err := os.Chown(path, -1, gid); err != nil {
		return fmt.Errorf("%w; run as root, or let systemd make the socket (sts-tlsmap-tlsrpt%s.socket)", err, unit)
	}
	return nil
}

// Passed returns the socket that systemd has made. It must be a unix datagram socket.
func Passed(conn net.PacketConn) (*net.UnixConn, error) {
	c, ok := conn.(*net.UnixConn)
	if !ok || c.LocalAddr().Network() != "unixgram" {
		return nil, errors.New("the socket for TLS sessions is not a unix datagram socket: it needs ListenDatagram=")
	}
	return c, nil
}

// QueueLength returns how many datagrams the kernel holds for a socket made now; 0: it
// does not say.
func QueueLength() int {
	b, _ := os.ReadFile("/proc/sys/net/unix/max_dgram_qlen")
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
}
