// Package keeper keeps MTA-STS policies (RFC 8461): it alone fetches and stores
// them. A lookup is answered from memory, then from the store, and by a discovery
// when neither holds a live policy (RFC 8461, 3.3). A refresher fetches held
// policies again long before they expire (RFC 8461, 10.2). Left out: how a reply
// looks, and what a mode means for it.
package keeper

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"golang.org/x/time/rate"
)

// ProbeDomain is what the daemon's own watchdog asks for. It cannot exist
// (RFC 6761, 6.4). Its lookup goes through memory and store like any other and
// ends there: no packet is sent, nothing is remembered, and it is excluded from
// lookup metrics.
const ProbeDomain = "watchdog.invalid"

// Errors of Lookup. All but ErrNoPolicy mean that mail must wait.
var (
	// ErrNoPolicy: no live policy is held, and none was found: the domain has
	// none, or its DNS or policy host failed (RFC 8461, 3.3).
	ErrNoPolicy = errors.New("no MTA-STS policy")
	// ErrNotFetched is ErrNoPolicy where the record is there, and the policy could not
	// be fetched or used: what a TLS report tells the domain (RFC 8460, 4.3).
	ErrNotFetched = fmt.Errorf("%w: it could not be fetched", ErrNoPolicy)
	// ErrUnreadable: a policy may be stored but cannot be read, and could not be
	// fetched again.
	ErrUnreadable = errors.New("the stored MTA-STS policy cannot be read and could not be fetched again")
	// ErrBrokenOff: the daemon ends, or the caller gave up.
	ErrBrokenOff = errors.New("the lookup was broken off")
	// ErrOurFault: the discovery failed for a reason on this machine. The failure is
	// not remembered.
	ErrOurFault = errors.New("this relay could not look for an MTA-STS policy")
)

