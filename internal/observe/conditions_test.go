package observe

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
)

var noon = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)

// broken are signs of each condition, and of nothing else.
var broken = map[string]Signs{
	Discovery:  {Keeper: keeper.Stats{FetchDead: true}},
	Roots:      {Keeper: keeper.Stats{FetchDead: true, Untrusted: true}},
	Resolver:   {Keeper: keeper.Stats{DNSDead: true}},
	Clock:      {Cache: cache.Stats{Newest: noon.Add(2 * keeper.ClockSlack)}},
	Refresher:  {Keeper: keeper.Stats{LateSeconds: int64(keeper.LateAfter / time.Second)}},
	Writes:     {Keeper: keeper.Stats{Failing: true}},
	Validation: {DANE: dane.Stats{Kept: 7, Verdict: dane.NoAD}},
	Salvage:    {Cache: cache.Stats{Salvage: &cache.Report{Why: errors.Join(errors.New("zeroes"), errors.New("everywhere")), Recovered: 7, Lost: 2}}},
}

func TestEachConditionIsToldByItsSignsAndSaysWhatToDo(t *testing.T) {
	for _, name := range Conditions() {
		s, ok := broken[name]
		if !ok {
			t.Errorf("%s: no signs to try", name)
			continue
		}
		s.Now = noon
		got := s.Troubles()
		if len(got) != 1 || got[0].Condition != name || got[0].What == "" || got[0].Next == "" || strings.Contains(got[0].What+got[0].Next, "\n") {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestNothingIsWrongWithADaemonThatWorks(t *testing.T) {
	s := Signs{Now: noon, Cache: cache.Stats{Newest: noon.Add(keeper.ClockSlack)}, Keeper: keeper.Stats{LateSeconds: 3599, Fetches: 7, FetchFailures: 7},
		DANE: dane.Stats{Kept: 7, Verdict: dane.Validates}} // which they lose at their next renewal
	if got := s.Troubles(); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

func TestAFileThatMayNotBeOpenedIsNotSaidToBeDamaged(t *testing.T) {
	why := &fs.PathError{Op: "open", Path: "/cache.db", Err: unix.EACCES}
	s := Signs{Now: noon, Cache: cache.Stats{Salvage: &cache.Report{Why: why, MovedTo: "/cache.db.damaged-1", Unopened: true}}}
	list := s.Troubles()
	if len(list) != 1 || !strings.Contains(list[0].What, "lost is not known; the file is /cache.db.damaged-1") ||
		!strings.HasPrefix(list[0].Next, "the file may be whole: stop the daemon, chown /cache.db.damaged-1 to its user") {
		t.Errorf("%+v", list)
	}
	s.Cache.Salvage.Why = unix.EIO
	if list := s.Troubles(); len(list) != 1 || !strings.HasPrefix(list[0].Next, "look at the disk") {
		t.Errorf("%+v", list)
	}
}

func TestALaterRebuildIsToldInThePlaceOfTheSalvage(t *testing.T) {
	s := Signs{Now: noon, Cache: cache.Stats{Salvage: &cache.Report{Lost: 1}, Rebuild: &cache.Report{Lost: 77, MovedTo: "/aside"}}}
	got := s.Troubles()
	if len(got) != 1 || !strings.Contains(got[0].What, "77 lost; the damaged file is /aside") {
		t.Errorf("%+v", got)
	}
}

func TestTheMonitorLogsWhatBeginsAndWhatEndsOnce(t *testing.T) {
	var log bytes.Buffer
	ahead, rootsErr := time.Duration(0), error(nil)
	m := NewMonitor(func() Signs {
		now := time.Now()
		return Signs{Now: now, Cache: cache.Stats{Newest: now.Add(ahead)}, Keeper: keeper.Stats{Failing: ahead > 0}}
	}, func() error { return rootsErr }, slog.New(slog.NewTextHandler(&log, nil)))
	rest := func() {
		for range 5 {
			m.Look()
		}
	}

	rest()
	if log.Len() > 0 {
		t.Errorf("it is well:\n%s", &log)
	}
	ahead, rootsErr = time.Hour, errors.New("no such file")
	rest()
	for _, want := range []string{"condition=clock", "condition=roots"} {
		if n := strings.Count(log.String(), want); n != 1 {
			t.Errorf("%s: %d lines:\n%s", want, n, &log)
		}
	}
	if strings.Contains(log.String(), "condition=writes") {
		t.Errorf("the keeper has said that already:\n%s", &log)
	}
	var names []string
	for _, trouble := range m.Troubles() {
		names = append(names, trouble.Condition)
	}
	if !slices.Equal(names, []string{Roots, Clock, Writes}) {
		t.Error(names)
	}
	ahead, rootsErr = 0, nil
	rest()
	if n := strings.Count(log.String(), "the trouble is over"); n != 3 {
		t.Errorf("%d ends:\n%s", n, &log)
	}
}

func TestTheMonitorLooksUntilItIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var looks atomic.Int64
		m := NewMonitor(func() Signs { return Signs{} }, func() error { looks.Add(1); return nil }, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithTimeout(t.Context(), 10*lookEvery+time.Second)
		defer cancel()
		m.Run(ctx)
		if n := looks.Load(); n != 11 { // at once, and then
			t.Errorf("%d looks", n)
		}
	})
}
