package keeper

import (
	"sync/atomic"
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

// An Event is told to Options.Observe: what was tried, for whom, and with
// which result in the standard's terms.
type Event struct {
	Step    Step
	Domain  string
	Result  policy.Result
	Err     error // nil if Result is ok
	Took    time.Duration
	Mode    policy.Mode // of the policy now held; zero if none is
	Changed bool        // the text is another than before
}

type counters struct {
	negativeHits, storeErrors, discoveries, discoveryTimeouts, overloads atomic.Int64
	rechecks, rechecksDropped, urgentDropped, notKept, refused           atomic.Int64
	checks, fetches, checkFailures, fetchFailures, panics, linesDropped  atomic.Int64
}

// Stats are the keeper's numbers, counted since it was made where they are
// not states.
type Stats struct {
	TableEntries int   `json:"table_entries"`
	TableBytes   int64 `json:"table_bytes"`
	Negatives    int   `json:"negatives"`
	Discovering  int   `json:"discovering"`      // discoveries and refreshes under way
	Pending      int   `json:"pending_writes"`   // changes that wait for the disk
	Late         int64 `json:"late_writes"`      // those answered from memory meanwhile
	RecheckQueue int   `json:"recheck_queue"`    // rechecks that wait
	Failing      bool  `json:"writes_failing"`   // the last commit failed
	WritesFailed int64 `json:"failed_writes"`    // failed commits
	Trouble      bool  `json:"nothing_succeeds"` // nothing has succeeded for some minutes although it was tried
	DNSDead      bool  `json:"dns_dead"`         // no TXT lookup has
	FetchDead    bool  `json:"fetch_dead"`       // no fetch of a policy has
	Untrusted    bool  `json:"untrusted"`        // and the last one met a certificate that is not trusted
	LateSeconds  int64 `json:"late_seconds"`     // how far behind the refresher is

	NegativeHits      int64 `json:"negative_hits"`
	StoreErrors       int64 `json:"store_errors"`
	Discoveries       int64 `json:"discoveries"`
	DiscoveryTimeouts int64 `json:"discovery_timeouts"` // lookups answered before their discovery ended
	Overloads         int64 `json:"overloads"`          // discoveries that got no turn in time, or would have been too many
	Rechecks          int64 `json:"rechecks"`
	RechecksDropped   int64 `json:"rechecks_dropped"`
	UrgentDropped     int64 `json:"urgent_fetches_dropped"`
	NotKept           int64 `json:"not_kept"` // policies answered and not written
	Refused           int64 `json:"refused"`  // policies for which the cache had no room
	Checks            int64 `json:"checks"`
	CheckFailures     int64 `json:"check_failures"`
	Fetches           int64 `json:"fetches"`
	FetchFailures     int64 `json:"fetch_failures"`
	Panics            int64 `json:"panics"`
	LogLinesDropped   int64 `json:"log_lines_dropped"` // about single domains, for their number
}

// Stats returns the keeper's numbers.
func (k *Keeper) Stats() Stats {
	c := &k.counters
	s := Stats{
		Negatives:   k.negative.byHash.Len(),
		Discovering: k.flights.length(), Pending: k.writer.length(), Late: k.writer.lates.Load(),
		RecheckQueue: len(k.check.urgent), Failing: k.writer.failing.Load(), WritesFailed: k.writer.failed.Load(),
		LateSeconds:  max(k.check.late.Load(), k.fetch.late.Load()),
		NegativeHits: c.negativeHits.Load(), StoreErrors: c.storeErrors.Load(),
		Discoveries: c.discoveries.Load(), DiscoveryTimeouts: c.discoveryTimeouts.Load(), Overloads: c.overloads.Load(),
		Rechecks: c.rechecks.Load(), RechecksDropped: c.rechecksDropped.Load(), UrgentDropped: c.urgentDropped.Load(),
		NotKept: c.notKept.Load(), Refused: c.refused.Load(),
		Checks: c.checks.Load(), CheckFailures: c.checkFailures.Load(),
		Fetches: c.fetches.Load(), FetchFailures: c.fetchFailures.Load(), Panics: c.panics.Load(),
		LogLinesDropped: c.linesDropped.Load(),
	}
	s.DNSDead, s.FetchDead, s.Untrusted = k.health.troubles()
	s.Trouble = s.DNSDead || s.FetchDead
	s.TableEntries, s.TableBytes = k.table.size()
	return s
}
