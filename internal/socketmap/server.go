package socketmap

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

// A Server answers the requests of any number of listeners through one
// Handler.
type Server struct {
	handler Handler
	max     int // connections
	log     *slog.Logger
	epoch   time.Time // the server's clock counts from here

	ctx    context.Context // of all handlers; ends when Shutdown gives up waiting
	cancel context.CancelFunc

	done     chan struct{} // closed when Shutdown is called
	closing  atomic.Bool   // and the listeners are closed: connections end
	closedAt time.Duration // when closing was set; written before closing

	serving sync.WaitGroup // the calls of Serve: while there are any, connections may be added
	running sync.WaitGroup // the connections' goroutines

	requests, accepted, evicted, malformed, slow, panics atomic.Uint64 // as in Stats
	malformedLog, slowLog, panicLog, acceptLog           rate.Sometimes
	unread                                               atomic.Int64 // bytes of long replies that were not taken yet

	mu                    sync.Mutex // guards the rest; taken when a connection comes or goes, not for a request
	listeners             []net.Listener
	conns                 map[*conn]struct{}
	victims               []victim      // the next to make room
	nextNote, nextStalled time.Duration // no search before
}

// Options are a Server's settings. Zero values stand for defaults.
type Options struct {
	MaxConnections int          // half of Descriptors at most; 0: so many
	Log            *slog.Logger // discards
}

// Stats counts what a Server has seen since it was made.
type Stats struct {
	Open      int    // connections now
	Accepted  uint64 // connections
	Evicted   uint64 // connections closed to make room for newer ones
	Requests  uint64 // whole requests, those that were not looked up included
	Malformed uint64 // connections closed because they sent no netstring, or one too long to read
	Slow      uint64 // connections closed because a request, or the reading of replies, took too long
	Panics    uint64 // lookups that ended in a panic
}

// NewServer returns a server that answers with handler.
func NewServer(handler Handler, o Options) *Server {
	s := &Server{
		handler: handler,
		max:     cmp.Or(o.MaxConnections, math.MaxInt),
		log:     cmp.Or(o.Log, slog.New(slog.DiscardHandler)),
		epoch:   time.Now(),
		done:    make(chan struct{}),
		conns:   make(map[*conn]struct{}),
	}
	for _, l := range []*rate.Sometimes{&s.malformedLog, &s.slowLog, &s.panicLog, &s.acceptLog} {
		l.Interval = logEvery
	}
	s.max = min(s.max, max(Descriptors()/2, 1))
	if s.max < o.MaxConnections {
		s.log.Warn("fewer connections are held than max_connections", "max_connections", o.MaxConnections, "held", s.max,
			"next", "raise LimitNOFILE= to twice max_connections and more, or lower max_connections in [socket]")
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Serve accepts connections from l and answers them, until Shutdown: then it
// returns nil. It closes l. Several listeners may be served at once, each by a
// call of its own. An accept that fails is tried again after a pause; only a
// listener that someone else has closed is an error.
func (s *Server) Serve(l net.Listener) error {
	defer l.Close()
	s.mu.Lock()
	if s.closing.Load() {
		s.mu.Unlock()
		return nil
	}
	if s.listeners = append(s.listeners, l); len(s.listeners) == 1 {
		go s.watch()
	}
	s.serving.Add(1)
	s.mu.Unlock()
	defer s.serving.Done()
	// Connections inherit it, also those that wait to be accepted.
	control(l, func(fd int) { unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer) })
	for {
		nc, err := l.Accept()
		if err == nil {
			s.admit(nc)
			continue
		}
		closed := errors.Is(err, net.ErrClosed)
		if !closed {
			s.noteAcceptError(l, err)
		}
		select {
		case <-s.done:
			return nil
		case <-time.After(acceptPause):
		}
		if closed {
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		}
	}
}

// noteAcceptError logs err. If descriptors ran out, an idle connection is ended.
func (s *Server) noteAcceptError(l net.Listener, err error) {
	s.acceptLog.Do(func() {
		s.log.Error("cannot accept a connection", "listener", l.Addr().String(), "err", err,
			"next", "trying again; if file descriptors ran out, raise LimitNOFILE")
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		s.makeRoom(false)
	}
}

// admit adds a new connection, and closes another one if there are too many. A
// connection accepted just before the listener closed counts as new too.
func (s *Server) admit(nc net.Conn) {
	if b, ok := nc.(interface{ SetWriteBuffer(int) error }); ok {
		b.SetWriteBuffer(sendBuffer) // or the kernel's own limits hold
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() && s.now() >= s.closedAt+newcomerGrace {
		nc.Close()
		return
	}
	s.accepted.Add(1)
	if len(s.conns) >= s.max {
		s.makeRoom(true)
	}
	c := &conn{server: s, nc: nc, born: s.now(), in: bufio.NewReaderSize(nc, readBuffer)}
	c.ctx, c.cancel = context.WithCancel(s.ctx)
	c.enter(idle, c.born)
	s.conns[c] = struct{}{}
	s.running.Add(1)
	go c.serve()
}

// forget drops a connection that has ended by itself, or was ended.
func (s *Server) forget(c *conn) {
	c.nc.Close()
	c.cancel()
	s.mu.Lock()
	c.state.Store(-endItself) // no victim any more
	delete(s.conns, c)
	s.mu.Unlock()
	s.running.Done()
}

// Shutdown stops accepting, closes idle connections, answers the requests already
// received, and closes each connection after its last reply. A connection that has
// not asked yet gets a moment to ask: a client such as Exim connects for one request
// and would take the close for a failure. If ctx ends first, Shutdown cancels the
// handlers, closes all connections and returns an error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stopListening()
	gone := make(chan struct{})
	go func() {
		s.serving.Wait()
		s.running.Wait()
		close(gone)
	}()
	defer s.cancel()
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
	}
	s.cancel()
	s.mu.Lock()
	left := len(s.conns)
	for c := range s.conns {
		c.nc.Close()
	}
	s.mu.Unlock()
	select {
	case <-gone:
	case <-time.After(cancelGrace):
	}
	return fmt.Errorf("%d connections were closed before all their requests were answered: %w", left, ctx.Err())
}

// stopListening closes the listeners, then wakes all connections that wait for a
// request. The order matters: a client that loses its connection connects again
// once, and on a socket of systemd it must reach the next daemon, not this one.
func (s *Server) stopListening() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		return
	}
	close(s.done)
	for _, l := range s.listeners {
		l.Close() // waits for an accept that is under way
	}
	s.closedAt = s.now()
	s.closing.Store(true)
	for c := range s.conns {
		s.setLastDeadline(c)
	}
}

