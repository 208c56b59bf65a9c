package socketmap

import (
	"bufio"
	"context"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
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
func bubble(t *testing.T, h Handler, f func(t *testing.T, s *Server, l *pipeListener)) {
	synctest.Test(t, func(t *testing.T) {
		s := NewServer(h, Options{})
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
			reply, err := readNetstring(r, MaxReply)
			if err != nil {
				return
			}
			c.got <- string(reply)
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
	bubble(t, echo, func(t *testing.T, s *Server, l *pipeListener) {
		c := newPipeClient(t, l.dial())
		if d := c.ended(); d != IdleTimeout {
			t.Errorf("one that never asked is closed after %v, want %v", d, IdleTimeout)
		}
		c = newPipeClient(t, l.dial())
		for range 30 { // well beyond any deadline set at the start
			time.Sleep(33 * time.Second)
			c.ask("example.com")
		}
		if d := c.ended(); d != IdleTimeout {
			t.Errorf("one that asked is closed after %v, want %v", d, IdleTimeout)
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
			bubble(t, echo, func(t *testing.T, s *Server, l *pipeListener) {
				c := newPipeClient(t, l.dial())
				for range 3 {
					c.ask("before.example")
					time.Sleep(50 * time.Second)
				}
				io.WriteString(c, test.part)
				if d := c.ended(); d != StartedTimeout {
					t.Errorf("closed after %v, want %v", d, StartedTimeout)
				}
				synctest.Wait()
				if s.Stats().Slow != 1 {
					t.Errorf("stats %+v, want one slow", s.Stats())
				}
			})
		})
	}
}

func TestADrippingRequestGetsNoMoreTimeThanASilentOne(t *testing.T) {
	bubble(t, echo, func(t *testing.T, _ *Server, l *pipeListener) {
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
		if <-c.got; time.Since(start) != StartedTimeout {
			t.Errorf("closed after %v, want %v", time.Since(start), StartedTimeout)
		}
		<-stopped
	})
}

func TestRequestsThatAreSlowButInTimeAreAnswered(t *testing.T) {
	bubble(t, echo, func(t *testing.T, _ *Server, l *pipeListener) {
		c := newPipeClient(t, l.dial())
		for range 20 {
			ask := request("postfix", "example.com")
			io.WriteString(c, ask[:5])
			time.Sleep(StartedTimeout - time.Second)
			io.WriteString(c, ask[5:])
			if reply := <-c.got; reply != "OK postfix|example.com" {
				t.Fatalf("reply %q", reply)
			}
			time.Sleep(IdleTimeout - time.Second)
		}
	})
}

func TestAClientThatDoesNotReadIsClosedAfter10Seconds(t *testing.T) {
	bubble(t, echo, func(t *testing.T, s *Server, l *pipeListener) {
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
		if d := time.Since(start); d != WriteTimeout {
			t.Errorf("closed after %v, want %v", d, WriteTimeout)
		}
		if s.Stats().Slow != 1 {
			t.Errorf("stats %+v, want one slow", s.Stats())
		}
	})
}

func TestEveryWriteHasItsWholeTime(t *testing.T) {
	bubble(t, echo, func(t *testing.T, _ *Server, l *pipeListener) {
		nc := l.dial()
		defer nc.Close()
		want := frame("OK postfix|example.com")
		for range 10 {
			io.WriteString(nc, request("postfix", "example.com"))
			time.Sleep(WriteTimeout - time.Second)
			got := make([]byte, len(want))
			if _, err := io.ReadFull(nc, got); err != nil || string(got) != want {
				t.Fatalf("got %q, %v", got, err)
			}
		}
	})
}

func TestALookupMayTakeLongerThanAnyLimitOfTheConnection(t *testing.T) {
	slow := handlerFunc(func(_ context.Context, dst, mapName, key []byte) []byte {
		time.Sleep(3 * IdleTimeout)
		return echoReply(dst, mapName, key)
	})
	bubble(t, slow, func(t *testing.T, _ *Server, l *pipeListener) {
		c := newPipeClient(t, l.dial())
		for range 3 {
			c.ask("example.com")
		}
		if d := c.ended(); d != IdleTimeout {
			t.Errorf("closed after %v, want %v", d, IdleTimeout)
		}
	})
}

// An exhaustedListener has no file descriptors left, but for one connection in the
// middle, and notes when it was asked for one.
type exhaustedListener struct {
	*pipeListener
	asked []time.Time
	good  int // the accept that succeeds
	most  int // then it waits to be closed
}

func (l *exhaustedListener) Accept() (net.Conn, error) {
	l.asked = append(l.asked, time.Now())
	switch len(l.asked) {
	case l.good:
		client, server := net.Pipe()
		client.Close()
		return server, nil
	case l.most:
		<-l.closed
		return nil, net.ErrClosed
	}
	return nil, syscall.EMFILE
}

func TestThePauseAfterAFailedAcceptGrowsUpToASecondAndASuccessEndsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewServer(echo, Options{})
		l := &exhaustedListener{pipeListener: newPipeListener(), good: 12, most: 16}
		served := make(chan error, 1)
		go func() { served <- s.Serve(l) }()
		time.Sleep(time.Minute)
		synctest.Wait()
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
		var pauses []time.Duration
		for i := range len(l.asked) - 1 {
			pauses = append(pauses, l.asked[i+1].Sub(l.asked[i]))
		}
		const ms = time.Millisecond
		want := []time.Duration{5 * ms, 10 * ms, 20 * ms, 40 * ms, 80 * ms, 160 * ms, 320 * ms, 640 * ms, time.Second, time.Second, time.Second,
			0, 5 * ms, 10 * ms, 20 * ms}
		if !slices.Equal(pauses, want) {
			t.Errorf("pauses %v, want %v", pauses, want)
		}
	})
}
