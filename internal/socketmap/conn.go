package socketmap

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

// A conn is one client's connection. Its goroutine reads, looks up and writes
// in turn.
//
// A lookup that is answered from memory costs less than the system calls
// around it, so this is written for few of those, and for little else: no
// allocation, no lock, one reading of the clock for a request. In particular
// the deadlines of the socket, which are expensive to set, are left where they
// are as long as they are not later than what they stand for. When one fires
// too early it is set again, to the right moment this time.
type conn struct {
	server *Server
	nc     net.Conn
	ctx    context.Context // of the lookups
	cancel context.CancelFunc
	number uint64 // connections are numbered as they come
	index  int    // in server.conns, or -1; guarded by server.mu

	state    atomic.Int64  // see evict.go
	requests atomic.Uint64 // answered, not yet in the server's totals

	in     []byte // in[r:w] was read and not yet used
	r, w   int
	scan   scanner
	out    []byte // replies that were not yet written
	held   held
	busy   bool          // state is stateBusy
	idleAt time.Duration // since when the connection is idle; the clock is the server's

	startedBy time.Duration // when the request that has begun must be complete; 0: none has begun
	readBy    time.Duration // where the read deadline stands
	writeBy   time.Duration // where the write deadline stands

	smallIn  [readBuffer]byte // in and out at rest
	smallOut [writeBuffer]byte
}

// Reasons for which the server ends a connection by itself.
var (
	errIdle    = errors.New("idle for too long")
	errSlow    = errors.New("the request took too long to arrive")
	errNotRead = errors.New("the client does not read its replies")
	errEvicted = errors.New("closed to make room")
	errClosing = errors.New("the server is closing")
)

// replyRoom is what is left before a reply for the header of its netstring:
// the right amount for 100 to 999 bytes, others are moved.
const replyRoom = 4

func newConn(s *Server, nc net.Conn, number uint64) *conn {
	c := &conn{server: s, nc: nc, number: number, index: -1, idleAt: s.now()}
	c.ctx, c.cancel = context.WithCancel(s.ctx)
	c.in, c.out = c.smallIn[:], c.smallOut[:0]
	c.state.Store(int64(c.idleAt))
	return c
}

// serve answers requests until the connection ends.
func (c *conn) serve() {
	defer c.server.running.Done()
	defer c.server.forget(c)
	defer c.hangUp()
	defer func() {
		if p := recover(); p != nil { // a mistake of ours must not stop the mail of all
			c.server.notePanic(c, p, nil)
		}
	}()
	err := c.setReadDeadline(c.idleAt + c.server.limits.idle)
	for err == nil {
		if err = c.fill(); err == nil {
			err = c.answer()
		}
	}
	c.server.noteEnd(c, err)
}

// hangUp closes the connection and cancels its lookup.
func (c *conn) hangUp() {
	c.nc.Close()
	c.cancel()
}

// answer answers the whole requests that were read.
func (c *conn) answer() error {
	for {
		request, used, what, err := c.scan.next(c.in[c.r:c.w])
		c.r += used
		if err != nil || what == foundNothing {
			if restErr := c.rest(); restErr != nil {
				return restErr
			}
			return err
		}
		if !c.busy {
			if !c.state.CompareAndSwap(int64(c.idleAt), stateBusy) {
				return errEvicted
			}
			c.busy, c.startedBy = true, 0
		}
		c.requests.Add(1)
		if err := c.appendReply(request, what); err != nil {
			return err
		}
		if len(c.out) >= maxGather {
			if err := c.flush(c.server.now()); err != nil {
				return err
			}
		}
	}
}

// rest writes the replies and makes the connection idle again, if there were
// requests.
func (c *conn) rest() error {
	if !c.busy {
		return nil
	}
	now := c.server.now()
	if !c.state.CompareAndSwap(stateBusy, int64(now)) {
		return errEvicted
	}
	c.busy, c.idleAt = false, now
	return c.flush(now)
}

// appendReply appends the reply to one request to c.out. The handler writes
// into it, behind a little room for the header.
func (c *conn) appendReply(request []byte, what found) error {
	base := len(c.out)
	if base > 0 {
		c.hold()
	}
	c.out = slices.Grow(c.out, writeBuffer-maxGather)
	dst := c.out[base+replyRoom : base+replyRoom]
	if what == foundLong {
		dst = append(dst, replyLong...)
	} else {
		dst = c.look(dst, request)
	}
	if base > 0 {
		written, err := c.release()
		if err != nil {
			return err
		}
		if written {
			base, c.out = 0, c.smallOut[:0]
		}
	}

	var digits [maxHeader]byte
	header := append(strconv.AppendInt(digits[:0], int64(len(dst)), 10), ':')
	size := len(header) + len(dst) + 1
	c.out = slices.Grow(c.out, size)[:base+size]
	copy(c.out[base+len(header):], dst) // first: the header may overlap with where it was
	copy(c.out[base:], header)
	c.out[base+size-1] = ','
	return nil
}

