// Package fleet shares between relays what one of them has learned, through a Valkey
// or Redis server (the engine): policies, the right to fetch one, exemptions, forgets,
// and counts for TLS reports. The engine only brings news. A relay answers from its own
// cache, and one whose engine is down, slow, empty or hostile behaves as one without a
// fleet: no lookup waits for the engine longer than findWait, and nothing that the engine
// says removes protection (the rules are in package keeper, which stores the policies).
//
// The engine is not trusted: each value carries an HMAC over its type, prefix, key and
// fields, see seal. There is no publish/subscribe and no scan: keys are read when there
// is reason to, so that a single server, Sentinel, Cluster and managed services work
// alike. Left out: other engines, and any protocol between relays.
package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"
)

// Every limit of the fleet.
const (
	findWait    = 100 * time.Millisecond // a question that a lookup or a refresh waits for
	yieldedFor  = 5 * time.Minute        // the second try to fetch a policy succeeds
	passWait    = 2 * time.Second        // a question in the background
	passEvery   = 10 * time.Second       // orders are read, and the engine is tried
	tryEvery    = 2 * time.Second        // the engine is tried while it is away
	relaysEvery = 6                      // passes; the relays are counted

	breakAfter = 3 // failures in a row open the breaker

	maxAhead    = time.Minute      // a stamp may be ahead of our clock
	MaxClockOff = 30 * time.Second // between our clock and the engine's; more is a condition
	maxName     = 253              // bytes of a relay's name, a user and a domain

	relayLives   = 3 * 24 * time.Hour // after its last sign of life
	maxRelays    = 2000
	maxOrders    = 1000 // entries of each kind
	ordersAtOnce = 16

	maxPending      = 4096 // policies that wait for the engine
	maxPendingBytes = 2 << 20

	compareOneIn = 50 // findings, times the number of relays
	maxCompared  = 32
)

// Options are what a Fleet is made of.
type Options struct {
	URL          string // see parseURL
	PasswordFile string
	KeyFile      string
	CAFile       string
	Prefix       string // of every key
	Name         string // of this relay
	Version      string // of the program

	Now    func() time.Time
	Store  Store
	Orders Orders
	Log    *slog.Logger
}

// A Store keeps the stamps of orders over restarts; *cache.Store is one.
type Store interface {
	FleetStamps() ([]byte, error)
	WriteFleetStamps([]byte) error
}

// Stats are the fleet's numbers.
type Stats struct {
	On       bool             `json:"on"`
	Name     string           `json:"name"`              // of this relay
	Trouble  string           `json:"trouble,omitempty"` // why the engine does not serve; empty: it does
	Since    time.Time        `json:"since,omitzero"`    // of Trouble
	Relays   int              `json:"relays"`            // seen within three days, this one included
	ClockOff time.Duration    `json:"clock_off"`         // how far our clock is ahead of the engine's
	Latency  time.Duration    `json:"latency"`           // of the last write
	Pending  int              `json:"pending"`           // policies that wait for the engine
	Asked    int64            `json:"asked"`             // questions for a policy
	Found    int64            `json:"found"`             // answered with a verified, live policy
	Failed   int64            `json:"failed"`            // not answered
	Written  int64            `json:"written"`           // policies brought to the engine
	Dropped  int64            `json:"dropped"`           // policies not brought to it: too many waited
	Differ   int64            `json:"differ"`            // findings that two fetches did not confirm
	Refused  map[Reason]int64 `json:"refused,omitempty"` // values that were not believed
	// RefusedAt and RefusedKey are the last one of them.
	RefusedAt  time.Time `json:"refused_at,omitzero"`
	RefusedKey string    `json:"refused_key,omitempty"`
}

// A Fleet is this relay's view of the others. Its methods may be called from many
// goroutines. A nil *Fleet has no Stats.
type Fleet struct {
	o        Options
	engine   engine
	keys     []signingKey
	warnings []string
	breaker  breaker
	wake     chan struct{} // the breaker has opened
	pending  pending
	yielded  *lru.Cache[string, time.Time]  // when a domain was left to another relay to fetch
	compared *lru.Cache[string, comparison] // those of which our next fetch is compared
	orders   orders

	relays   atomic.Int64
	clockOff atomic.Int64
	latency  atomic.Int64
	lines    *rate.Limiter

	passEvery    time.Duration // the constants, but for tests
	compareOneIn int64

	mu      sync.Mutex
	trouble string
	since   time.Time
	counts  Stats // the counts only
}

// engine does commands; *client is the real one. key decides which server of a Cluster
// is asked; empty: any.
type engine interface {
	do(ctx context.Context, key string, args ...string) (any, error)
	close()
}

