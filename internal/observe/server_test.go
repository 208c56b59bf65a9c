package observe

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/httpserver"
)

const (
	short    = 100 * time.Millisecond // in the place of the server's patience
	patience = 10 * time.Second
)

// serve returns the address of a server that answers with body, and waits for
// its clients no longer than wait: short only where it is to give up, since a
// busy machine may be slower than that with a request that is fine.
func serve(t *testing.T, body string, wait time.Duration) string {
	t.Helper()
	s := NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) }), nil, nil)
	s.http.ReadHeaderTimeout, s.http.ReadTimeout, s.http.WriteTimeout, s.http.IdleTimeout = wait, wait, wait, wait
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// status sends a request and returns the status of the answer.
func status(t *testing.T, addr, request string) int {
	t.Helper()
	c := dial(t, addr)
	defer c.Close() // an idle one has a place of the few there are
	go io.WriteString(c, request)
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("%.40q: %v", request, err)
	}
	return res.StatusCode // the body goes with the connection; the answer to HEAD has none to wait for
}

func TestOnlyMetricsAreServedAndOnlyRead(t *testing.T) {
	addr := serve(t, "here", patience)
	for request, want := range map[string]int{
		"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n":                                                       200,
		"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n":                                                      200,
		"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n":                                 405,
		"DELETE /metrics HTTP/1.1\r\nHost: x\r\n\r\n":                                                    405,
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n":                                                              404,
		"GET /v1/cache HTTP/1.1\r\nHost: x\r\n\r\n":                                                      404,
		"GET /debug/pprof/ HTTP/1.1\r\nHost: x\r\n\r\n":                                                  404,
		"\x16\x03\x01 hello\r\n\r\n":                                                                     400,
		"GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 4*httpserver.MaxHeader) + "\r\n": 431,
	} {
		if got := status(t, addr, request); got != want {
			t.Errorf("%.40q: %d, want %d", request, got, want)
		}
	}
}

// hungUp waits until the server has closed the connection.
func hungUp(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); err != nil && strings.Contains(err.Error(), "timeout") {
		t.Error("the server keeps the connection")
	}
}

func TestAClientThatDoesNotFinishItsRequestIsHungUpOn(t *testing.T) {
	addr := serve(t, "here", short)
	for _, start := range []string{
		"", "GET /met", "GET /metrics HTTP/1.1\r\nHost: x\r\n",
		"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", // and is then idle
		"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx",
	} {
		c := dial(t, addr)
		if _, err := io.WriteString(c, start); err != nil {
			t.Fatal(err)
		}
		hungUp(t, c)
	}
}

func TestAClientThatDoesNotReadIsHungUpOn(t *testing.T) {
	const size = 64 << 20 // more than the kernel takes
	addr := serve(t, strings.Repeat("x", size), short)
	c := dial(t, addr)
	if _, err := io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	// Another connection's time-out is later than this one's.
	later := dial(t, addr)
	hungUp(t, later)
	later = dial(t, addr)
	hungUp(t, later)
	if n, _ := io.Copy(io.Discard, c); n >= size {
		t.Errorf("%d bytes were kept for it", n)
	}
}

func TestManySilentClientsDelayAScrapeAndDoNotStopIt(t *testing.T) {
	addr := serve(t, "here", short)
	for range 3 * MaxConnections {
		dial(t, addr)
	}
	if got := status(t, addr, fmt.Sprintf("GET /metrics HTTP/1.1\r\nHost: %s\r\n\r\n", addr)); got != 200 {
		t.Error(got)
	}
}
