package keeper

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"golang.org/x/time/rate"
)

// A line works off what is due of one kind, checks or fetches: so many at
// once, so many a second. Its lanes share the slots such that no flood of
// short-lived policies, or of hosts that are slow or fail, takes them all. What
// is wanted at once and what is due take turns.
type line struct {
	k        *Keeper
	name     string
	lanes    []lane
	slots    chan struct{}
	visits   *rate.Limiter // of records looked at
	limit    *rate.Limiter // of those for which the network is asked
	urgent   chan string   // domains wanted at once: a recheck, or a changed id's fetch
	urgently lane          // their share of the slots; nothing is in the store under it
	nudged   chan struct{}
	wakes    atomic.Int64 // until when it sleeps, Unix seconds
	// work does one domain. What it returns is closed when the result is on
	// disk; nil if there is none.
	work func(ctx context.Context, domain string, urgent bool) <-chan struct{}

	mu     sync.Mutex
	busy   map[string]*lane    // domains under way
	wanted map[string]struct{} // domains in urgent

	hurried bool         // the last turn was an urgent one's
	round   atomic.Int64 // counts turns, for the troubled lane's share
	late    atomic.Int64 // seconds by which the oldest due is overdue
}

// A lane is a line's view of a lane in the store.
type lane struct {
	id      cache.Lane
	most    int // slots it may hold at once
	holds   int // guarded by line.mu
	waiting []cache.Due
	next    time.Time     // when the store has something due; zero: unknown
	late    time.Duration // by which the oldest that waits is overdue
}

func newLine(k *Keeper, name string, perSecond float64, queue int, lanes ...lane) *line {
	n := k.o.RefreshConcurrency
	return &line{
		k: k, name: name, lanes: lanes,
		slots:    make(chan struct{}, n),
		visits:   rate.NewLimiter(max(visitsPerSecond, rate.Limit(perSecond)), 1),
		limit:    rate.NewLimiter(rate.Limit(perSecond), 1),
		urgent:   make(chan string, queue),
		urgently: lane{most: share(n, urgentSlots)},
		nudged:   make(chan struct{}, 1),
		busy:     make(map[string]*lane),
		wanted:   make(map[string]struct{}),
	}
}

// share is so many eighths of the slots, at least one slot.
func share(slots, eighths int) int { return max(1, slots*eighths/8) }

// The lanes are named in the order in which they are served; the last one is
// the troubled lane, which gets every fourth turn and few slots.
func newCheckLine(k *Keeper) *line {
	n := k.o.RefreshConcurrency
	l := newLine(k, "check", k.o.CheckRate, recheckQueue,
		lane{id: laneCheckUsed, most: n},
		lane{id: laneCheckUnused, most: n},
		lane{id: laneCheckTroubled, most: share(n, troubledSlots)})
	l.work = k.checkDue
	return l
}

func newFetchLine(k *Keeper) *line {
	n := k.o.RefreshConcurrency
	l := newLine(k, "fetch", k.o.FetchRate, urgentQueue,
		lane{id: laneFetchUsed, most: n},
		lane{id: laneFetchShort, most: share(n, shortSlots)},
		lane{id: laneFetchUnused, most: share(n, unusedSlots)},
		lane{id: laneFetchTroubled, most: share(n, troubledSlots)})
	l.work = k.fetchDue
	return l
}

// run works until ctx ends and what it began is done. A slot is taken once
// there is something to do: one that was held while there is not would be lost,
// and with a single slot so would be everything.
func (l *line) run(ctx context.Context) {
	var workers sync.WaitGroup
	defer workers.Wait()
	for {
		domain, ln, ok := l.take(ctx)
		if !ok {
			return
		}
		select {
		case l.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		if l.visits.Wait(ctx) != nil {
			return
		}
		workers.Go(func() { l.do(ctx, domain, ln) })
	}
}

// do works on a domain and then frees its slot. The domain stays under way
// until the result is on disk: until then the store says that it is due.
func (l *line) do(ctx context.Context, domain string, ln *lane) {
	defer l.forget(domain)
	written := func() <-chan struct{} {
		defer l.free(ln)
		defer l.k.survive(l.name, domain)
		return l.work(ctx, domain, ln == &l.urgently)
	}()
	if written == nil {
		return
	}
	select {
	case <-written:
	case <-ctx.Done():
	}
}

// take waits for the next domain. It ends with ctx.
func (l *line) take(ctx context.Context) (domain string, ln *lane, ok bool) {
	for ctx.Err() == nil {
		now := time.Now()
		l.wakes.Store(math.MaxInt64) // what is written from here on may be missed by due
		if domain, ln = l.first(now); ln != nil {
			return domain, ln, true
		}
		pause := l.pause(now)
		l.wakes.Store(now.Add(pause).Unix())
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-l.nudged:
		}
		timer.Stop()
	}
	return "", nil, false
}

