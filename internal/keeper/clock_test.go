package keeper_test

import (
	"errors"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// fakeClocks are a wall clock that can be set, and the time that passes.
type fakeClocks struct {
	wall   time.Time
	passed time.Duration
}

func newFakeClocks() *fakeClocks {
	return &fakeClocks{wall: time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC), passed: 77 * day}
}

func (f *fakeClocks) clock() *keeper.Clock {
	return keeper.NewClock(func() time.Time { return f.wall }, func() time.Duration { return f.passed })
}

// move lets time pass, and then sets the wall clock.
func (f *fakeClocks) move(passes, set time.Duration) {
	f.passed += passes
	f.wall = f.wall.Add(passes + set)
}

// A clockStep lets time pass, sets the wall clock, and says what the Clock then shows:
// the time since the beginning, and how far the wall clock is off.
type clockStep struct{ passes, set, now, off time.Duration }

const years = 365 * day

var clockSteps = map[string][]clockStep{
	"small steps are followed at once": {
		{0, time.Hour, time.Hour, 0},
		{time.Minute, -2 * time.Hour, time.Minute - time.Hour, 0},
	},
	"a jump ahead counts after a day": {
		{time.Hour, 8 * day, time.Hour, 8 * day},
		{day - time.Minute, 0, day + time.Hour - time.Minute, 8 * day},
		{time.Minute, 0, 9*day + time.Hour, 0},
		{time.Hour, 0, 9*day + 2*time.Hour, 0},
	},
	"a jump back counts after a day": {
		{9 * day, -8 * day, 9 * day, -8 * day},
		{day, 0, 2 * day, 0},
	},
	"a clock that comes back counts at once": {
		{0, 11 * years, 0, 11 * years},
		{time.Hour, -11*years + time.Minute, time.Hour + time.Minute, 0},
		{10 * day, 0, 10*day + time.Hour + time.Minute, 0},
	},
	"a clock that moves again is in doubt for another day": {
		{0, 8 * day, 0, 8 * day},
		{23 * time.Hour, 11 * years, 23 * time.Hour, 8*day + 11*years},
		{23 * time.Hour, 0, 46 * time.Hour, 8*day + 11*years},
		{time.Hour, 0, 10*day - time.Hour + 11*years, 0},
	},
	"small steps of one day add up": {
		{time.Hour, 40 * time.Minute, time.Hour + 40*time.Minute, 0},
		{time.Hour, 40 * time.Minute, 2 * time.Hour, 80 * time.Minute},
	},
	"small steps of several days do not": {
		{day, 40 * time.Minute, day + 40*time.Minute, 0},
		{day, 40 * time.Minute, 2*day + 80*time.Minute, 0},
		{day, 40 * time.Minute, 3*day + 120*time.Minute, 0},
	},
}

func TestWallClockThatMovesIsInDoubtForADay(t *testing.T) {
	for name, steps := range clockSteps {
		t.Run(name, func(t *testing.T) {
			f := newFakeClocks()
			c, start := f.clock(), f.wall
			checkSteps(t, f, c, start, steps)
		})
	}
}

func checkSteps(t *testing.T, f *fakeClocks, c *keeper.Clock, start time.Time, steps []clockStep) {
	t.Helper()
	for i, s := range steps {
		f.move(s.passes, s.set)
		if now, off := c.Now().Sub(start), c.Off(); now != s.now || off != s.off {
			t.Errorf("step %d: the time is %v, want %v; the wall clock is off by %v, want %v", i, now, s.now, off, s.off)
		}
	}
}

func TestClockThatIsBehindTheHeartbeatIsInDoubtUntilItGetsThere(t *testing.T) {
	for name, steps := range map[string][]clockStep{
		"set right after a long stop": {{time.Minute, 0, time.Minute, -3 * day}, {0, 9 * day, 6*day + time.Minute, 0}},
		"set right after a short one": {{time.Minute, 0, time.Minute, -3 * day}, {0, 3*day - time.Minute, 0, 0}},
		"never set":                   {{time.Minute, 0, time.Minute, -3 * day}, {day, 0, day + time.Minute - 3*day, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeClocks()
			c, heartbeat := f.clock(), f.wall.Add(3*day)
			c.NotBefore(heartbeat, time.Time{})
			checkSteps(t, f, c, heartbeat, steps)
		})
	}
	f := newFakeClocks()
	c := f.clock()
	for _, heartbeat := range []time.Time{{}, f.wall.Add(-8 * day), f.wall.Add(time.Hour)} {
		if c.NotBefore(heartbeat, time.Time{}); !c.Now().Equal(f.wall) || c.Off() != 0 {
			t.Errorf("after a heartbeat at %v: %v, off by %v", heartbeat, c.Now(), c.Off())
		}
	}
}

// The daemon ran for over a day with a clock that was ahead by a year. While it was
// stopped, the clock was set right.
func TestDoubtAboutAClockEndsAfterADayDespiteRestarts(t *testing.T) {
	f, path := newFakeClocks(), filepath.Join(memoryDir(t), "cache.db")
	run := func(d time.Duration) (off time.Duration) {
		c := f.clock()
		s, err := cache.Open(path, cache.Options{Now: c.Now, InDoubtSince: c.InDoubtSince})
		if err != nil {
			t.Fatal(err)
		}
		stats := s.Stats()
		c.NotBefore(stats.Heartbeat, stats.InDoubtSince)
		f.move(d, 0)
		off = c.Off()
		_, err = s.Purge(time.Time{}, 1) // writes the heartbeat
		if err := errors.Join(err, s.Close()); err != nil {
			t.Fatal(err)
		}
		return off
	}
	f.move(0, 1*years)
	run(time.Hour)
	f.move(0, -1*years)
	for i, d := range []time.Duration{23 * time.Hour, 30 * time.Minute, 31 * time.Minute, 23 * time.Hour,
		23 * time.Hour, 23 * time.Hour, 23 * time.Hour, 23 * time.Hour, 23 * time.Hour, 23 * time.Hour} {
		if off := run(d); off != 0 != (i < 2) {
			t.Errorf("start %d: off by %v", i+1, off)
		}
	}
}