// A Discoverer finds policies; *policy.Client is one.
type Discoverer interface {
	// Record asks for the TXT record. The duration is its TTL.
	Record(ctx context.Context, domain string) (policy.Record, time.Duration, error)
	// Fetch gets the policy over HTTPS. It passes the gate before each connection
	// to the policy host.
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

// Options are what a Keeper is made of. All but Clock are required; the defaults
// are in the configuration.
type Options struct {
	*Clock  // the time by which policies live; nil: one that follows time.Now
	Store   Store
	Network Discoverer
	// MatchList renders the match list of a policy, which is stored beside it.
	MatchList func(p *policy.Policy) []byte
	// MatchListCurrent says whether a stored match list follows today's rule. If
	// not, it is rendered again from the text.
	MatchListCurrent func(list []byte) bool
	Observe          func(Event) // is told of every question and fetch; must not block
	Log              *slog.Logger
	Fleet            Fleet // nil: this relay is alone

	LookupTimeout     time.Duration // how long a lookup waits for a discovery
	FetchTimeout      time.Duration // how long a fetch takes at most
	LookupConcurrency int           // fetches for lookups at once
	MaxQuestions      int           // DNS questions for lookups at once; 0: maxQuestions, which is the most

	Recheck            time.Duration // how old a check may be when a lookup comes
	UnusedAfter        time.Duration // after which a policy is left to expire
	FetchRate          float64       // policies a second
	RefreshConcurrency int
}

// A Keeper keeps policies. Lookups may come from many goroutines.
type Keeper struct {
	o    Options
	seed maphash.Seed

	memory   memory
	negative bounded[*Negative]
	writer   writer
	flights  flights

	// When a lookup last asked for the TXT record of a domain, and when the refresher
	// last tried the domain.
	rechecked, fetched *lru.Cache[uint64, time.Time]

	questions, lookups, refreshes *limiter
	attention                     chan string // domains that wait for attend
	attentionRate, learnRate      *rate.Limiter
	fetchRate                     *rate.Limiter // of the refresher and the administrator
	wakeRefresher                 chan struct{}
	late                          atomic.Int64 // seconds by which the refresher is late

	counters counters
	health   health
	// Warnings about held policies have a rate of their own: lines about strangers'
	// domains must not displace them (RFC 8461, 3.3).
	heldLines, strangerLines *rate.Limiter

	// life ends every discovery that outlives its lookup. Run ends it.
	life context.Context
	end  context.CancelFunc
	wg   sync.WaitGroup
}

// New makes a Keeper. It answers from the store at once; it writes and
// refreshes while Run runs.
func New(o Options) *Keeper {
	if o.Clock == nil {
		o.Clock = NewClock(time.Now, monotonic())
	}
	k := &Keeper{
		o:       o,
		seed:    maphash.MakeSeed(),
		flights: flights{byDomain: make(map[string]*flight)},

		writer: writer{changes: make(map[string]*change), wake: make(chan struct{}, 1)},

		rechecked: newRecent(), fetched: newRecent(),
		questions: newLimiter(min(cmp.Or(o.MaxQuestions, maxQuestions), maxQuestions)),
		lookups:   newLimiter(o.LookupConcurrency),
		refreshes: newLimiter(o.RefreshConcurrency + 2*maxRechecks), // due, rechecked, and the administrator's
		attention: make(chan string, maxAttention),

		attentionRate: rate.NewLimiter(attentionPerSecond, attentionPerSecond),
		learnRate:     rate.NewLimiter(learnsPerSecond, 1),
		fetchRate:     rate.NewLimiter(rate.Limit(o.FetchRate), 1),
		wakeRefresher: make(chan struct{}, 1),
		heldLines:     rate.NewLimiter(linesPerSecond, lineBurst),
		strangerLines: rate.NewLimiter(linesPerSecond, lineBurst),
	}
	k.memory.init(memoryBytes)
	k.negative.init(negativeBytes)
	k.life, k.end = context.WithCancel(context.Background())
	return k
}

// Run writes and refreshes until ctx ends; what is pending is then written,
// for a few seconds at most.
func (k *Keeper) Run(ctx context.Context) error {
	defer k.end()
	writing, stopWriting := context.WithCancel(context.Background())
	defer stopWriting()
	written := make(chan error, 1)
	go func() { written <- k.runWriter(writing) }()

	var loops sync.WaitGroup
	for _, loop := range []func(context.Context){k.refresh, k.attend, k.upkeep} {
		loops.Go(func() { loop(ctx) })
	}
	<-ctx.Done()
	k.end()
	loops.Wait()
	k.wg.Wait()
	stopWriting()
	select {
	case err := <-written:
		return err
	case <-time.After(2 * finalCommits):
		return errors.New("a commit of the cache does not end")
	}
}

// Lookup finds the live policy of a domain: nil and h filled in, or one of the
// errors above. The domain is in A-labels, lower case, without a trailing dot. A
// lookup waits for a discovery for the lookup time-out at most, or until ctx ends.
func (k *Keeper) Lookup(ctx context.Context, domain []byte, h *Held) error {
	clock := k.o.Now()
	now := clock.Unix()
	hash := maphash.Bytes(k.seed, domain)
	if e := k.memory.get(hash, domain); e != nil && isLive(&e.hit, now) {
		k.noteLookup(e, now)
		h.set(&e.hit, e)
		return nil
	}
	if n := k.negative.get(hash, domain); n != nil && clock.Before(n.Until) {
		k.counters.add(&k.counters.NegativeHits, 1)
		if k.o.Fleet != nil && n.mayAskFleet(now) {
			return k.await(ctx, string(domain), false, h, func(fl *flight) { k.askAgain(fl, n) })
		}
		return n.err()
	}
	h.Since = time.Now()
	changes := k.memory.changes.Load() // before anything is read
	if r, late, _ := k.writer.pending(domain); late {
		if r != nil && now < liveUntil(r.Fetched.Unix(), r.Expires.Unix()) {
			e := k.entryOf(r)
			k.noteLookup(e, now)
			h.set(&e.hit, e)
			return nil
		}
		return k.await(ctx, string(domain), false, h, k.discover)
	}
	err := k.o.Store.Lookup(domain, &h.hit)
	switch {
	case string(domain) == ProbeDomain:
		return ErrNoPolicy // the store has answered, which is what the watchdog asks
	case err == nil && isLive(&h.hit, now):
		return k.answerStored(ctx, hash, domain, changes, now, h)
	case err == nil, errors.Is(err, cache.ErrNotFound):
		return k.await(ctx, string(domain), false, h, k.discover)
	}
	k.counters.add(&k.counters.StoreErrors, 1)
	return k.await(ctx, string(domain), true, h, k.discover) // it may be an enforced policy
}

// answerStored answers from a live policy in the store.
func (k *Keeper) answerStored(ctx context.Context, hash uint64, domain []byte, changes uint64, now int64, h *Held) error {
	if !k.o.MatchListCurrent(h.hit.Match) {
		r, err := k.current(string(domain))
		if err != nil {
			return k.await(ctx, string(domain), true, h, k.discover)
		}
		h.hit.Match = append(h.hit.Match[:0], r.Match...)
	}
	if k.memory.secondUse(hash) {
		e := k.entryOfHit(domain, h.hit)
		k.noteLookup(e, now)
		k.memory.putStored(e, changes)
		h.set(&e.hit, e)
		return nil
	}
	if k.isUnchecked(h.hit.Checked, now) || isUnused(h.hit.Used, h.hit.Fetched, now) {
		k.enqueueAttention(string(domain))
	}
	h.set(&h.hit, nil)
	return nil
}

func (k *Keeper) hash(domain string) uint64 { return maphash.String(k.seed, domain) }
