package socketmap_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
)

// testWait bounds every wait of a test; a test that meets it fails.
const testWait = 20 * time.Second

// A handlerFunc is a Handler.
type handlerFunc func(ctx context.Context, dst, mapName, key []byte) []byte

func (f handlerFunc) AppendReply(ctx context.Context, dst, mapName, key []byte) []byte {
	return f(ctx, dst, mapName, key)
}

// echo answers "OK MAP|KEY".
var echo = handlerFunc(func(_ context.Context, dst, mapName, key []byte) []byte {
	return echoReply(dst, mapName, key)
})

func echoReply(dst, mapName, key []byte) []byte {
	dst = append(dst, "OK "...)
	dst = append(dst, mapName...)
	dst = append(dst, '|')
	return append(dst, key...)
}

// A lab is a server on loopback.
type lab struct {
	*socketmap.Server
	t      *testing.T
	at     endpoint.Endpoint
	log    *logBuffer
	served chan error
}

// startLab serves h at a free port.
func startLab(t *testing.T, h socketmap.Handler) *lab { return startLabOf(t, h, 0) }

// startLabOf is startLab for a number of connections.
func startLabOf(t *testing.T, h socketmap.Handler, connections int) *lab {
	t.Helper()
	log := &logBuffer{}
	l := &lab{t: t, log: log, served: make(chan error, 1)}
	l.Server = socketmap.NewServer(h, socketmap.Options{MaxConnections: connections, Log: slog.New(slog.NewTextHandler(log, nil))})
	listener, err := endpoint.Listen(endpoint.Endpoint{Network: "tcp", Address: "127.0.0.1:0"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	l.at = endpoint.Endpoint{Network: "tcp", Address: listener.Addr().String()}
	go func() { l.served <- l.Serve(listener) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		l.Shutdown(ctx)
		if err := <-l.served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return l
}

// A client is a connection to a server.
type testClient struct {
	net.Conn
	t *testing.T
	r *bufio.Reader
}

func (l *lab) dial() *testClient {
	l.t.Helper()
	nc, err := net.DialTimeout(l.at.Network, l.at.Address, testWait)
	if err != nil {
		l.t.Fatal(err)
	}
	return newTestClient(l.t, nc)
}

func newTestClient(t *testing.T, nc net.Conn) *testClient {
	t.Helper()
	if err := nc.SetDeadline(time.Now().Add(testWait)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return &testClient{nc, t, bufio.NewReader(nc)}
}

func (c *testClient) send(s string) {
	c.t.Helper()
	c.SetDeadline(time.Now().Add(testWait))
	if _, err := io.WriteString(c, s); err != nil {
		c.t.Fatalf("send %.40q: %v", s, err)
	}
}

func (c *testClient) want(reply string) {
	c.t.Helper()
	got, err := readReply(c.r)
	if err != nil {
		c.t.Fatalf("no reply: %v; want %.80q", err, reply)
	}
	if got != reply {
		c.t.Fatalf("reply %.80q, want %.80q", got, reply)
	}
}

// wantEnd wants the server to close, without a further byte.
func (c *testClient) wantEnd() {
	c.t.Helper()
	b, err := io.ReadAll(c.r)
	if len(b) > 0 {
		c.t.Fatalf("got %.80q, want the end", b)
	}
	if isTimeout(err) {
		c.t.Fatal("the server does not close")
	}
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}

// ask sends one request and wants echo's reply.
func (c *testClient) ask(key string) {
	c.t.Helper()
	c.send(request("postfix", key))
	c.want("OK postfix|" + key)
}

func request(mapName, key string) string {
	return frame(mapName + " " + key)
}

// readReply reads one netstring.
func readReply(r *bufio.Reader) (string, error) {
	header, err := r.ReadString(':')
	if err != nil {
		return "", err
	}
	n, err := strconv.Atoi(strings.TrimSuffix(header, ":"))
	if err != nil {
		return "", err
	}
	body := make([]byte, n+1)
	if _, err := io.ReadFull(r, body); err != nil || body[n] != ',' {
		return "", fmt.Errorf("no comma: %w", err)
	}
	return string(body[:n]), nil
}

func frame(s string) string { return fmt.Sprintf("%d:%s,", len(s), s) }

// until waits for a condition that another goroutine brings about.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	end := time.After(testWait)
	for !cond() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// receive waits for something on ch.
func receive[T any](t *testing.T, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(testWait):
		t.Fatalf("waited in vain: %s", what)
		panic("unreachable")
	}
}

// A logBuffer keeps what was logged.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logBuffer) count(s string) int { return strings.Count(l.String(), s) }