// look asks the handler, and puts TEMP in the place of what cannot be sent.
func (c *conn) look(dst, request []byte) (reply []byte) {
	mapName, key, ok := splitRequest(request)
	if !ok {
		return append(dst, replyNoSpace...)
	}
	defer func() {
		if p := recover(); p != nil {
			c.server.notePanic(c, p, request)
			reply = append(dst, replyPanic...)
		}
	}()
	reply = c.server.handler.AppendReply(c.ctx, dst, mapName, key)
	switch {
	case len(reply) == 0:
		return append(dst, replyEmpty...)
	case len(reply) > MaxReply:
		return append(dst, replyOversized...)
	}
	return reply
}

// flush writes the replies. now is the server's clock.
func (c *conn) flush(now time.Duration) error {
	err := c.write(c.out, now)
	c.out = c.smallOut[:0]
	return err
}

// write writes b within the write limit from now on.
func (c *conn) write(b []byte, now time.Duration) error {
	due := now + c.server.limits.write
	if c.writeBy <= now {
		if err := c.setWriteDeadline(due); err != nil {
			return err
		}
	}
	for {
		n, err := c.nc.Write(b)
		if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		if c.server.now() >= due {
			return errNotRead
		}
		b = b[n:]
		if err := c.setWriteDeadline(due); err != nil {
			return err
		}
	}
}

// fill reads once, and waits for it as long as the limits allow.
func (c *conn) fill() error {
	c.makeRoom()
	if c.server.closing.Load() && c.endBy() == 0 {
		return c.fillLast()
	}
	due, late := c.idleAt+c.server.limits.idle, errIdle
	if c.w > c.r || c.scan.skipping { // a request has begun
		if c.startedBy == 0 {
			c.startedBy = c.server.now() + c.server.limits.started
		}
		due, late = c.startedBy, errSlow
		if c.readBy > due {
			if err := c.setReadDeadline(due); err != nil {
				return err
			}
		}
	}
	for {
		n, err := c.nc.Read(c.in[c.w:])
		if n > 0 {
			c.w += n
			return nil // an error comes again
		}
		switch {
		case err == nil:
			return io.ErrNoProgress
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case c.server.closing.Load() && c.server.now() >= c.endBy():
			return c.fillLast()
		case c.server.now() >= due:
			return late
		}
		if err := c.setReadDeadline(due); err != nil {
			return err
		}
	}
}

// endBy is until when the connection may wait for a request once the server is
// closing, on the server's clock: not at all, but for one that has never asked.
func (c *conn) endBy() time.Duration {
	if c.requests.Load() > 0 {
		return 0
	}
	return c.server.closedAt + c.server.limits.newcomer
}

// fillLast takes what has arrived and does not wait: the server is closing.
// The read deadline is past, so it reads around the runtime's poller.
func (c *conn) fillLast() error {
	sc, ok := c.nc.(syscall.Conn)
	if !ok {
		return errClosing
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	n := 0
	if err := raw.Control(func(fd uintptr) {
		n, err = syscall.Read(int(fd), c.in[c.w:]) // the runtime's sockets do not block
	}); err != nil {
		return err
	}
	if n <= 0 {
		return errClosing
	}
	c.w += n
	return nil
}

// makeRoom makes sure that there is room to read: it goes back to the small
// buffer when what is left fits there with as much again, and grows when the
// buffer is full. A request to be kept, with its frame, bounds what is left.
func (c *conn) makeRoom() {
	left := c.in[c.r:c.w]
	switch {
	case len(left) == 0 && cap(c.in) == readBuffer:
	case len(left) <= readBuffer/2:
		copy(c.smallIn[:], left)
		c.in = c.smallIn[:]
	case c.w == len(c.in) && c.r > 0:
		copy(c.in, left)
	case c.w == len(c.in):
		c.in = make([]byte, 2*len(c.in))
		copy(c.in, left)
	default:
		return
	}
	c.r, c.w = 0, len(left)
}

// setReadDeadline sets the read deadline to a time of the server's clock, or to
// the end that a server that is closing has set.
func (c *conn) setReadDeadline(at time.Duration) error {
	c.readBy = at
	if err := c.nc.SetReadDeadline(c.server.epoch.Add(at)); err != nil {
		return err
	}
	if c.server.closing.Load() {
		return c.nc.SetReadDeadline(c.server.epoch.Add(min(at, c.endBy())))
	}
	return nil
}

func (c *conn) setWriteDeadline(at time.Duration) error {
	c.writeBy = at
	return c.nc.SetWriteDeadline(c.server.epoch.Add(at))
}