// New reads the files and does not connect: nothing waits for the engine.
func New(o Options) (*Fleet, error) {
	t, err := parseURL(o.URL)
	if err != nil {
		return nil, err
	}
	if o.KeyFile == "" {
		return nil, errors.New("key_file is missing: sts-tlsmap -fleet-key makes a key for all relays of the fleet")
	}
	keys, err := readKeys(o.KeyFile)
	if err != nil {
		return nil, err
	}
	c, err := newClient(t, o.PasswordFile, o.CAFile)
	if err != nil {
		return nil, err
	}
	return newFleet(o, keys, c, t.warnings(c.password != "")), nil
}

func newFleet(o Options, keys []signingKey, e engine, warnings []string) *Fleet {
	if o.Name == "" {
		o.Name, _ = os.Hostname()
	}
	o.Name = cmp.Or(o.Name, "relay")
	o.Name = o.Name[:min(len(o.Name), maxName)]
	f := &Fleet{o: o, engine: e, keys: keys, warnings: warnings, wake: make(chan struct{}, 1), passEvery: passEvery, compareOneIn: compareOneIn, lines: rate.NewLimiter(rate.Every(10*time.Second), 10)}
	f.counts.Refused = make(map[Reason]int64)
	f.relays.Store(1)
	f.yielded, _ = lru.New[string, time.Time](maxPending) // the size is valid
	f.compared, _ = lru.New[string, comparison](maxCompared)
	f.pending.init()
	f.orders.init(f)
	return f
}

// Warnings are about a connection that others may read or use.
func (f *Fleet) Warnings() []string { return f.warnings }

// Stats returns the fleet's numbers.
func (f *Fleet) Stats() Stats {
	if f == nil {
		return Stats{}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.counts
	s.Refused = make(map[Reason]int64)
	for reason, n := range f.counts.Refused {
		s.Refused[reason] = n
	}
	s.On, s.Name, s.Trouble, s.Since = true, f.o.Name, f.trouble, f.since
	s.Relays, s.ClockOff, s.Latency = int(f.relays.Load()), time.Duration(f.clockOff.Load()), time.Duration(f.latency.Load())
	s.Pending = f.pending.length()
	return s
}

// count adds to one of the counts.
func (f *Fleet) count(n *int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	*n++
}

// refuse counts a value of the engine that is not believed, and names it.
func (f *Fleet) refuse(reason Reason, key string, err error) {
	f.mu.Lock()
	f.counts.Refused[reason]++
	f.counts.RefusedAt, f.counts.RefusedKey = f.o.Now(), f.o.Prefix+key
	f.mu.Unlock()
	if f.lines.Allow() {
		f.o.Log.Warn("a value of the fleet's engine was refused", "key", f.o.Prefix+key, "reason", string(reason), "err", err,
			"next", "check key_file and the clocks of all relays, and who else may write to the engine")
	}
}

// do asks the engine, unless the breaker is open.
func (f *Fleet) do(ctx context.Context, key string, args ...string) (any, error) {
	if f.breaker.isOpen() {
		return nil, errAway
	}
	v, err := f.engine.do(ctx, key, args...)
	if f.breaker.note(ctx, err) {
		f.nudge()
	}
	return v, err
}

// nudge wakes Run.
func (f *Fleet) nudge() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

var errAway = errors.New("the fleet's engine is away")

// A breaker keeps questions from an engine that does not answer. Only Run closes it.
type breaker struct{ failures atomic.Int32 }

func (b *breaker) isOpen() bool { return b.failures.Load() >= breakAfter }
func (b *breaker) close()       { b.failures.Store(0) }
func (b *breaker) open()        { b.failures.Store(breakAfter) }

// note takes the outcome of a question, and says whether it opened the breaker. An error
// that the engine itself replies is an answer; a caller that gave up says nothing.
func (b *breaker) note(ctx context.Context, err error) (opened bool) {
	switch {
	case err == nil, errors.As(err, new(replyError)):
		if !b.isOpen() {
			b.close()
		}
	case errors.Is(ctx.Err(), context.Canceled):
	default:
		return b.failures.Add(1) == breakAfter
	}
	return false
}

// Run tries the engine, reads orders and brings policies to the engine until ctx ends.
func (f *Fleet) Run(ctx context.Context) {
	var sending sync.WaitGroup
	sending.Go(func() { f.send(ctx) })
	defer f.engine.close()
	defer sending.Wait()
	defer f.orders.wg.Wait()
	f.orders.load()
	for n := 0; ctx.Err() == nil; n++ {
		err := f.pass(ctx)
		if err == nil && n%relaysEvery == 0 {
			_, err = f.Relays(ctx)
		}
		if ctx.Err() != nil {
			return
		}
		f.report(err)
		f.orders.save()
		pause := f.passEvery
		if err != nil {
			pause = tryEvery
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-f.wake:
		}
		timer.Stop()
	}
}

// pass writes a sign of life, compares the clocks and takes the orders of other relays.
func (f *Fleet) pass(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, passWait)
	defer cancel()
	now := f.o.Now()
	begun := time.Now()
	if _, err := f.engine.do(ctx, f.key("relays"), "HSET", f.key("relays"), f.o.Name, f.seal("relays", f.o.Name, now, f.o.Version)); err != nil {
		return err
	}
	took := time.Since(begun)
	if f.latency.Store(int64(took)); took > findWait {
		return fmt.Errorf("it answers after %s; a lookup waits %s at most", took.Round(time.Millisecond), findWait)
	}
	if off, ok := f.compareClocks(ctx); ok {
		f.clockOff.Store(int64(off))
	}
	return f.orders.read(ctx)
}

