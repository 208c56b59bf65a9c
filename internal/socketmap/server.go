package socketmap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A Server answers the requests of any number of listeners through one
// Handler.
type Server struct {
	handler Handler
	max     int // connections
	log     *slog.Logger
	limits  limits
	epoch   time.Time // the server's clock counts from here

	ctx    context.Context // of all handlers; ends when Shutdown gives up waiting
	cancel context.CancelFunc

	done     chan struct{} // closed when Shutdown is called
	closing  atomic.Bool   // and the listeners are closed: connections end
	closedAt time.Duration // since when closing is set; written before it is

	malformedLog, slowLog, panicLog, acceptLog gate

	serving sync.WaitGroup // the calls of Serve: while there are any, connections may be added
	running sync.WaitGroup // the connections' goroutines

	mu        sync.Mutex // guards what follows; taken when a connection comes or goes, not for a request
	listeners map[net.Listener]struct{}
	conns     []*conn
	victims   []victim // the next to be evicted
	totals    Stats    // without Open, and without the requests of conns
}

// Options are a Server's settings. Zero values stand for defaults.
type Options struct {
	MaxConnections int          // DefaultMaxConnections
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
		handler:   handler,
		max:       o.MaxConnections,
		log:       o.Log,
		limits:    defaultLimits(),
		epoch:     time.Now().Add(-1), // so that no moment is 0
		done:      make(chan struct{}),
		listeners: make(map[net.Listener]struct{}),
	}
	if s.max <= 0 {
		s.max = DefaultMaxConnections
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
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
	if !s.register(l) {
		return nil
	}
	defer s.unregister(l)
	pause := acceptBackoffMin
	for {
		nc, err := l.Accept()
		if err == nil {
			pause = acceptBackoffMin
			s.admit(nc)
			continue
		}
		select {
		case <-s.done:
			return nil
		default:
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		}
		if s.acceptLog.pass(s.now()) {
			s.log.Error("cannot accept a connection", "listener", l.Addr().String(), "err", err,
				"next", "trying again; if file descriptors ran out, raise LimitNOFILE")
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, acceptBackoffMax)
		case <-s.done:
			return nil
		}
	}
}

func (s *Server) register(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		return false
	}
	s.listeners[l] = struct{}{}
	s.serving.Add(1)
	return true
}

func (s *Server) unregister(l net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, l)
	s.serving.Done()
}

// admit takes a new connection in, in the place of another if need be. One that
// was accepted just before the listener was closed is a newcomer like others.
func (s *Server) admit(nc net.Conn) {
	s.mu.Lock()
	if s.closing.Load() && s.now() >= s.closedAt+s.limits.newcomer {
		s.mu.Unlock()
		nc.Close()
		return
	}
	s.totals.Accepted++
	var victim *conn
	if len(s.conns) >= s.max {
		victim = s.evict()
	}
	c := newConn(s, nc, s.totals.Accepted)
	c.index = len(s.conns)
	s.conns = append(s.conns, c)
	s.running.Add(1)
	s.mu.Unlock()

	if victim != nil {
		victim.hangUp()
	}
	go c.serve()
}

// forget drops a connection that has ended.
func (s *Server) forget(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(c)
	s.totals.Requests += c.requests.Swap(0)
}

// remove takes c off the list, if it is still on it. s.mu is held.
func (s *Server) remove(c *conn) {
	c.state.Store(stateGone)
	if c.index < 0 {
		return
	}
	last := len(s.conns) - 1
	s.conns[c.index] = s.conns[last]
	s.conns[c.index].index = c.index
	s.conns[last] = nil
	s.conns = s.conns[:last]
	c.index = -1
	s.totals.Requests += c.requests.Swap(0)
}

// Shutdown stops accepting, closes the idle connections, has the requests that
// were received answered and closes each connection when its last reply is
// written. A connection that has never asked is given a moment to do so: its
// client has connected to ask once, as Exim does, and takes being hung up on
// for a failure. When ctx ends first, it cancels the handlers, closes what is left
// and returns an error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stopListening()
	gone := make(chan struct{})
	go func() {
		s.serving.Wait()
		s.running.Wait()
		close(gone)
	}()
	select {
	case <-gone:
		s.cancel()
		return nil
	case <-ctx.Done():
	}

	s.cancel()
	s.mu.Lock()
	left := len(s.conns)
	for _, c := range s.conns {
		c.nc.Close()
	}
	s.mu.Unlock()
	grace := time.NewTimer(s.limits.cancelGrace)
	defer grace.Stop()
	select {
	case <-gone:
	case <-grace.C:
	}
	return fmt.Errorf("%d connections were closed before all their requests were answered: %w", left, ctx.Err())
}

// stopListening closes the listeners, and then wakes every connection that
// waits for a request. In this order, since systemd keeps a socket that it
// passed open: a client that is hung up on connects again, once, and must then
// meet the next daemon and not this one.
func (s *Server) stopListening() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closing.Load() {
		close(s.done)
	}
	for l := range s.listeners {
		l.Close() // waits for an accept that is under way
	}
	if !s.closing.Load() {
		s.closedAt = s.now()
	}
	s.closing.Store(true)
	for _, c := range s.conns {
		c.nc.SetReadDeadline(s.epoch.Add(c.endBy()))
	}
}

// Stats returns the counts at this moment.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := s.totals
	stats.Open = len(s.conns)
	for _, c := range s.conns {
		stats.Requests += c.requests.Load()
	}
	return stats
}

// count adds to one of the totals.
func (s *Server) count(total *uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*total++
}

// now is the server's clock: the time since the epoch, more than zero.
func (s *Server) now() time.Duration { return time.Since(s.epoch) }

// A gate lets a log line pass once in logEvery.
type gate struct {
	next atomic.Int64
}

func (g *gate) pass(now time.Duration) bool {
	next := g.next.Load()
	return int64(now) >= next && g.next.CompareAndSwap(next, int64(now+logEvery))
}
