package observe

import (
	"math"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

func (c *collector) collectTroubles(o out) {
	holds := make(map[string]float64)
	for _, t := range c.Troubles() {
		holds[t.Condition] = 1
	}
	for _, name := range Conditions() {
		o.gauge(trouble, holds[name], name)
	}
}

func collectMap(o out, m *tlsmap.MapStats) {
	o.counter(lookups, m.OK, m.Map, "ok")
	o.counter(lookups, m.NotFound, m.Map, "notfound")
	o.counter(lookups, m.Exempt, m.Map, "exempt")
	o.counter(lookups, m.Temp, m.Map, "temp")
	o.counter(lookups, m.RehearsedOK, m.Map, "rehearsed-ok")
	o.counter(lookups, m.RehearsedTemp, m.Map, "rehearsed-temp")

	var slow uint64
	for _, n := range m.Slow {
		slow += n
	}
	below := m.Replies() - min(slow, m.Replies()) // those from memory
	buckets := make(map[float64]uint64, len(tlsmap.SlowBounds))
	for i, bound := range tlsmap.SlowBounds {
		below += m.Slow[i]
		buckets[bound.Seconds()] = below
	}
	o <- prometheus.MustNewConstHistogram(lookupDuration, m.Replies(), m.SlowSum.Seconds(), buckets, m.Map)
}

func collectCache(o out, s cache.Stats) {
	for mode, n := range s.ByMode {
		name := "unreadable"
		if mode > 0 {
			name = policy.Mode(mode).String()
		}
		o.gauge(policies, float64(n), name)
	}
	o.gauge(usedBytes, float64(s.UsedSize))
	o.gauge(fileBytes, float64(s.FileSize))
	o.gauge(maxBytes, float64(s.MaxSize))
	at := 0.0
	if !s.Newest.IsZero() {
		at = float64(s.Newest.Unix())
	}
	o.gauge(newest, at)
	o.counter(damaged, s.Damaged)
	o.counter(unreadable, s.Unreadable)
	o.counter(rebuilds, s.Rebuilds)
	lost := 0.0
	for _, r := range []*cache.Report{s.Salvage, s.Rebuild} { // the later one counts
		if r != nil {
			lost = float64(r.Lost)
			if r.Unopened {
				lost = math.NaN()
			}
		}
	}
	o.gauge(salvagedLost, lost)
}

func collectKeeper(o out, s keeper.Stats) {
	o.counter(negativeHits, uint64(s.NegativeHits))
	o.counter(lookupTimeouts, uint64(s.DiscoveryTimeouts))
	o.counter(overloads, uint64(s.Overloads))
	o.counter(storeErrors, uint64(s.StoreErrors))
	o.gauge(tableEntries, float64(s.TableEntries))
	o.gauge(tableBytes, float64(s.TableBytes))
	o.gauge(negatives, float64(s.Negatives))
	o.gauge(discovering, float64(s.Discovering))
	o.gauge(queue, float64(s.Pending), "writes")
	o.gauge(queue, float64(s.RecheckQueue), "rechecks")
	o.gauge(lateWrites, float64(s.Late))
	o.counter(failedWrites, uint64(s.WritesFailed))
	o.counter(notKept, uint64(s.NotKept), "queue-full")
	o.counter(notKept, uint64(s.Refused), "cache-full")
	o.counter(rechecks, uint64(s.Rechecks))
	o.counter(dropped, uint64(s.RechecksDropped), "recheck")
	o.counter(dropped, uint64(s.UrgentDropped), "fetch")
	o.counter(dropped, uint64(s.LogLinesDropped), "log-line")
	o.counter(panics, uint64(s.Panics), "keeper")
	o.gauge(lateness, float64(s.LateSeconds))
}

func collectDANE(o out, s dane.Stats) {
	for state, n := range s.Findings {
		o.counter(daneFindings, n, dane.State(state).String())
	}
	o.counter(panics, s.Panics, "dane")
	o.counter(dropped, s.LogLinesDropped, "dane-log-line")
	o.gauge(daneHeld, float64(s.Held))
	o.gauge(daneKept, float64(s.Kept))
	o.gauge(mxHeld, float64(s.MXSets))
	o.gauge(daneChecking, float64(s.Checking))
	o.oneOf(verdict, s.Verdict.Name(),
		dane.Validates.Name(), dane.NoAD.Name(), dane.FalseAD.Name(), dane.NotBelieved.Name(), dane.NoVerdict.Name())
}

func collectSockets(o out, s socketmap.Stats) {
	o.gauge(connections, float64(s.Open))
	o.counter(accepted, s.Accepted)
	o.counter(closed, s.Evicted, "evicted")
	o.counter(closed, s.Malformed, "malformed")
	o.counter(closed, s.Slow, "slow")
	o.counter(requests, s.Requests)
	o.counter(panics, s.Panics, "lookup")
}
