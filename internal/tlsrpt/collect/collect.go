// Package collect takes in what MTAs tell of their TLS sessions, for TLS reports (RFC
// 8460): the datagrams of libtlsrpt, which Postfix 3.10 and later send, and a line for each
// event of Exim. A goroutine for each socket fills one queue, and another one parses what the
// queue holds and writes a batch each second. Neither waits for the other, and no lookup or
// MTA waits for either: what cannot be taken is dropped and counted. What the kernel drops
// before, nobody can count.
package collect

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

const (
	batchEvery = time.Second
	maxBatch   = 4 << 20 // bytes of a batch; then it is written before its second has passed

	maxQueued = 10 << 20 // bytes of datagrams and lines that wait to be parsed
	maxQueue  = 1 << 16  // and how many they may be

	// Between two rounds of parsing the reader gets its turn, and more datagrams come: to
	// wake for each costs more than to parse it.
	parseAtOnce = 256
	parsePause  = 3 * time.Millisecond
)

// A Source is an MTA that tells of its sessions.
type Source int

// The sources.
const (
	Postfix Source = iota
	Exim
	sources
)

func (s Source) String() string { return [sources]string{"postfix", "exim"}[s] }

// A Log takes batches. After an error a batch is written again.
type Log interface {
	Write(*store.Batch) error
}

// Options of a collector.
type Options struct {
	Log    *slog.Logger
	Now    func() time.Time // the clock
	Policy PolicyOf         // for Exim's sessions
}

// A Collector collects from the sockets of Datagrams and Lines.
type Collector struct {
	to     Log
	o      Options
	queue  chan message
	queued atomic.Int64 // bytes
	drops  *Drops
	parser Parser
	exim   EximParser
	batch  store.Batch
	counts [sources]struct{ received, successful, failed atomic.Uint64 }
	stats  struct{ batches, panics atomic.Uint64 }
	failed atomic.Pointer[error] // why the last batch could not be written
}

// A message is a datagram of Postfix or a line of Exim.
type message struct {
	from Source
	text []byte
}

// A Count is the numbers of a source.
type Count struct {
	Received           uint64 // datagrams or lines
	Successful, Failed uint64 // sessions
}

// Stats are the numbers of a collector.
type Stats struct {
	From              [sources]Count
	Batches           uint64 // written
	Panics            uint64 // recovered
	Dropped           map[string]uint64
	RingSize, MaxRing int
	Err               error // why the last batch could not be written; nil: it was
}

// New makes a collector.
func New(to Log, o Options) *Collector {
	drops := new(Drops)
	return &Collector{to: to, o: o, queue: make(chan message, maxQueue), drops: drops,
		parser: Parser{Drops: drops}, exim: EximParser{Drops: drops, Policy: o.Policy}}
}

// Stats returns the numbers of the collector.
func (c *Collector) Stats() Stats {
	s := Stats{
		Batches: c.stats.batches.Load(), Panics: c.stats.panics.Load(), Dropped: c.drops.Counts(),
		RingSize: int(c.queued.Load()), MaxRing: maxQueued,
	}
	for from := range c.counts {
		n := &c.counts[from]
		s.From[from] = Count{n.received.Load(), n.successful.Load(), n.failed.Load()}
	}
	if err := c.failed.Load(); err != nil {
		s.Err = *err
	}
	return s
}

// Run parses and writes until the context ends. Then it takes what is in the queue: the
// sockets must have ended before.
func (c *Collector) Run(ctx context.Context) {
	tick := time.NewTicker(batchEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case m := <-c.queue:
			c.parse(m)
			for range min(len(c.queue), parseAtOnce) {
				c.parse(<-c.queue)
			}
			time.Sleep(parsePause)
		case <-tick.C:
			c.expire(time.Now())
			c.write()
		case <-ctx.Done():
		}
	}
	for len(c.queue) > 0 {
		c.parse(<-c.queue)
	}
	c.expire(time.Now().Add(talkTime))
	c.write()
}

// put puts a message into the queue. It does not block.
func (c *Collector) put(from Source, text []byte) {
	c.counts[from].received.Add(1)
	n := int64(len(text))
	if c.queued.Add(n) <= maxQueued {
		select {
		case c.queue <- message{from, text}:
			return
		default:
		}
	}
	c.queued.Add(-n)
	c.drops.Add(DropRing, 1)
}

// parse adds the sessions of a message to the batch.
func (c *Collector) parse(m message) {
	defer c.recoverPanic()
	c.queued.Add(-int64(len(m.text)))
	if m.from == Exim {
		c.add(Exim, c.exim.Parse(m.text, time.Now()))
	} else {
		c.add(m.from, c.parser.Parse(m.text))
	}
}

func (c *Collector) expire(now time.Time) {
	defer c.recoverPanic()
	c.add(Exim, c.exim.Expire(now))
}

// add adds sessions to the batch. It is written first if it is full or of another day;
// where that fails, the sessions are dropped.
func (c *Collector) add(from Source, events []tlsrpt.Event) {
	day := tlsrpt.DayOf(c.o.Now())
	for _, e := range events {
		if c.batch.Day() != day || c.batch.Size() >= maxBatch {
			if c.failed.Load() == nil {
				c.write() // else the next second tries it again
			}
			if c.batch.Sessions() > 0 {
				c.drops.Add(DropBatch, 1)
				continue
			}
			c.batch.Reset(day)
		}
		c.batch.Add(&e)
		if e.Failed {
			c.counts[from].failed.Add(1)
		} else {
			c.counts[from].successful.Add(1)
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
