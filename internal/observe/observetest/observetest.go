// Package observetest has an Observer to test against: every metric is there, with
// made-up numbers.
package observetest

import (
	"log/slog"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/fleet"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/observe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/collect"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/reporting"
)

// Stats are numbers that are all different from zero where it matters. The clock
// is in doubt.
func Stats() observe.Stats {
	// 10 lookups from memory, one of up to a millisecond, and two of minutes.
	m := tlsmap.MapStats{Map: "postfix", By: map[string]uint64{"ok": 5, "notfound": 6, "temp": 2, "exempt": 0, "rehearsed-ok": 0, "rehearsed-temp": 0}, SlowSum: 4 * time.Minute}
	m.Slow[0], m.Slow[len(m.Slow)-1] = 1, 2
	return observe.Stats{
		Keeper: keeper.Stats{Pending: 3, LateSeconds: 7, ClockOff: 7200},
		Cache: cache.Stats{ByMode: [4]int64{1, 2, 3, 4}, Heartbeat: time.Now(), UsedSize: 5, FileSize: 6, MaxSize: 7,
			Damaged: 8},
		Maps:    tlsmap.Stats{Maps: []tlsmap.MapStats{m}, UnknownMap: 8},
		Sockets: socketmap.Stats{Open: 2, Accepted: 3, Requests: 21, Panics: 4},
		DANE:    dane.Stats{Verdict: dane.NoAD, Findings: [dane.NotValidating + 1]uint64{dane.Usable: 6}},
		Reports: reporting.Stats{Collect: collect.Stats{From: [2]collect.Count{{Successful: 3, Failed: 1}}, Dropped: map[string]uint64{"ring": 1}}},
		Fleet: fleet.Stats{
			On: true, Name: "relay", Relays: 20, Latency: 400 * time.Microsecond, Pending: 2, Asked: 30, Found: 20, Failed: 1, Written: 9,
			Refused: map[fleet.Reason]int64{fleet.ReasonForged: 1}, RefusedAt: time.Now().Add(-time.Hour), RefusedKey: "sts-tlsmap:p:{example.com}",
		},
	}
}

// Sources have the Stats, and hold nothing.
func Sources() observe.Sources {
	return observe.Sources{
		Version: "1.2.3", Commit: "abc", Host: "relay", Started: time.Now(), Stats: Stats,
		Roots: func() error { return nil },
		List:  func(string, int) ([]cache.Record, string, error) { return nil, "", nil },
		Held:  func(domain string) (control.Held, error) { return control.Held{Domain: domain}, nil },
		TLS:   func() (reporting.Overview, error) { return reporting.Overview{}, nil },
		Log:   slog.New(slog.DiscardHandler),
	}
}

// New returns an Observer of the Sources that has observed something.
func New() *observe.Observer {
	o := observe.New(Sources())
	o.Observe(keeper.Event{Step: keeper.StepDiscovery, Result: policy.ResultOK, Took: time.Second, Mode: policy.ModeEnforce, Changed: true})
	o.Observe(keeper.Event{Step: keeper.StepFetch, Result: policy.ResultWebPKI, Took: time.Minute, Mode: policy.ModeEnforce})
	return o
}
