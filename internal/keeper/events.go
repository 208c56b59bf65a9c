package keeper

import (
	"sync"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// A Step is what was tried.
type Step string

// The steps.
const (
	StepDiscovery Step = "discovery" // a lookup found nothing held
	StepCheck     Step = "check"     // the TXT record of a held policy
	StepFetch     Step = "fetch"     // a held policy, again
)

// An Event is one attempt, as Options.Observe gets it: the step, the domain and
// the result in the standard's terms.
type Event struct {
	Step    Step
	Domain  string
	Result  policy.Result
	Err     error // nil if Result is ok
	Took    time.Duration
	Mode    policy.Mode // of the policy now held; zero if none is
	Changed bool        // the text is another than before
}

// Stats are the keeper's numbers.
type Stats struct {
	TableEntries int   `json:"table_entries"` // policies in memory
	TableBytes   int64 `json:"table_bytes"`
	Negatives    int   `json:"negatives"`
	Discovering  int   `json:"discovering"`    // discoveries and refreshes under way
	Pending      int   `json:"pending_writes"` // changes that wait for the disk
	Late         int64 `json:"late_writes"`    // of these, changes that are answered from memory
	RecheckQueue int   `json:"recheck_queue"`  // rechecks and writes of uses that wait
	Failing      bool  `json:"writes_failing"` // the last commit failed, or one is under way for 10 s
	WritesFailed int64 `json:"failed_writes"`  // failed commits
	Full         bool  `json:"full"`           // the cache had no room for a policy within the last hour
	CommitTakes  int64 `json:"commit_seconds"` // for how long the commit under way has lasted
	DNSDead      bool  `json:"dns_dead"`       // no TXT lookup has succeeded for some minutes
	FetchDead    bool  `json:"fetch_dead"`     // no policy fetch has succeeded for some minutes
	Untrusted    bool  `json:"untrusted"`      // FetchDead, and most certificates were not trusted
	LateSeconds  int64 `json:"late_seconds"`   // how far behind the refresher is
	ClockOff     int64 `json:"clock_off"`      // seconds: how far the wall clock is ahead; 0: it is not in doubt
	Counts
}

// Counts are what has happened since the keeper was made.
type Counts struct {
	NegativeHits      int64 `json:"negative_hits"`
	StoreErrors       int64 `json:"store_errors"`
	DiscoveryTimeouts int64 `json:"discovery_timeouts"` // lookups answered before their discovery ended
	Overloads         int64 `json:"overloads"`          // discoveries and fetches that got no place or were evicted
	Rechecks          int64 `json:"rechecks"`
	RechecksDropped   int64 `json:"rechecks_dropped"`
	NotKept           int64 `json:"not_kept"` // policies answered and not written
	Refused           int64 `json:"refused"`  // policies for which the cache had no room
	Fetches           int64 `json:"fetches"`
	Panics            int64 `json:"panics"`
	Adopted           int64 `json:"adopted"`           // policies that another relay fetched
	NotAdopted        int64 `json:"not_adopted"`       // other policies of other relays, which led to a fetch
	LogLinesDropped   int64 `json:"log_lines_dropped"` // about single domains, over the rate
}

type counters struct {
	mu sync.Mutex
	Counts
}

// add adds n to one of the counts.
func (c *counters) add(count *int64, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*count += int64(n)
}

// Stats returns the keeper's numbers.
func (k *Keeper) Stats() Stats {
	s := Stats{
		Discovering: k.flights.length(), Pending: len(k.writer.pendingAfter("")), RecheckQueue: len(k.attention),
		Failing:      k.writer.failing.Load() || k.writer.commitTakes() >= commitStuck,
		WritesFailed: k.writer.failed.Load(), CommitTakes: int64(k.writer.commitTakes() / time.Second),
		Full:        k.writer.full(),
		LateSeconds: k.late.Load(), ClockOff: int64(k.o.Off() / time.Second),
	}
	if s.Failing {
		s.Late = int64(s.Pending)
	}
	s.DNSDead, s.FetchDead, s.Untrusted = k.health.failing()
	s.TableEntries, s.TableBytes = k.memory.size()
	s.Negatives, _ = k.negative.size()
	k.counters.mu.Lock()
	defer k.counters.mu.Unlock()
	s.Counts = k.counters.Counts
	return s
}