// compareClocks returns how far our clock is ahead of the engine's, which the ACL may hide.
func (f *Fleet) compareClocks(ctx context.Context) (off time.Duration, ok bool) {
	v, err := f.engine.do(ctx, "", "TIME")
	list, _ := v.([]any)
	if err != nil || len(list) != 2 {
		return 0, false
	}
	seconds, _ := list[0].(string)
	at, ok := parseInt(seconds)
	off = f.o.Now().Sub(time.Unix(at, 0))
	if off > 0 && off < time.Second {
		off = 0 // the engine's part of a second
	}
	return off, ok
}

// report takes the outcome of a pass: one line when the trouble begins, and one when it ends.
func (f *Fleet) report(err error) {
	f.mu.Lock()
	was := f.trouble
	f.trouble = ""
	if err != nil {
		f.trouble = err.Error()
		if was == "" {
			f.since = f.o.Now()
		}
	}
	f.mu.Unlock()
	switch {
	case err != nil:
		if f.breaker.open(); was == "" {
			f.o.Log.Error("the fleet's engine does not serve; this relay goes on alone", "err", err,
				"next", "check the engine and [fleet]; it is tried again every "+tryEvery.String())
		}
	default:
		f.breaker.close()
		f.pending.nudge()
		if was != "" {
			f.o.Log.Info("the fleet's engine serves again", "pending", f.pending.length())
		}
	}
}

// A Relay is a member of the fleet.
type Relay struct {
	Name     string    `json:"name"`
	Version  string    `json:"version"`
	LastSeen time.Time `json:"last_seen"`
}

// Relays returns the relays seen within three days, and deletes older ones.
func (f *Fleet) Relays(ctx context.Context) (list []Relay, err error) {
	ctx, cancel := context.WithTimeout(ctx, passWait)
	defer cancel()
	err = f.readHash(ctx, "relays", maxRelays, func(name, value string) (keep bool) {
		v, ok := f.open("relays", name, value, 1)
		if ok && f.o.Now().Sub(v.stamp) <= relayLives {
			list = append(list, Relay{Name: name, Version: v.fields[0], LastSeen: v.stamp})
			return true
		}
		return !ok
	})
	if err == nil {
		f.relays.Store(int64(max(len(list), 1)))
	}
	return list, err
}

// Keys returns how many keys the engine has, others' included; of a Cluster, one server.
func (f *Fleet) Keys(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, passWait)
	defer cancel()
	reply, err := f.engine.do(ctx, "", "DBSIZE")
	n, _ := reply.(int64)
	return n, err
}

func (f *Fleet) key(name string) string { return f.o.Prefix + name }

// readHash reads all fields of a hash, and deletes those that take does not keep.
func (f *Fleet) readHash(ctx context.Context, name string, most int, take func(field, value string) (keep bool)) error {
	v, err := f.engine.do(ctx, f.key(name), "HGETALL", f.key(name))
	if err != nil {
		return err
	}
	list, _ := v.([]any)
	if len(list) > 2*most {
		f.refuse(ReasonTooMany, name, fmt.Errorf("%d fields; at most %d are read", len(list)/2, most))
		list = list[:2*most]
	}
	del := []string{"HDEL", f.key(name)}
	for i := 0; i+1 < len(list); i += 2 {
		field, _ := list[i].(string)
		value, _ := list[i+1].(string)
		if len(field) <= maxName && !take(field, value) {
			del = append(del, field)
		}
	}
	if len(del) > 2 {
		_, err = f.engine.do(ctx, f.key(name), del...)
	}
	return err
}
