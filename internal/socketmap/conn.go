package socketmap

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"net"
	"strconv"
	"sync/atomic"
	"time"
)

// A conn is one client's connection. Its goroutine reads a request, looks it up
// and writes the reply, in turn, so that a client that does not read its replies
// is not read from. Other goroutines look at its state, and end it.
//
// A lookup that is answered from memory costs less than the system calls around
// it. So a request takes no allocation, no lock, no deadline and one reading of
// the clock.
type conn struct {
	server *Server
	nc     net.Conn
	ctx    context.Context // of the lookups
	cancel context.CancelFunc
	born   time.Duration // on the server's clock, as all times here

	state atomic.Int64 // see phase
	own   int64        // the state as the conn's goroutine has set it last
	asked atomic.Bool  // there was a request
	last  bool         // the server is closing, and what had arrived is read
	large atomic.Int64 // bytes of the reply outside of out, until it is written

	in  *bufio.Reader
	out [writeBuffer]byte
}

// A phase is what a connection is at. The state is the phase and, in the bits
// above, since when; or minus an ending. Every change is a compare-and-swap, so
// that a connection either ends or goes on, never both.
type phase int64

const (
	idle    phase = iota // waits for a request
	reading              // a request has begun
	busy                 // a request is looked up; idle or reading since then
	writing              // a reply is written

	phaseBits = 2
)

// split takes a state apart that is not an ending.
func split(state int64) (phase, time.Duration) {
	return phase(state & (1<<phaseBits - 1)), time.Duration(state >> phaseBits)
}

// Why a connection ends.
const (
	endItself = iota + 1 // read or write failed
	endIdle              // these are the server's doing
	endSlow
	endNotRead
	endEvicted
)

var endings = [...]error{
	endIdle:    errors.New("idle for too long"),
	endSlow:    errors.New("the request took too long to arrive"),
	endNotRead: errors.New("the client does not read its replies"),
	endEvicted: errors.New("closed to make room"),
}

// serve answers requests until the connection ends.
func (c *conn) serve() {
	defer c.server.forget(c)
	defer func() {
		if p := recover(); p != nil { // a mistake of ours must not stop the mail of all
			c.server.notePanic(c, p, nil)
		}
	}()
	var err error
	for err == nil {
		var request []byte
		if request, err = c.read(); err == nil {
			err = c.answer(request)
		}
	}
	if state := c.state.Load(); state < 0 {
		err = endings[-state]
	}
	c.server.noteEnd(c, err)
}

// enter changes the state, unless another goroutine has ended the connection.
func (c *conn) enter(p phase, since time.Duration) error {
	next := int64(since)<<phaseBits | int64(p)
	if !c.state.CompareAndSwap(c.own, next) {
		return net.ErrClosed
	}
	c.own = next
	return nil
}

// read reads a request, which is valid until the next read. It is nil if it is too
// long to be looked up.
func (c *conn) read() (request []byte, err error) {
	if c.in.Buffered() == 0 && c.server.closing.Load() {
		if c.last {
			return nil, net.ErrClosed
		}
		c.last = c.asked.Load()
		c.server.setLastDeadline(c)
	}
	if _, err := c.in.Peek(1); err != nil {
		return nil, err
	}
	if err := c.server.awaitRoom(c); err != nil {
		return nil, err
	}
	b, _ := c.in.Peek(c.in.Buffered())
	if length, size, _ := parseHeader(b, MaxRequest); size == 0 || size+length >= len(b) { // the rest is still to come
		if err := c.enter(reading, c.server.now()); err != nil {
			return nil, err
		}
	}
	length, err := readHeader(c.in, MaxRead)
	if err == nil && length > MaxRequest {
		if _, err = c.in.Discard(length); err == nil {
			_, err = readBody(c.in, 0)
		}
	} else if err == nil {
		request, err = readBody(c.in, length)
	}
	if err != nil {
		return nil, err
	}
	_, since := split(c.own)
	return request, c.enter(busy, since)
}

// answer writes the reply to a request.
func (c *conn) answer(request []byte) error {
	c.asked.Store(true)
	c.server.requests.Add(1)
	room := c.out[:maxHeader] // the header is written when the length is known
	reply := c.look(room, request)
	if n := cap(reply); n > writeBuffer {
		if !c.server.charge(c, int64(n)) {
			reply = append(room, replyNoMemory...)
		}
		defer c.server.release(c)
	}

	var digits [maxHeader]byte
	header := append(strconv.AppendInt(digits[:0], int64(len(reply)-maxHeader), 10), ':')
	reply = append(reply, ',')[maxHeader-len(header):]
	copy(reply, header)
	now := c.server.now()
	if err := c.enter(writing, now); err != nil {
		return err
	}
	if _, err := c.nc.Write(reply); err != nil {
		return err
	}
	return c.enter(idle, now)
}

// look asks the handler. TEMP replaces a reply that cannot be sent.
func (c *conn) look(dst, request []byte) (reply []byte) {
	mapName, key, ok := bytes.Cut(request, []byte{' '})
	switch {
	case request == nil:
		return append(dst, replyLong...)
	case !ok:
		return append(dst, replyNoSpace...)
	}
	defer func() {
		if p := recover(); p != nil {
			c.server.notePanic(c, p, request)
			reply = append(dst, replyPanic...)
		}
	}()
	reply = c.server.handler.AppendReply(c.ctx, dst, mapName, key)
	switch n := len(reply) - len(dst); {
	case n <= 0:
		return append(dst, replyEmpty...)
	case n > MaxReply:
		return append(dst, replyOversized...)
	}
	return reply
}
