package observe_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/observe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/observe/observetest"
)

// pipes is a listener whose connections are in memory, for synctest.
type pipes struct {
	accept chan net.Conn
	closed chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.accept:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	select {
	case <-p.closed:
	default:
		close(p.closed)
	}
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv6loopback} }

// serve serves an Observer and returns a function that connects to it.
func serve(t *testing.T, o *observe.Observer) (dial func() net.Conn) {
	t.Helper()
	l := &pipes{accept: make(chan net.Conn, 1000), closed: make(chan struct{})}
	ended := make(chan error, 1)
	go func() { ended <- o.Serve(l) }()
	t.Cleanup(func() {
		if err := o.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute) // in synctest: the server lingers after an answer that is an error
	})
	return func() net.Conn {
		client, server := net.Pipe()
		l.accept <- server
		t.Cleanup(func() { client.Close() })
		return client
	}
}

// status sends a request and returns the status of the answer.
func status(t *testing.T, c net.Conn, request string) int {
	t.Helper()
	defer c.Close()
	go io.WriteString(c, request)
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("%.40q: %v", request, err)
	}
	return res.StatusCode
}

const scrape = "GET /metrics HTTP/1.1\r\nHost: [::1]:9461\r\n\r\n"

func TestTheListenerAnswersReadsOfTwoPathsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial := serve(t, observetest.New())
		for request, want := range map[string]int{
			scrape: 200,
			"HEAD /metrics HTTP/1.1\r\nHost: [::1]\r\n\r\n":                                          200,
			"POST /metrics HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 0\r\n\r\n":                     405,
			"DELETE / HTTP/1.1\r\nHost: [::1]\r\n\r\n":                                               405,
			"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n":                                              200,
			"GET /v1/cache HTTP/1.1\r\nHost: [::1]\r\n\r\n":                                          404,
			"GET /debug/pprof/ HTTP/1.1\r\nHost: [::1]\r\n\r\n":                                      404,
			"\x16\x03\x01 hello\r\n\r\n":                                                             400,
			"GET /metrics HTTP/1.1\r\nHost: [::1]\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n": 431,
		} {
			if got := status(t, dial(), request); got != want {
				t.Errorf("%.40q: %d, want %d", request, got, want)
			}
		}
	})
}

func TestAStalledClientIsDisconnected(t *testing.T) {
	for _, start := range []string{
		"", "GET /met", "GET /metrics HTTP/1.1\r\nHost: [::1]\r\n",
		"POST /metrics HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 1000\r\n\r\nx",
		scrape, // and does not read
	} {
		synctest.Test(t, func(t *testing.T) {
			c := serve(t, observetest.New())()
			if _, err := io.WriteString(c, start); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			if _, err := c.Write([]byte("x")); err == nil {
				t.Errorf("%.20q: the server keeps the connection", start)
			}
		})
	}
}

func TestManySilentClientsOnlyDelayAScrape(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial, began := serve(t, observetest.New()), time.Now()
		for range 100 {
			dial()
		}
		if got := status(t, dial(), scrape); got != 200 || time.Since(began) > time.Minute {
			t.Errorf("status %d after %v", got, time.Since(began))
		}
	})
}

func TestALoopbackListenerIsAskedByAddressOnly(t *testing.T) {
	for _, path := range []string{"/", "/metrics"} {
		for _, c := range []struct {
			local, host string
			want        int
		}{
			{"127.0.0.1", "127.0.0.1:9461", 200},
			{"127.0.0.1", "LocalHost:9461", 200},
			{"::1", "[::1]:9461", 200},
			{"::1", "[::1]", 200},
			{"127.0.0.1", "rebound.example:9461", 403},
			{"127.0.0.1", "evil.com", 403},
			{"127.0.0.1", "localhost.evil.com", 403},
			{"127.0.0.1", "127.0.0.1.evil.com:9461", 403},
			{"::1", "[::1].evil.com", 403},
			{"::ffff:127.0.0.1", "evil.com", 403},
			{"127.0.0.1", "", 403},
			{"192.0.2.1", "relay.example:9461", 200},
		} {
			r := httptest.NewRequest("GET", path, nil)
			r.Host = c.host
			r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, &net.TCPAddr{IP: net.ParseIP(c.local)}))
			w := httptest.NewRecorder()
			if observetest.New().ServeHTTP(w, r); w.Code != c.want {
				t.Errorf("%s%s asked for %q: %d %s", c.local, path, c.host, w.Code, w.Body)
			}
		}
	}
}

func get(h http.Handler, target string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", target, nil))
	return w
}

// contains fails for each string that is not in a text.
func contains(t *testing.T, text string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(text, want) {
			t.Errorf("missing: %s\n%s", want, strings.TrimSpace(fmt.Sprintf("%.20000s", text)))
		}
	}
}
