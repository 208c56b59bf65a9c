//go:build linux

package control_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
)

// dialAs connects to the unix socket as another user. Credentials are a
// thread's on Linux, and the kernel notes those of the one that connects: the
// thread is never given back.
func dialAs(t *testing.T, path string, uid int) net.Conn {
	t.Helper()
	type result struct {
		fd  int
		err error
	}
	connected := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // and not unlocked: the thread ends with its credentials
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
				err = e
			}
		}
		if err == nil {
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
		}
		connected <- result{fd, err}
	}()
	r := <-connected
	if r.err != nil {
		t.Fatal(r.err)
	}
	f := os.NewFile(uintptr(r.fd), path)
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn
}

const stranger = 65534

func TestOnlyRootAndTheDaemonsUserMayChangeAnything(t *testing.T) {
	if os.Geteuid() != 0 {
		return // who asks here is the daemon's user, and may
	}
	c, path := serve(t, &fakeKeeper{}, nil)
	const body = `{"domain":"d000.test"}`
	for request, want := range map[string]string{
		"POST /v1/refresh": "403", "POST /v1/forget": "403", "POST /v1/forget-failures": "403", "POST /v1/learn": "403",
		"POST /v1/exempt?domain=a.test&for=1h": "403", "GET /v1/exempt": "200", "GET /v1/health": "200",
	} {
		conn := dialAs(t, path, stranger)
		text := ""
		if strings.HasPrefix(request, "POST") {
			text = body
		}
		fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", request, len(text), text)
		status, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil || !strings.Contains(status, want) {
			t.Errorf("%s: got %q, %v; want %s", request, status, err, want)
		}
	}
	if err := c.Forget(t.Context(), []string{"d000.test"}, func(control.Forgotten) error { return nil }); err != nil {
		t.Errorf("root: %v", err)
	}
}

func TestReadersCannotKeepRootOut(t *testing.T) {
	if os.Geteuid() != 0 {
		return // nobody else can be played
	}
	c, path := serve(t, &fakeKeeper{records: once}, func(_ *control.Options, s *http.Server) {
		s.ReadHeaderTimeout, s.ReadTimeout = time.Minute, time.Minute // the strangers stay, however slow the machine
	})
	for range control.MaxClients {
		dialAs(t, path, stranger)
	}
	conn := dialAs(t, path, stranger) // one more is not kept; all before it have been seen
	if answer, err := io.ReadAll(conn); err != nil || len(answer) > 0 {
		t.Errorf("one too many: %q, %v", answer, err)
	}
	n := 0
	if err := c.List(t.Context(), func(control.Entry) error { n++; return nil }); err != nil || n != 1 {
		t.Errorf("root's listing: %d lines, %v", n, err)
	}
}
