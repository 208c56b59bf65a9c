package observe_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/fleet"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/observe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/observe/observetest"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/reporting"
)

func with(stats observe.Stats) *observe.Observer {
	s := observetest.Sources()
	s.Stats = func() observe.Stats { return stats }
	return observe.New(s)
}

func TestEachConditionIsDetectedAndSaysWhatToDo(t *testing.T) {
	newer := &cache.SchemaError{Path: "/cache.db"}
	var told []string
	for _, test := range []struct {
		condition  string
		stats      observe.Stats
		what, next string
	}{
		{observe.Discovery, observe.Stats{Keeper: keeper.Stats{FetchDead: true}}, "no policy fetch has succeeded", "port 443"},
		{observe.Roots, observe.Stats{Keeper: keeper.Stats{FetchDead: true, Untrusted: true}}, "no policy host's certificate has been trusted", "ca-certificates"},
		{observe.Resolver, observe.Stats{Keeper: keeper.Stats{DNSDead: true}}, "no TXT lookup has succeeded", "/etc/resolv.conf"},
		{observe.Clock, observe.Stats{Keeper: keeper.Stats{ClockOff: 8 * 24 * 3600}}, "it is " + time.Now().AddDate(0, 0, -8).Format(time.DateOnly), "set the clock"},
		{observe.Refresher, observe.Stats{Keeper: keeper.Stats{LateSeconds: 7200}}, "the refresher is 2h late", "raise fetch_rate"},
		{observe.Writes, observe.Stats{Keeper: keeper.Stats{Failing: true}}, "the cache cannot be written to", "whether the disk is full"},
		{observe.Writes, observe.Stats{Keeper: keeper.Stats{Failing: true, CommitTakes: 12}}, "has not ended for 12 s", "whether the disk is full"},
		{observe.Full, observe.Stats{Keeper: keeper.Stats{Full: true}}, "the cache is full of policies in use", "raise max_size in [cache]"},
		{observe.MemoryOnly, observe.Stats{Cache: cache.Stats{MemoryOnly: unix.EROFS}}, "in memory only (read-only file system)", "the folder of the cache"},
		{observe.Salvage, observe.Stats{Cache: cache.Stats{Salvage: &cache.Report{Why: errors.Join(errors.New("zeroes"), errors.New("everywhere")), Recovered: 7, Lost: 2}}},
			"the cache file was set aside (zeroes: everywhere): 7 policies were carried over, 0 were damaged, 2 lost", "the disk and the memory"},
		{observe.Salvage, observe.Stats{Cache: cache.Stats{Salvage: &cache.Report{Lost: 77, MovedTo: "/aside"}, Salvaging: true}}, "77 lost; this goes on; the old file is /aside", ""},
		{observe.Salvage, observe.Stats{Cache: cache.Stats{Salvage: &cache.Report{Why: newer, MovedTo: "/cache.db.aside", Lost: -1}}},
			"lost is not known; the old file is /cache.db.aside", "to go back, stop the daemon"},
		{observe.Validation, observe.Stats{DANE: dane.Stats{Kept: 3, Verdict: dane.NoAD}}, "3 next-hops keep the DANE that they had", "run a validating resolver"},
		{observe.Reports, observe.Stats{Reports: reporting.Stats{Err: unix.EROFS}}, "TLS reports do not work: read-only file system", "lookups are not affected"},
		{observe.Fleet, observe.Stats{Fleet: fleet.Stats{On: true, Trouble: "connection refused"}}, "goes on alone: connection refused", "see [fleet]"},
		{observe.Fleet, observe.Stats{Fleet: fleet.Stats{On: true, ClockOff: -time.Hour}}, "is 1h off", "set the clocks"},
		{observe.Fleet, observe.Stats{Fleet: fleet.Stats{On: true, Refused: map[fleet.Reason]int64{fleet.ReasonForged: 3}, RefusedAt: time.Now(), RefusedKey: "p:{a.test}"}},
			"(forged 3), the last at", "key_file"},
		{"", observe.Stats{ // all is well
			Keeper: keeper.Stats{LateSeconds: 3599},
			Fleet:  observetest.Stats().Fleet,                    // the last refused value is an hour old
			DANE:   dane.Stats{Kept: 7, Verdict: dane.Validates}, // which lose it at their next renewal
		}, "", ""},
	} {
		got := with(test.stats).Troubles()
		if test.condition == "" {
			if len(got) > 0 {
				t.Errorf("%+v", got)
			}
			continue
		}
		if !slices.Contains(told, test.condition) {
			told = append(told, test.condition)
		}
		if len(got) != 1 || got[0].Condition != test.condition || !strings.Contains(got[0].What, test.what) || !strings.Contains(got[0].Next, test.next) ||
			strings.Contains(got[0].What+got[0].Next, "\n") || got[0].Severity == "" {
			t.Errorf("%s: %+v", test.condition, got)
		}
	}
	if names, _ := observe.Conditions(); !slices.Equal(told, names) {
		t.Errorf("tried are %q, there are %q", told, names)
	}
}

func TestStartAndEndOfAConditionAreLoggedOnce(t *testing.T) {
	var log bytes.Buffer
	stats, rootsErr := observe.Stats{}, error(nil)
	s := observetest.Sources()
	s.Stats, s.Roots, s.Log = func() observe.Stats { return stats }, func() error { return rootsErr }, slog.New(slog.NewTextHandler(&log, nil))
	o := observe.New(s)
	look := func() {
		for range 3 {
			o.Look()
		}
	}
	if look(); log.Len() > 0 {
		t.Errorf("all is well:\n%s", &log)
	}
	stats, rootsErr = observe.Stats{Keeper: keeper.Stats{Failing: true, ClockOff: -7200}}, errors.New("no such file")
	look()
	for want, times := range map[string]int{"condition=clock": 1, "condition=roots": 1, "condition=writes": 0} { // the keeper logs that one
		if n := strings.Count(log.String(), want); n != times {
			t.Errorf("%s: %d lines:\n%s", want, n, &log)
		}
	}
	var names []string
	for _, trouble := range o.Troubles() {
		names = append(names, trouble.Condition)
	}
	if !slices.Equal(names, []string{observe.Roots, observe.Clock, observe.Writes}) {
		t.Error(names)
	}
	stats, rootsErr = observe.Stats{}, nil
	look()
	if n := strings.Count(log.String(), "the condition has ended"); n != 3 {
		t.Errorf("%d ends:\n%s", n, &log)
	}
}

func TestTheObserverLooksUntilItsContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		looks := 0
		s := observetest.Sources()
		s.Roots = func() error { looks++; return nil }
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute+time.Second)
		defer cancel()
		observe.New(s).Run(ctx)
		if looks != 11 { // at once, and every half a minute
			t.Errorf("%d looks", looks)
		}
	})
}
