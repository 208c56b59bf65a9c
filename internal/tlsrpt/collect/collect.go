// Package collect takes in what MTAs tell of their TLS sessions, for TLS reports (RFC
// 8460): the datagrams of libtlsrpt, which Postfix 3.10 and later send. One goroutine
// reads the socket into a queue, and one parses what the queue holds and writes a batch each
// second. Neither waits for the other, and no lookup waits for either: what cannot be
// taken is dropped and counted. What the kernel drops before, nobody can count.
package collect

import (
	"bytes"
	"context"
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

	maxQueued = 10 << 20 // bytes of datagrams that wait to be parsed
	maxQueue  = 1 << 16  // and how many they may be

	// Between two rounds of parsing the reader gets its turn, and more datagrams come: to
	// wake for each costs more than to parse it.
	parseAtOnce = 256
	parsePause  = 3 * time.Millisecond

	maxLast  = 4096 // datagrams taken when the collector ends: they were in the kernel
	lastWait = 100 * time.Millisecond
)

// A Log takes batches. After an error a batch is written again.
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
	queue  chan []byte
	queued atomic.Int64 // bytes
	parser Parser
	batch  store.Batch
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
	return &Collector{conn: conn, to: to, o: o, queue: make(chan []byte, maxQueue)}
}

// Stats returns the numbers of the collector.
func (c *Collector) Stats() Stats {
	s := Stats{
		Datagrams: c.stats.datagrams.Load(), Successful: c.stats.successful.Load(), Failed: c.stats.failed.Load(),
		Batches: c.stats.batches.Load(), Panics: c.stats.panics.Load(), Dropped: c.parser.Drops.Counts(),
		RingSize: int(c.queued.Load()), MaxRing: maxQueued,
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
	go c.read(ctx)
	tick := time.NewTicker(batchEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case datagram, ok := <-c.queue:
			if ok {
				c.add(datagram)
			}
			for range min(len(c.queue), parseAtOnce) {
				c.add(<-c.queue)
			}
			time.Sleep(parsePause)
		case <-tick.C:
			c.write()
		case <-ctx.Done():
		}
	}
	for datagram := range c.queue {
		c.add(datagram)
	}
	c.write()
	_ = c.conn.Close()
}

// read moves datagrams into the queue until the context ends. Then it takes what the
// kernel still holds.
func (c *Collector) read(ctx context.Context) {
	defer close(c.queue)
	ended := make(chan struct{})
	context.AfterFunc(ctx, func() { _ = c.conn.SetReadDeadline(time.Unix(1, 0)); close(ended) })
	buffer := make([]byte, MaxDatagram+1) // one more, to see that one is too long
	for failing := false; ctx.Err() == nil; {
		err := c.receive(buffer)
		if err == nil || ctx.Err() != nil {
			failing = false
			continue
		}
		if !failing {
			c.o.Log.Error("TLS sessions cannot be received", "err", err, "next", "it is tried again each second")
		}
		failing = true
		select {
		case <-ctx.Done():
		case <-time.After(readPause):
		}
	}
	<-ended
	for range maxLast {
		_ = c.conn.SetReadDeadline(time.Now().Add(lastWait))
		if c.receive(buffer) != nil {
			return
		}
	}
}

// receive moves one datagram into the queue.
func (c *Collector) receive(buffer []byte) error {
	n, err := c.conn.Read(buffer)
	if err != nil {
		return err
	}
	c.stats.datagrams.Add(1)
	switch {
	case n > MaxDatagram:
		c.parser.Drops.Add(DropTooLong, 1)
	case c.queued.Load() > maxQueued-int64(n), len(c.queue) == maxQueue:
		c.parser.Drops.Add(DropRing, 1)
	default:
		c.queued.Add(int64(n))
		c.queue <- bytes.Clone(buffer[:n])
	}
	return nil
}

// add adds the sessions of a datagram to the batch. It is written first if it is full or
// of another day; where that fails, the sessions are dropped.
func (c *Collector) add(datagram []byte) {
	defer c.recoverPanic()
	c.queued.Add(-int64(len(datagram)))
	day := tlsrpt.DayOf(c.o.Now())
	for _, e := range c.parser.Parse(datagram) {
		if c.batch.Day() != day || c.batch.Size() >= maxBatch {
			if c.failed.Load() == nil {
				c.write() // else the next second tries it again
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
	err, was := c.to.Write(&c.batch), c.failed.Load()
	if err != nil {
		if c.failed.Store(&err); was == nil {
			c.o.Log.Error("TLS sessions cannot be recorded", "err", err, "next", "it is tried again each second")
		}
		return
	}
	c.batch.Reset(c.batch.Day())
	c.stats.batches.Add(1)
	if c.failed.Store(nil); was != nil {
		c.o.Log.Info("TLS sessions are recorded again")
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