// inSiteWithClock is inSite with a wall clock that set moves.
func inSiteWithClock(t *testing.T, test func(t *testing.T, s *site, set func(time.Duration))) {
	t.Helper()
	var ahead atomic.Int64
	inSite(t, func(o *keeper.Options) {
		start := time.Now()
		o.Clock = keeper.NewClock(func() time.Time { return time.Now().Round(0).Add(time.Duration(ahead.Load())) },
			func() time.Duration { return time.Since(start) })
	}, func(t *testing.T, s *site) {
		test(t, s, func(d time.Duration) { ahead.Add(int64(d)) })
	})
}

// block lets nothing of a domain be found.
func (n *fakeNet) block(domain string) {
	n.change(domain, func(h *fakeHost) { h.recordErr, h.fetchErr = policy.ResultDNS, policy.ResultFetch })
}

func TestJumpOfTheClockExpiresNoPolicyForADay(t *testing.T) {
	inSiteWithClock(t, func(t *testing.T, s *site, set func(time.Duration)) {
		s.net.enforced("held.example", 7*day)
		s.mustHold(t, "held.example")
		s.net.block("held.example")
		set(8 * day)
		s.mustHold(t, "held.example") // from the store, and then from memory
		s.mustHold(t, "held.example")
		if off := s.Stats().ClockOff; off != int64(8*day/time.Second) {
			t.Errorf("the clock is off by %d s", off)
		}
		settle(day - time.Minute)
		s.mustHold(t, "held.example")
		settle(2 * time.Minute)
		if _, err := s.lookup(t, "held.example"); !errors.Is(err, keeper.ErrNoPolicy) {
			t.Errorf("after a day: %v", err)
		}
	})
}

func TestPolicyThatIsExpiredByTheTimeThatPassesIsExpiredWhileTheClockIsInDoubt(t *testing.T) {
	inSiteWithClock(t, func(t *testing.T, s *site, set func(time.Duration)) {
		s.net.enforced("held.example", 12*time.Hour)
		s.mustHold(t, "held.example")
		s.net.block("held.example")
		set(-8 * day)
		settle(11 * time.Hour)
		s.mustHold(t, "held.example")
		settle(2 * time.Hour)
		if _, err := s.lookup(t, "held.example"); !errors.Is(err, keeper.ErrNoPolicy) {
			t.Errorf("after its max_age: %v", err)
		}
	})
}

// The daemon ran for a while with a clock that was ahead by a year, and then it was set.
func TestPolicyThatWasFetchedByAClockThatWasAheadLivesForItsMaxAge(t *testing.T) {
	inSiteWithClock(t, func(t *testing.T, s *site, set func(time.Duration)) {
		s.net.enforced("held.example", 7*day)
		s.net.enforced("moved.example", 7*day)
		s.mustHold(t, "held.example")
		s.mustHold(t, "moved.example")
		s.net.block("held.example")
		s.net.set("moved.example", fakeHost{id: "2", text: policyText("enforce", 7*day, "new.example")})
		set(-1 * years)
		settle(day + time.Minute)
		s.mustHold(t, "held.example") // and has it fetched, in vain
		s.mustHold(t, "moved.example")
		settle(time.Hour)
		if got := s.mustHold(t, "moved.example"); got != "enforce [new.example]" {
			t.Errorf("one that can be fetched: %s", got)
		}
		settle(5 * day)
		s.mustHold(t, "held.example")
		settle(2 * day)
		if _, err := s.lookup(t, "held.example"); !errors.Is(err, keeper.ErrNoPolicy) {
			t.Errorf("one that cannot be fetched, after its max_age: %v", err)
		}
	})
}

func TestFailureIsNotRememberedForLongerBecauseTheClockWasSetBack(t *testing.T) {
	inSiteWithClock(t, func(t *testing.T, s *site, set func(time.Duration)) {
		set(-8 * day)
		settle(day - 2*time.Minute)
		if _, err := s.lookup(t, "new.example"); !errors.Is(err, keeper.ErrNoPolicy) {
			t.Fatal(err)
		}
		s.net.enforced("new.example", 7*day)
		settle(10 * time.Minute)
		s.mustHold(t, "new.example")
	})
}

func TestHeartbeatIsWrittenEachHourWithoutAnyCommit(t *testing.T) {
	path := filepath.Join(memoryDir(t), "cache.db")
	synctest.Test(t, func(t *testing.T) {
		for range 2 { // the second time after a long stop, when nothing is deleted for a day
			s := openSite(t, path, newFakeNet(), nil)
			for range 5 {
				settle(time.Hour)
				if age := time.Since(s.disk.Stats().Heartbeat); age > time.Hour {
					t.Errorf("the heartbeat is %v old", age)
				}
			}
			if err := s.stop(); err != nil {
				t.Error(err)
			}
			settle(9 * day)
		}
	})
}
