// Package collect takes in what MTAs tell of their TLS sessions, for TLS reports (RFC
// 8460): the datagrams of libtlsrpt, which Postfix 3.10 and later send. One goroutine
// reads the socket into a ring, and one parses what the ring holds and writes a batch each
// second. Neither waits for the other, and no lookup waits for either: what cannot be
// taken is dropped and counted. What the kernel drops before, nobody can count.
package collect

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

const (
	batchEvery = time.Second
	maxBatch   = 4 << 20 // bytes of a batch; then it is written before its second has passed
	readPause  = time.Second
)

// A Log takes batches. The error is store.ErrLost if a batch must not be written again.
type Log interface {
	Write(*store.Batch) error
}

// Options of a collector.
type Options struct {
	Log         *slog.Logger     // nil: none
	Now         func() time.Time // the clock; nil: time.Now
	QueueLength int              // of the kernel, see QueueLength
}

// A Collector collects from one socket.
type Collector struct {
	conn   net.Conn
	to     Log
	o      Options
	ring   *ring
	parser Parser
	batch  store.Batch // the consumer's
	stats  struct{ datagrams, successful, failed, batches, panics atomic.Uint64 }
	failed atomic.Pointer[error] // why the last batch could not be written
}

// Stats are the numbers of a collector.
type Stats struct {
	Datagrams          uint64 // received
	Successful, Failed uint64 // sessions
	Batches            uint64 // written
	Panics             uint64 // recovered
	Dropped            map[string]uint64
	RingSize, MaxRing  int
	Err                error // why the last batch could not be written; nil: it was
}

// New makes a collector of a socket that Listen or Passed returned.
func New(conn net.Conn, to Log, o Options) *Collector {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Collector{conn: conn, to: to, o: o, ring: newRing()}
}

// Stats returns the numbers of the collector.
func (c *Collector) Stats() Stats {
	s := Stats{
		Datagrams: c.stats.datagrams.Load(), Successful: c.stats.successful.Load(), Failed: c.stats.failed.Load(),
		Batches: c.stats.batches.Load(), Panics: c.stats.panics.Load(), Dropped: c.parser.Drops.Counts(),
		RingSize: c.ring.size(), MaxRing: maxRing,
	}
	if err := c.failed.Load(); err != nil {
		s.Err = *err
	}
	return s
}

// Run collects until the context ends. Then it takes what has been received, writes it,
// and closes the socket.
func (c *Collector) Run(ctx context.Context) {
	if n := c.o.QueueLength; n > 0 && n < MinQueue {
		c.o.Log.Warn("the kernel drops TLS sessions of Postfix without telling when more than a few come at once",
			"net.unix.max_dgram_qlen", n, "next", fmt.Sprintf("set it to 512 before the socket is made; %d is the least", MinQueue))
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		c.read(ctx)
	}()
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	tick := time.NewTicker(batchEvery)
	defer tick.Stop()
	for ended := false; !ended; {
		select {
		case <-tick.C:
		case <-c.ring.wake:
		case <-read:
			ended = true
		}
		c.consume()
	}
	_ = c.conn.Close()
}

// read moves datagrams into the ring.
func (c *Collector) read(ctx context.Context) {
	buffer := make([]byte, MaxDatagram+1) // one more, to see that one is too long
	for failing := false; ; {
		n, err := c.conn.Read(buffer)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			if !failing {
				c.o.Log.Error("TLS sessions cannot be received", "err", err, "next", "it is tried again each second")
			}
			failing = true
			select {
			case <-ctx.Done():
			case <-time.After(readPause):
			}
			continue
		}
		failing = false
		c.stats.datagrams.Add(1)
		if n > MaxDatagram {
			c.parser.Drops.Add(DropTooLong, 1)
		} else if !c.ring.put(buffer[:n]) {
			c.parser.Drops.Add(DropRing, 1)
		}
	}
}

// consume parses what the ring holds and writes the batch.
func (c *Collector) consume() {
	day := tlsrpt.DayOf(c.o.Now())
	for chunk := c.ring.take(); chunk != nil; chunk = c.ring.take() {
		each(chunk, func(datagram []byte) { c.add(datagram, day) })
		c.ring.giveBack(chunk)
	}
	c.write()
}

// add adds the sessions of a datagram to the batch. It is written first if it is full or
// of another day; where that fails, the sessions are dropped.
func (c *Collector) add(datagram []byte, day tlsrpt.Day) {
	defer c.recoverPanic()
	for _, e := range c.parser.Parse(datagram) {
		if c.batch.Day() != day || c.batch.Size() >= maxBatch {
			if c.failed.Load() == nil {
				c.write() // else consume tries it again
			}
			if c.batch.Sessions() > 0 {
				c.parser.Drops.Add(DropBatch, 1)
				continue
			}
			c.batch.Reset(day)
		}
		c.batch.Add(&e)
		if e.Failed {
			c.stats.failed.Add(1)
		} else {
			c.stats.successful.Add(1)
		}
	}
}

// write writes the batch and empties it. After an error the batch stays, to be written
// again.
func (c *Collector) write() {
	defer c.recoverPanic()
	if c.batch.Sessions() == 0 {
		return
	}
	err := c.to.Write(&c.batch)
	if err == nil || errors.Is(err, store.ErrLost) {
		c.batch.Reset(c.batch.Day())
		c.stats.batches.Add(1)
	}
	switch was := c.failed.Load(); {
	case err == nil:
		if c.failed.Store(nil); was != nil {
			c.o.Log.Info("TLS sessions are recorded again")
		}
	default:
		if c.failed.Store(&err); was == nil {
			c.o.Log.Error("TLS sessions cannot be recorded", "err", err, "next", "it is tried again each second")
		}
	}
}

// recoverPanic recovers from a panic in one datagram's work, which would end the daemon
// and so delay all mail.
func (c *Collector) recoverPanic() {
	if p := recover(); p != nil {
		if c.stats.panics.Add(1) == 1 {
			c.o.Log.Error("bug: recovered from a panic; please report it", "in", "TLS sessions", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
	}
}
