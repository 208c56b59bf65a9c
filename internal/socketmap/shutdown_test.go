package socketmap_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
)

// shutdown calls Shutdown with as much time as a test has.
func (l *lab) shutdown() error {
	ctx, cancel := context.WithTimeout(context.Background(), testWait)
	defer cancel()
	return l.Shutdown(ctx)
}

// isClosed reports whether the lab's listener is closed.
func (l *lab) isClosed() bool {
	nc, err := net.Dial("tcp", l.at.Address)
	if err == nil {
		nc.Close()
	}
	return err != nil
}

func TestShutdownClosesIdleConnectionsAndListeners(t *testing.T) {
	l := startLab(t, echo)
	silent, used := l.dial(), l.dial()
	used.ask("example.com")
	until(t, "both are accepted", func() bool { return l.Stats().Open == 2 })
	if err := l.shutdown(); err != nil {
		t.Fatal(err)
	}
	silent.wantEnd()
	used.wantEnd()
	if _, err := net.Dial("tcp", l.at.Address); err == nil {
		t.Error("it still accepts")
	}
	if n := l.Stats().Open; n != 0 {
		t.Errorf("%d connections open, want none", n)
	}
}

// Exim connects to ask once, and does not connect again.
func TestShutdownWaitsForTheFirstRequestOfAConnection(t *testing.T) {
	l := startLab(t, echo)
	oneShot, kept := l.dial(), l.dial()
	kept.ask("example.com")
	until(t, "both are accepted", func() bool { return l.Stats().Open == 2 })
	ended := make(chan error, 1)
	go func() { ended <- l.shutdown() }()
	kept.wantEnd() // at once: it has asked, and connects again
	oneShot.send(request("postfix", "late.example")[:5])
	oneShot.send(request("postfix", "late.example")[5:])
	oneShot.want("OK postfix|late.example")
	oneShot.wantEnd() // and it is not waited for a second time
	if err := receive(t, "the shutdown ends", ended); err != nil {
		t.Error(err)
	}
}

func TestShutdownAnswersAConnectionThatWasAcceptedJustBefore(t *testing.T) {
	l := startLab(t, echo)
	client, server := net.Pipe()
	second := &oneConn{conn: server, closed: make(chan struct{}), accepting: make(chan struct{}), accept: make(chan struct{})}
	served := make(chan error, 1)
	go func() { served <- l.Serve(second) }()
	receive(t, "the second listener accepts", second.accepting)
	ended := make(chan error, 1)
	go func() { ended <- l.shutdown() }()
	until(t, "the shutdown has begun", l.isClosed)
	close(second.accept) // the accept returns only now
	c := newTestClient(t, client)
	c.send(request("postfix", "late.example"))
	c.want("OK postfix|late.example")
	c.wantEnd()
	if err := receive(t, "the shutdown ends", ended); err != nil {
		t.Error(err)
	}
	if err := receive(t, "Serve returns", served); err != nil {
		t.Error(err)
	}
}

// A oneConn is a listener whose only connection was accepted while it was closed.
type oneConn struct {
	net.Listener
	conn              net.Conn
	accepting, accept chan struct{}
	closed            chan struct{}
	once              sync.Once
}

func (o *oneConn) Accept() (net.Conn, error) {
	if c := o.conn; c != nil {
		o.conn = nil
		close(o.accepting)
		<-o.accept
		return c, nil
	}
	<-o.closed
	return nil, net.ErrClosed
}

func (o *oneConn) Close() error {
	o.once.Do(func() { close(o.closed) })
	return nil
}

func TestShutdownDoesNotWaitForASilentConnectionWithoutEnd(t *testing.T) {
	bubble(t, echo, func(t *testing.T, s *socketmap.Server, l *pipeListener) {
		silent, begun := newPipeClient(t, l.dial()), newPipeClient(t, l.dial())
		io.WriteString(begun, "19:postfix exam")
		start := time.Now()
		if err := s.Shutdown(t.Context()); err != nil || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		silent.ended()
		begun.ended()
	})
}

// A closeNoter does something before it is closed.
type closeNoter struct {
	net.Listener
	onClose func()
}

func (n *closeNoter) Close() error {
	n.onClose()
	return n.Listener.Close()
}

