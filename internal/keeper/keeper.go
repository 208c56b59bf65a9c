// Package keeper keeps policies: it is the only one that fetches and writes
// them. A lookup is answered from a bounded table, then from the store, and by
// a discovery when neither holds anything (RFC 8461, 3.3); a refresher fetches
// what is held again long before it expires (RFC 8461, 10.2). What a reply
// looks like, and what a mode means for it, is for the callers to say.
package keeper

import (
	"context"
	"errors"
	"hash/maphash"
	"log/slog"
	"sync"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"golang.org/x/time/rate"
)

// ProbeDomain is what the daemon's own watchdog asks for. It cannot exist
// (RFC 6761, 6.4). A lookup of it goes the whole way of a lookup up to the
// store and is answered there: no packet is sent, nothing is remembered, and it
// is none of those that mail causes.
const ProbeDomain = "watchdog.invalid"

// Errors of Lookup.
var (
	// ErrNoPolicy: no live policy is held, and none was discovered: the
	// domain has none, or it could not be found out in time (RFC 8461, 3.3).
	ErrNoPolicy = errors.New("no MTA-STS policy")
	// ErrUnreadable: a policy was held and cannot be read, and could not be
	// fetched again so far. Mail must wait.
	ErrUnreadable = errors.New("the stored MTA-STS policy is damaged and could not be fetched again")
	// ErrBrokenOff: the daemon ends, or the caller gave up, before anything
	// was found out. Mail must wait: a restart is no reason to send it without
	// the protection that its domain may ask for.
	ErrBrokenOff = errors.New("the lookup was broken off")
)

// A Discoverer finds policies; *policy.Client is one.
type Discoverer interface {
	// Record asks for the TXT record. The duration is its TTL.
	Record(ctx context.Context, domain string) (policy.Record, time.Duration, error)
	// Fetch gets the policy over HTTPS. It passes the gate before each
	// connection to the policy host.
	Fetch(ctx context.Context, domain string, gate policy.Gate) (*policy.Fetched, error)
}

// A Store keeps records on disk; *cache.Store is one.
type Store interface {
	Lookup(domain []byte, into *cache.Hit) error
	Get(domain string) (cache.Record, error)
	Write(ops []cache.Op) (cache.WriteResult, error)
	Due(lane cache.Lane, now time.Time, limit int) ([]cache.Due, time.Time, error)
	List(after string, limit int) (list []cache.Record, next string, err error)
	Purge(before time.Time, limit int) ([]string, error)
	Stats() cache.Stats
}

// Options are what a Keeper is made of. Durations and rates that are zero get
// the defaults of the configuration file.
type Options struct {
	Store   Store
	Network Discoverer
	// Prepare makes what a reply needs from a policy.
	Prepare func(p *policy.Policy) []byte
	// Current says whether prepared bytes from the store are of the format
	// that Prepare makes today. If not, they are made again from the text.
	// Nil: they always are.
	Current func(ready []byte) bool
	// Observe is told of everything that was tried. It must not block.
	Observe func(Event)
	Log     *slog.Logger

	LookupTimeout     time.Duration // how long a lookup waits for a discovery
	FetchTimeout      time.Duration // how long a fetch takes at most
	LookupConcurrency int           // discoveries at once, in their DNS part and in their HTTPS part each

	Interval           time.Duration // between two looks at a TXT record
	Recheck            time.Duration // how old a check may be when a lookup comes
	UnusedAfter        time.Duration // after which a policy is left to expire
	CheckRate          float64       // TXT records a second
	FetchRate          float64       // policies a second
	RefreshConcurrency int           // of each
}

