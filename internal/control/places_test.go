package control

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// short stands in the place of the server's patience.
const short = 200 * time.Millisecond

func dialControl(t *testing.T, path, request string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	return conn
}

// hungUp waits until the server has closed the connection, and returns what it
// answered before.
func hungUp(t *testing.T, conn net.Conn) string {
	t.Helper()
	answer, err := io.ReadAll(conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the server keeps the connection")
	}
	return string(answer)
}

func TestAClientThatDoesNotFinishItsRequestIsHungUpOn(t *testing.T) {
	_, _, path := serve(t, &fakeKeeper{}, func(s *Server) {
		s.http.ReadHeaderTimeout, s.http.ReadTimeout, s.http.IdleTimeout = short, short, short
	})
	for _, start := range []string{
		"", "GET /v1/he", "GET /v1/health HTTP/1.1\r\nHost: x\r\n",
		"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n", // and is then idle
		"GET /v1/health HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n",
		"GET /v1/cache HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n",
		"GET /v1/nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
		"POST /v1/nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n",
		"POST /v1/forget HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{",
		"POST /v1/exempt HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{",
		"POST /v1/learn HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{",
		"POST /v1/learn HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n" + strings.Repeat(" ", 1000),
	} {
		hungUp(t, dialControl(t, path, start))
	}
}

func TestARefusalDoesNotWaitForTheBody(t *testing.T) {
	// The server's own patience: it would take longer than the test's.
	_, _, path := serve(t, &fakeKeeper{}, func(s *Server) { s.http.ReadTimeout = 2 * patience })
	answer := hungUp(t, dialControl(t, path, "GET /v1/health HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"))
	if !strings.HasPrefix(answer, "HTTP/1.1 400 ") {
		t.Errorf("%q", answer)
	}
	if os.Geteuid() != 0 {
		return // nobody else can be played
	}
	open(t, path)
	conn := dialAs(t, path, 65534)
	defer conn.Close()
	io.WriteString(conn, "POST /v1/forget HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
	if answer := hungUp(t, conn); !strings.HasPrefix(answer, "HTTP/1.1 403 ") {
		t.Errorf("%q", answer)
	}
}

func TestARequestThatTakesLongIsNotEndedByTheTimeForItsArrival(t *testing.T) {
	k := &fakeKeeper{refresh: make(chan struct{}), waiting: make(chan string, 1)}
	c, _, path := serve(t, k, func(s *Server) { s.http.ReadTimeout, s.http.ReadHeaderTimeout = short, short })
	done := make(chan error, 1)
	go func() {
		done <- c.Refresh(t.Context(), []string{"a.test"}, func(r Refreshed) error {
			if r.Err != "" {
				return errors.New(r.Err)
			}
			return nil
		})
	}()
	<-k.waiting
	// Two clients in turn, whose times have run out: so has the refresh's.
	for range 2 {
		hungUp(t, dialControl(t, path, "GET"))
	}
	close(k.refresh)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// open lets everybody reach the socket of this test.
func open(t *testing.T, path string) {
	t.Helper()
	for _, dir := range []string{filepath.Dir(path), filepath.Dir(filepath.Dir(path))} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
}

func TestReadersCannotKeepRootOut(t *testing.T) {
	if os.Geteuid() != 0 {
		return // nobody else can be played
	}
	k := &fakeKeeper{}
	k.add(4000, []byte(strings.Repeat("x", 8<<10)))
	c, s, path := serve(t, k, func(s *Server) {
		s.http.ReadHeaderTimeout, s.http.ReadTimeout = time.Minute, time.Minute // the strangers stay, however slow the machine
	})
	open(t, path)
	stranger := func(request string) net.Conn {
		conn := dialAs(t, path, 65534)
		t.Cleanup(func() { conn.Close() })
		io.WriteString(conn, request)
		return conn
	}
	for range maxListings { // all places for listings
		conn := stranger("GET /v1/cache HTTP/1.1\r\nHost: x\r\n\r\n")
		if _, err := conn.Read(make([]byte, 1)); err != nil { // it has begun
			t.Fatal(err)
		}
	}
	answer := make([]byte, 100)
	n, err := stranger("GET /v1/cache HTTP/1.1\r\nHost: x\r\n\r\n").Read(answer)
	if err != nil || !strings.Contains(string(answer[:n]), " 503 ") {
		t.Errorf("%q, %v", answer[:n], err)
	}
	for range MaxConnections + maxWaiting { // all connections, and all that may wait
		stranger("")
	}
	hungUp(t, stranger("")) // one more is not kept; all before it have been seen
	if n := len(s.listings.all); n != maxListings {
		t.Errorf("%d listings are under way", n)
	}
	lines := 0
	if err := c.List(t.Context(), true, func(Entry) error { lines++; return nil }); err != nil || lines != 4000 {
		t.Errorf("root's listing: %d lines, %v", lines, err)
	}
	if err := c.Forget(t.Context(), []string{"d000001.test"}, func(Forgotten) error { return nil }); err != nil {
		t.Error(err)
	}
}

func TestAClientDoesNotWaitForADaemonThatDoesNotAnswer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	l, err := net.Listen("unix", path) // as systemd does, for a daemon that cannot start
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := NewClient(path)
	defer c.Close()
	c.transport.ResponseHeaderTimeout = short
	if _, err := c.Health(t.Context()); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("got %v", err)
	}
	err = c.Refresh(t.Context(), []string{"a.test"}, func(Refreshed) error { return nil })
	if !errors.Is(err, ErrNoAnswer) || !strings.Contains(fmt.Sprint(err), path) {
		t.Errorf("got %v", err)
	}
}