// setLastDeadline ends the wait for a request once the server is closing.
func (s *Server) setLastDeadline(c *conn) {
	at := s.closedAt + newcomerGrace
	if c.asked.Load() {
		at = s.now() + lastReadWait
	}
	c.nc.SetReadDeadline(s.epoch.Add(at))
}

// Stats returns the counts at this moment.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{
		Open: len(s.conns), Accepted: s.accepted.Load(), Evicted: s.evicted.Load(), Requests: s.requests.Load(),
		Malformed: s.malformed.Load(), Slow: s.slow.Load(), Panics: s.panics.Load(),
	}
}

// now is the server's clock.
func (s *Server) now() time.Duration { return time.Since(s.epoch) }

// noteEnd counts and logs why a connection ended. Events that clients can cause
// at will are logged at most once in logEvery; the counts tell the rest.
func (s *Server) noteEnd(c *conn, err error) {
	const next = "check what connects here; further ones are only counted for a while"
	switch {
	case errors.Is(err, errMalformed), errors.Is(err, errTooLong):
		s.malformed.Add(1)
		s.malformedLog.Do(func() {
			s.log.Warn("connection closed: what came is not a socketmap request", "client", client(c), "err", err, "next", next)
		})
	case err == endings[endSlow], err == endings[endNotRead]:
		s.slow.Add(1)
		s.slowLog.Do(func() { s.log.Warn("connection closed", "client", client(c), "err", err, "next", next) })
	case err == endings[endEvicted]:
		s.evicted.Add(1)
	}
}

// notePanic counts and logs a panic and where it came from. request is the one
// that was looked up, if any.
func (s *Server) notePanic(c *conn, panicked any, request []byte) {
	s.panics.Add(1)
	s.panicLog.Do(func() {
		s.log.Error("panic in a lookup, answered TEMP", "client", client(c),
			"request", text.Quote(string(request), maxLogged), "err", fmt.Sprint(panicked),
			"stack", string(debug.Stack()), "next", "please report this; further ones are only counted for a while")
	})
}

// client is the client's address. Clients of unix sockets have none, or "@".
func client(c *conn) string {
	if a := fmt.Sprint(c.nc.RemoteAddr()); len(a) > 1 {
		return a
	}
	return "at " + fmt.Sprint(c.nc.LocalAddr())
}
