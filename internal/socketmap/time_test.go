package socketmap_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
)

// A pipeListener accepts one end of each pipe that dial makes: sockets do not
// live in a synctest bubble.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
}

func newPipeListener() *pipeListener {
	return &pipeListener{make(chan net.Conn), make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case nc := <-l.conns:
		return nc, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	select {
	case <-l.closed:
	default:
		close(l.closed)
	}
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

func (l *pipeListener) dial() net.Conn {
	client, server := net.Pipe()
	l.conns <- server
	return client
}

// bubble runs f with a server whose clock is the bubble's.
func bubble(t *testing.T, h socketmap.Handler, f func(t *testing.T, s *socketmap.Server, l *pipeListener)) {
	synctest.Test(t, func(t *testing.T) {
		s := socketmap.NewServer(h, socketmap.Options{MaxConnections: 1000})
		l := newPipeListener()
		go s.Serve(l)
		f(t, s, l)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		s.Shutdown(ctx)
	})
}

// A pipeClient keeps what it reads and when the end came.
type pipeClient struct {
	net.Conn
	t   *testing.T
	got chan string // one reply each, closed at the end
}

func newPipeClient(t *testing.T, nc net.Conn) *pipeClient {
	c := &pipeClient{nc, t, make(chan string, 100)}
	go func() {
		defer close(c.got)
		r := bufio.NewReader(nc)
		for {
			reply, err := readReply(r)
			if err != nil {
				return
			}
			c.got <- reply
		}
	}()
	return c
}

func (c *pipeClient) ask(key string) {
	c.t.Helper()
	if _, err := io.WriteString(c, request("postfix", key)); err != nil {
		c.t.Fatal(err)
	}
	if reply, ok := <-c.got; !ok || reply != "OK postfix|"+key {
		c.t.Fatalf("reply %q, %v", reply, ok)
	}
}

// isSoonAfter reports whether d is the limit, or up to a second more: the server
// looks at the limits once a second.
func isSoonAfter(d, limit time.Duration) bool { return d >= limit && d <= limit+time.Second }

// ended says how long it takes until the server closes.
func (c *pipeClient) ended() time.Duration {
	c.t.Helper()
	start := time.Now()
	if reply, ok := <-c.got; ok {
		c.t.Fatalf("reply %q, want the end", reply)
	}
	return time.Since(start)
}

func TestAnIdleConnectionIsClosedAfter100Seconds(t *testing.T) {
	bubble(t, echo, func(t *testing.T, s *socketmap.Server, l *pipeListener) {
		c := newPipeClient(t, l.dial())
		if d := c.ended(); !isSoonAfter(d, socketmap.IdleTimeout) {
			t.Errorf("one that never asked is closed after %v, want %v", d, socketmap.IdleTimeout)
		}
		c = newPipeClient(t, l.dial())
		for range 30 { // well beyond any deadline set at the start
			time.Sleep(33 * time.Second)
			c.ask("example.com")
		}
		if d := c.ended(); !isSoonAfter(d, socketmap.IdleTimeout) {
			t.Errorf("one that asked is closed after %v, want %v", d, socketmap.IdleTimeout)
		}
		if s.Stats().Slow != 0 {
			t.Error("idle connections count as slow")
		}
	})
}

func TestAStartedRequestMustBeCompleteIn10Seconds(t *testing.T) {
	for _, test := range []struct{ name, part string }{
		{"a header", "1"},
		{"a body", "19:postfix exam"},
		{"the comma", "19:postfix example.com"},
		{"a request that is not kept", "60000:postfix"},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, echo, func(t *testing.T, s *socketmap.Server, l *pipeListener) {
				c := newPipeClient(t, l.dial())
				for range 3 {
					c.ask("before.example")
					time.Sleep(50*time.Second + 300*time.Millisecond)
				}
				io.WriteString(c, test.part)
				if d := c.ended(); !isSoonAfter(d, socketmap.StartedTimeout) {
					t.Errorf("closed after %v, want %v", d, socketmap.StartedTimeout)
				}
				synctest.Wait()
				if s.Stats().Slow != 1 {
					t.Errorf("stats %+v, want one slow", s.Stats())
				}
			})
		})
	}
}

func TestASlowlySentRequestGetsNoExtraTime(t *testing.T) {
	bubble(t, echo, func(t *testing.T, _ *socketmap.Server, l *pipeListener) {
		c := newPipeClient(t, l.dial())
		start := time.Now()
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			for _, b := range []byte(request("postfix", strings.Repeat("k", 5000))) {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}()
		if <-c.got; !isSoonAfter(time.Since(start), socketmap.StartedTimeout) {
			t.Errorf("closed after %v, want %v", time.Since(start), socketmap.StartedTimeout)
		}
		<-stopped
	})
}

func TestRequestsThatAreSlowButInTimeAreAnswered(t *testing.T) {
	bubble(t, echo, func(t *testing.T, _ *socketmap.Server, l *pipeListener) {
		c := newPipeClient(t, l.dial())
		for range 20 {
			ask := request("postfix", "example.com")
			io.WriteString(c, ask[:5])
			time.Sleep(socketmap.StartedTimeout - time.Second)
			io.WriteString(c, ask[5:])
			if reply := <-c.got; reply != "OK postfix|example.com" {
				t.Fatalf("reply %q", reply)
			}
			time.Sleep(socketmap.IdleTimeout - time.Second)
		}
	})
}

func TestAClientThatDoesNotReadIsClosedAfter10Seconds(t *testing.T) {
	bubble(t, echo, func(t *testing.T, s *socketmap.Server, l *pipeListener) {
		nc := l.dial()
		defer nc.Close()
		go io.WriteString(nc, request("postfix", "example.com"))
		start := time.Now()
		for s.Stats().Open == 0 {
			synctest.Wait()
		}
		for s.Stats().Open > 0 {
			time.Sleep(time.Second / 4)
			synctest.Wait()
		}
		if d := time.Since(start); !isSoonAfter(d, socketmap.WriteTimeout) {
			t.Errorf("closed after %v, want %v", d, socketmap.WriteTimeout)
		}
		if s.Stats().Slow != 1 {
			t.Errorf("stats %+v, want one slow", s.Stats())
		}
	})
}

func TestEachWriteHasItsOwnDeadline(t *testing.T) {
	bubble(t, echo, func(t *testing.T, _ *socketmap.Server, l *pipeListener) {
		nc := l.dial()
		defer nc.Close()
		want := frame("OK postfix|example.com")
		for range 10 {
			io.WriteString(nc, request("postfix", "example.com"))
			time.Sleep(socketmap.WriteTimeout - time.Second)
			got := make([]byte, len(want))
			if _, err := io.ReadFull(nc, got); err != nil || string(got) != want {
				t.Fatalf("got %q, %v", got, err)
			}
		}
	})
}

func TestALookupMayTakeLongerThanConnectionTimeouts(t *testing.T) {
	slow := handlerFunc(func(_ context.Context, dst, mapName, key []byte) []byte {
		time.Sleep(3 * socketmap.IdleTimeout)
		return echoReply(dst, mapName, key)
	})
	bubble(t, slow, func(t *testing.T, _ *socketmap.Server, l *pipeListener) {
		c := newPipeClient(t, l.dial())
		for range 3 {
			c.ask("example.com")
		}
		if d := c.ended(); !isSoonAfter(d, socketmap.IdleTimeout) {
			t.Errorf("closed after %v, want %v", d, socketmap.IdleTimeout)
		}
	})
}