// first returns the next domain and its lane. One that is wanted at once comes
// before what is due, but not twice in a row: however many are wanted, those
// that nobody asks for are checked and fetched, too.
func (l *line) first(now time.Time) (string, *lane) {
	if !l.hurried {
		if domain, ok := l.wantedNext(); ok {
			l.hurried = true
			return domain, &l.urgently
		}
	}
	l.hurried = false
	if domain, ln := l.due(now); ln != nil {
		return domain, ln
	}
	if domain, ok := l.wantedNext(); ok {
		return domain, &l.urgently
	}
	return "", nil
}

// wantedNext returns the next domain that is wanted at once, if the share of
// the slots for such allows one more.
func (l *line) wantedNext() (string, bool) {
	for l.held(&l.urgently) < l.urgently.most {
		select {
		case domain := <-l.urgent:
			l.mu.Lock()
			delete(l.wanted, domain)
			l.mu.Unlock()
			if l.claim(domain, &l.urgently) {
				return domain, true
			}
		default:
			return "", false
		}
	}
	return "", false
}

// due returns the next domain that is due, and the lane it came from.
func (l *line) due(now time.Time) (string, *lane) {
	round := l.round.Add(1)
	troubled := &l.lanes[len(l.lanes)-1]
	if round%troubledTurn == 0 {
		if d, ok := l.from(troubled, now); ok {
			return d, troubled
		}
	}
	// Within the rest the order is strict but for this: lanes that are at
	// their share of the slots are passed over.
	for i := range l.lanes {
		if d, ok := l.from(&l.lanes[i], now); ok {
			return d, &l.lanes[i]
		}
	}
	return "", nil
}

// from returns the next domain of one lane.
func (l *line) from(ln *lane, now time.Time) (string, bool) {
	if l.held(ln) >= ln.most {
		return "", false
	}
	if len(ln.waiting) == 0 {
		l.read(ln, now)
	}
	for len(ln.waiting) > 0 {
		d := ln.waiting[0]
		ln.waiting = ln.waiting[1:]
		if l.claim(d.Domain, ln) {
			return d.Domain, true
		}
	}
	return "", false
}

// read gets what is due from the store. What is under way is due there until
// its result is written, and what cannot be read stays due.
func (l *line) read(ln *lane, now time.Time) {
	ln.late = 0
	for limit := dueBatch + l.underWay(); len(ln.waiting) == 0; limit *= 2 {
		due, next, err := l.k.o.Store.Due(ln.id, now, limit)
		if err != nil {
			l.k.counters.storeErrors.Add(1)
		}
		ln.next = next
		for _, d := range due {
			if !l.isBusy(d.Domain) && !l.k.skipped.noted(d.Domain, now) {
				ln.waiting = append(ln.waiting, d)
				ln.late = max(ln.late, now.Sub(d.Due))
			}
		}
		if len(due) < limit || limit >= dueBatchMost {
			break
		}
	}
	l.noteLate()
}

// noteLate sets how far the line is behind. The troubled lane is meant to be
// slow and does not count.
func (l *line) noteLate() {
	late := time.Duration(0)
	for i := range l.lanes[:len(l.lanes)-1] {
		late = max(late, l.lanes[i].late)
	}
	l.late.Store(int64(late / time.Second))
}

// pause is how long to sleep when there is nothing to do. A freed slot and an
// urgent domain end it earlier.
func (l *line) pause(now time.Time) time.Duration {
	d := idlePoll
	for i := range l.lanes {
		if next := l.lanes[i].next; next.After(now) {
			d = min(d, next.Sub(now))
		}
	}
	return d
}

// hurry has a domain done before what is due; one that waits for that already
// stays where it is. It never blocks; the result says whether there was room.
func (l *line) hurry(domain string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, waits := l.wanted[domain]; waits {
		return true
	}
	select {
	case l.urgent <- domain:
	default:
		return false
	}
	l.wanted[domain] = struct{}{}
	l.nudge()
	return true
}

// full says whether hurry has no room.
func (l *line) full() bool { return len(l.urgent) == cap(l.urgent) }

func (l *line) claim(domain string, ln *lane) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, busy := l.busy[domain]; busy {
		return false
	}
	l.busy[domain] = ln
	ln.holds++
	return true
}

func (l *line) free(ln *lane) {
	l.mu.Lock()
	ln.holds--
	l.mu.Unlock()
	<-l.slots
	l.nudge()
}

// nudge has the line look at the store again, should it be asleep.
func (l *line) nudge() {
	select {
	case l.nudged <- struct{}{}:
	default:
	}
}

// expect is told of a record that was written: one that is due before the
// line would wake wakes it.
func (l *line) expect(due time.Time) {
	if due.Unix() < l.wakes.Load() {
		l.nudge()
	}
}

func (l *line) forget(domain string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.busy, domain)
}

func (l *line) held(ln *lane) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return ln.holds
}

func (l *line) isBusy(domain string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, busy := l.busy[domain]
	return busy
}

func (l *line) underWay() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.busy)
}