// A client that is hung up on connects again, and must not meet the same server.
func TestShutdownClosesListenersBeforeConnections(t *testing.T) {
	l := startLab(t, echo)
	c := l.dial()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closes := 0
	second := &closeNoter{inner, func() {
		if closes++; closes == 1 {
			c.ask("still.example")
		}
	}}
	served := make(chan error, 1)
	go func() { served <- l.Serve(second) }()
	nc, err := net.Dial("tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	newTestClient(t, nc).ask("example.com") // the second is served too
	if err := l.shutdown(); err != nil {
		t.Fatal(err)
	}
	c.wantEnd()
	if err := receive(t, "Serve returns", served); err != nil || closes == 0 {
		t.Error(err, closes)
	}
}

func TestShutdownAnswersReceivedRequests(t *testing.T) {
	arrived, goOn := make(chan struct{}), make(chan struct{})
	l := startLab(t, slowHandler(arrived, goOn))
	c := l.dial()
	c.send(request("postfix", "slow.example"))
	receive(t, "the lookup begins", arrived)
	// These wait in the kernel, and half of one more.
	c.send(request("postfix", "a") + request("postfix", "b") + request("postfix", "half")[:7])
	ended := make(chan error, 1)
	go func() { ended <- l.shutdown() }()
	until(t, "the shutdown has begun", l.isClosed)
	close(goOn)
	c.want("OK postfix|slow.example")
	c.want("OK postfix|a")
	c.want("OK postfix|b")
	c.wantEnd()
	if err := receive(t, "the shutdown ends", ended); err != nil {
		t.Error(err)
	}
}

func TestShutdownEndsWithItsContext(t *testing.T) {
	arrived, goOn := make(chan struct{}), make(chan struct{})
	l := startLab(t, slowHandler(arrived, goOn))
	c := l.dial()
	c.send(request("postfix", "slow.example"))
	receive(t, "the lookup begins", arrived)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Shutdown(ctx) }()
	until(t, "the shutdown has begun", l.isClosed)
	cancel()
	if err := receive(t, "the shutdown ends", ended); !errors.Is(err, context.Canceled) {
		t.Errorf("Shutdown: %v, want the context's error", err)
	}
	io.Copy(io.Discard, c.r) // the reply of the cancelled handler may still come
	if n := l.Stats().Open; n != 0 {
		t.Errorf("%d connections open: the handler was not cancelled", n)
	}
}

func TestShutdownDoesNotWaitForAHandlerThatIgnoresItsContext(t *testing.T) {
	arrived, goOn := make(chan struct{}), make(chan struct{})
	l := startLab(t, handlerFunc(func(_ context.Context, dst, _, _ []byte) []byte {
		close(arrived)
		<-goOn
		return append(dst, "NOTFOUND "...)
	}))
	defer close(goOn)
	l.dial().send(request("postfix", "slow.example"))
	receive(t, "the lookup begins", arrived)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := l.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Shutdown: %v, want the context's error", err)
	}
}

func TestShutdownDropsARequestThatIsNotComplete(t *testing.T) {
	l := startLab(t, echo)
	c := l.dial()
	c.ask("example.com")
	c.send("19:postfix exam")
	if err := l.shutdown(); err != nil {
		t.Fatal(err)
	}
	c.wantEnd()
}

// A client that asks without end must not keep the server from closing.
func TestShutdownEndsUnderLoad(t *testing.T) {
	l := startLab(t, echo)
	const clients = 8
	ended := make(chan int, clients)
	for range clients {
		c := l.dial()
		c.ask("example.com")
		go func() {
			answered := 0
			want := frame("OK postfix|example.com")
			got := make([]byte, len(want))
			for {
				if _, err := io.WriteString(c, request("postfix", "example.com")); err != nil {
					break
				}
				if _, err := io.ReadFull(c.r, got); err != nil {
					break
				}
				answered++
			}
			ended <- answered
		}()
	}
	until(t, "all are busy", func() bool { return l.Stats().Requests > 50*clients })
	if err := l.shutdown(); err != nil {
		t.Fatal(err)
	}
	for range clients {
		receive(t, "the client sees the end", ended)
	}
}

func TestAConnectionAcceptedAfterShutdownIsClosed(t *testing.T) {
	l := startLab(t, echo)
	if err := l.shutdown(); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Serve(listener); err != nil {
		t.Errorf("Serve after Shutdown: %v", err)
	}
	if _, err := net.Dial("tcp", listener.Addr().String()); err == nil {
		t.Error("Serve left the listener open")
	}
}