func (o *Options) setDefaults() {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&o.LookupTimeout, 20*time.Second)
	def(&o.FetchTimeout, 30*time.Second)
	def(&o.Interval, 24*time.Hour)
	def(&o.Recheck, 5*time.Minute)
	def(&o.UnusedAfter, 90*24*time.Hour)
	if o.LookupConcurrency <= 0 {
		o.LookupConcurrency = 256
	}
	if o.RefreshConcurrency <= 0 {
		o.RefreshConcurrency = 32
	}
	if o.CheckRate <= 0 {
		o.CheckRate = 50
	}
	if o.FetchRate <= 0 {
		o.FetchRate = 20
	}
	if o.Current == nil {
		o.Current = func([]byte) bool { return true }
	}
	if o.Observe == nil {
		o.Observe = func(Event) {}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

// A Keeper keeps policies. Lookups may come from many goroutines.
type Keeper struct {
	o    Options
	seed maphash.Seed

	table    *table
	used     *usedMap
	busiest  busiest
	rechecks *recency
	negative *negatives
	writer   *writer
	skipped  *lately // records that are due and cannot be read

	flights  flights
	dnsSlots chan struct{} // discoveries in their DNS part
	// At the lookups' gate to policy hosts one waits, and there are so many
	// places for all of them; the refresher has slots of its own, and comes again
	// where no place is free. They share no places: strangers whose policy hosts
	// are beside one that is held, and never answer, must not be able to keep the
	// refresher from it until the policy runs out.
	lookupGate, refreshGate policy.Gate

	check    *line
	fetch    *line
	learning *rate.Limiter // discoveries that no mail waits for

	begun    time.Time
	gap      time.Duration // from the newest record in the store to begun
	counters counters
	health   health

	// What comes of policies that are held is logged apart from the news about
	// strangers, of whom there may be as many as somebody likes: they must not
	// crowd out the warnings that the administrator needs (RFC 8461, 3.3).
	ownLines, strangersLines *rate.Limiter
	outageLines              *rate.Limiter // in place of both while nothing succeeds

	// life ends every discovery that outlives its lookup. It is made by New
	// and ended when Run returns, so that lookups need no context of their own.
	life context.Context
	end  context.CancelFunc
	wg   sync.WaitGroup
}

// New makes a Keeper. It answers from the store at once; it writes and
// refreshes while Run runs.
func New(o Options) *Keeper {
	o.setDefaults()
	k := &Keeper{
		o:        o,
		begun:    time.Now(),
		seed:     maphash.MakeSeed(),
		table:    newTable(tableBytes),
		used:     newUsedMap(),
		rechecks: newRecency(),
		negative: newNegatives(),
		writer:   newWriter(o.Store, o.Log),
		skipped:  newLately(),
		dnsSlots: make(chan struct{}, o.LookupConcurrency),

		ownLines:       rate.NewLimiter(logsPerSecond, logBurst),
		strangersLines: rate.NewLimiter(logsPerSecond, logBurst),
		outageLines:    rate.NewLimiter(rate.Every(outageLogEvery), outageLogBurst),

		learning: rate.NewLimiter(rate.Limit(o.CheckRate), 1),
	}
	k.lookupGate = policy.NewAddressLimiter(hostFetches).Waiting(o.LookupConcurrency)
	k.refreshGate = policy.NewAddressLimiter(hostFetches).NonWaiting()
	if newest := o.Store.Stats().Newest; !newest.IsZero() {
		k.gap = k.begun.Sub(newest)
	}
	k.life, k.end = context.WithCancel(context.Background())
	k.writer.committed = k.published
	k.writer.becameLate = k.publish
	k.check = newCheckLine(k)
	k.fetch = newFetchLine(k)
	return k
}

// Run writes and refreshes until ctx ends; what is pending is then written,
// for a few seconds at most.
func (k *Keeper) Run(ctx context.Context) error {
	defer k.end()
	writing, stopWriting := context.WithCancel(context.Background())
	defer stopWriting()
	written := make(chan struct{})
	go func() {
		defer close(written)
		k.writer.run(writing)
	}()

	var loops sync.WaitGroup
	for _, loop := range []func(context.Context){k.check.run, k.fetch.run, k.upkeep} {
		loops.Go(func() { loop(ctx) })
	}
	<-ctx.Done()
	k.end()
	loops.Wait()
	k.wg.Wait()
	stopWriting()
	<-written
	return k.writer.flush()
}

// Lookup finds the live policy of a domain: nil and h filled in, ErrNoPolicy,
// ErrUnreadable or ErrBrokenOff. The domain is in A-labels, lower case, without
// a trailing dot. It waits for a discovery for the lookup time-out at most, or
// until ctx ends.
func (k *Keeper) Lookup(ctx context.Context, domain []byte, h *Held) error {
	clock := time.Now()
	now := clock.Unix()
	hash := maphash.Bytes(k.seed, domain)
	if string(domain) != ProbeDomain {
		k.busiest.see(domain, clock)
	}

	// The generation is read before it is seen that nothing is late: what
	// becomes late after that is in the store not yet, and must not be hidden by
	// what is.
	e, generation := k.table.get(hash, domain)
	if e != nil && now < liveUntil(e.Fetched, e.Expires) {
		k.use(hash, domain, e.Checked, now)
		h.fromEntry(e)
		return nil
	}
	if known, damaged := k.negative.get(hash, domain, clock); known {
		k.counters.negativeHits.Add(1)
		if damaged {
			return ErrUnreadable
		}
		return ErrNoPolicy
	}
	h.Since = clock
	if e, late := k.writer.late(domain); late {
		if e != nil && now < liveUntil(e.Fetched, e.Expires) {
			k.use(hash, domain, e.Checked, now)
			h.fromEntry(e)
			return nil
		}
		return k.await(ctx, string(domain), false, h)
	}
	return k.lookupStored(ctx, hash, domain, now, generation, h)
}

// lookupStored answers from the store, and begins a discovery where it holds
// nothing that lives. The generation is the table's, from before.
func (k *Keeper) lookupStored(ctx context.Context, hash uint64, domain []byte, now int64, generation uint64, h *Held) error {
	err := k.o.Store.Lookup(domain, &h.hit)
	if string(domain) == ProbeDomain {
		return ErrNoPolicy // an error of the store is dealt with elsewhere; that it returns is the point
	}
	switch {
	case err == nil && now < liveUntil(h.hit.Fetched, h.hit.Expires):
		if !k.o.Current(h.hit.Ready) {
			if !k.prepareAgain(string(domain), &h.hit) {
				return k.await(ctx, string(domain), true, h)
			}
		}
		k.use(hash, domain, h.hit.Checked, now)
		if k.table.secondUse(hash) {
			e := entryOfHit(hash, string(domain), &h.hit)
			k.table.put(e, generation)
			h.fromEntry(e)
			return nil
		}
		h.fromHit()
		return nil
	case err == nil, errors.Is(err, cache.ErrNotFound):
		return k.await(ctx, string(domain), false, h)
	case isDamaged(err):
		// What we held and cannot read may have been an enforced policy.
		return k.await(ctx, string(domain), true, h)
	default:
		// An unreadable page counts as a miss; the store repairs itself.
		k.counters.storeErrors.Add(1)
		return k.await(ctx, string(domain), false, h)
	}
}

// prepareAgain replaces what another version of the program has prepared. It
// is false if that cannot be done.
func (k *Keeper) prepareAgain(domain string, hit *cache.Hit) bool {
	r, err := k.o.Store.Get(domain)
	if err != nil || k.makeReady(&r) != nil {
		return false
	}
	hit.Ready = append(hit.Ready[:0], r.Ready...)
	return true
}

// makeReady brings what a record has prepared to today's format. A text that
// this version does not understand is as good as a damaged one.
func (k *Keeper) makeReady(r *cache.Record) error {
	if k.o.Current(r.Ready) {
		return nil
	}
	p, err := policy.Parse(r.Text)
	if err != nil {
		return &cache.DamagedError{Domain: r.Domain, Err: err}
	}
	r.Ready = k.o.Prepare(p)
	return nil
}

// use notes that a policy was asked for, and has its TXT record looked at if
// that was not done lately, or by a clock that was ahead.
func (k *Keeper) use(hash uint64, domain []byte, checked, now int64) {
	k.used.mark(hash)
	if recheck := int64(k.o.Recheck / time.Second); now-checked >= recheck || checked > now {
		k.wantRecheck(hash, domain, now, recheck)
	}
}

func isDamaged(err error) bool {
	var d *cache.DamagedError
	return errors.As(err, &d)
}

func entryOfHit(hash uint64, domain string, hit *cache.Hit) *Entry {
	return &Entry{
		Domain: domain, Mode: hit.Mode, Fetched: hit.Fetched, Expires: hit.Expires, Checked: hit.Checked,
		Ready: append([]byte(nil), hit.Ready...), hash: hash,
	}
}

func (k *Keeper) entryOf(r *cache.Record) *Entry {
	return &Entry{
		Domain: r.Domain, Mode: r.Mode, Fetched: r.Fetched.Unix(), Expires: r.Expires.Unix(), Checked: unix(r.Checked),
		Ready: r.Ready, id: r.ID, fetchAt: unix(r.FetchAt), hash: k.hash(r.Domain),
	}
}

func (k *Keeper) hash(domain string) uint64 { return maphash.String(k.seed, domain) }

// unix returns t in Unix seconds, zero for the zero time.
func unix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}
