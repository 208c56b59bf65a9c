// Package metricstest has metrics to test against: every one of them is there,
// with made-up numbers.
package observetest

import (
	"net/http"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/observe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// Sources return numbers that are all different from zero where it matters.
func Sources() observe.Sources {
	now := time.Now()
	return observe.Sources{
		Version: "1.2.3", Commit: "abc", Started: now,
		Keeper: func() keeper.Stats { return keeper.Stats{Pending: 3, LateSeconds: 7, Panics: 1} },
		Cache: func() cache.Stats {
			return cache.Stats{ByMode: [4]int64{1, 2, 3, 4}, Newest: now, UsedSize: 5, FileSize: 6, MaxSize: 7,
				Salvage: &cache.Report{Lost: 9}}
		},
		Maps: func() tlsmap.Stats {
			// 10 from memory, one of up to a millisecond, and two that took ages.
			m := tlsmap.MapStats{Map: "postfix", OK: 5, NotFound: 6, Temp: 2, SlowSum: 4 * time.Minute}
			m.Slow[0], m.Slow[len(m.Slow)-1] = 1, 2
			return tlsmap.Stats{Maps: []tlsmap.MapStats{m}, UnknownMap: 8}
		},
		Sockets: func() socketmap.Stats { return socketmap.Stats{Open: 2, Accepted: 3, Requests: 21, Panics: 4} },
		DANE: func() dane.Stats {
			return dane.Stats{Verdict: dane.NoAD, Findings: [dane.NotValidating + 1]uint64{dane.Usable: 6}}
		},
		Troubles: func() []control.Trouble { return []control.Trouble{{Condition: observe.Clock}} },
		List: func(string, int) ([]cache.Record, string, error) {
			return []cache.Record{
				{Fetched: now.Add(-3 * time.Hour), Expires: now.Add(time.Hour)},
				{Fetched: now.Add(-time.Hour), Expires: now.Add(-time.Hour)},
				{Fetched: now.Add(-2 * time.Hour), Expires: now.Add(5 * time.Hour)},
			}, "", nil
		},
	}
}

// Handler serves the Sources, and something that was observed.
func Handler() http.Handler {
	m := observe.New()
	m.Observe(keeper.Event{Step: keeper.StepDiscovery, Result: policy.ResultOK, Took: time.Second, Mode: policy.ModeEnforce, Changed: true})
	m.Observe(keeper.Event{Step: keeper.StepFetch, Result: policy.ResultWebPKI, Took: time.Minute, Mode: policy.ModeEnforce})
	return m.Handler(Sources())
}
