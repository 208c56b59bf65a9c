package keeper

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// A Clock is the time by which policies live, so that a jump of the wall clock
// expires none. It follows the wall clock while that agrees with the time that
// passes to within clockStep. A wall clock that has moved by more is in doubt for
// clockDoubt, unless it comes back before: meanwhile the Clock keeps its own course.
// Then the wall clock counts again.
type Clock struct {
	wall   func() time.Time
	passed func() time.Duration
	agreed atomic.Int64 // where the wall clock last agreed, Unix seconds; inDoubt

	mu     sync.Mutex
	base   time.Time     // the time when passed was 0
	off    time.Duration // how far the wall clock was ahead when it last moved
	moved  time.Duration // passed at that moment, negative before the start
	behind bool          // the daemon started with a wall clock that was behind
}

// inDoubt is no second near any that a wall clock can show.
const inDoubt = math.MinInt64 / 2

// NewClock returns a Clock that follows a wall clock. passed returns the time since
// some fixed moment.
func NewClock(wall func() time.Time, passed func() time.Duration) *Clock {
	c := &Clock{wall: wall, passed: passed, moved: passed()}
	c.base = wall().Round(0).Add(-c.moved)
	c.look()
	return c
}

// SystemClock returns a Clock that follows this machine's wall clock. Suspended time
// counts as passed where the system can tell.
func SystemClock() *Clock { return NewClock(time.Now, sinceBoot()) }

// monotonic returns Go's monotonic clock.
func monotonic() func() time.Duration {
	start := time.Now()
	return func() time.Duration { return time.Since(start) }
}

// Now returns the time.
func (c *Clock) Now() time.Time {
	now := c.wall()
	if d := now.Unix() - c.agreed.Load(); d > int64(clockStep/time.Second) || d < -int64(clockStep/time.Second) {
		now, _ = c.look()
	}
	return now
}

// Off returns how far the wall clock is ahead of the time, 0 if it is not in doubt.
func (c *Clock) Off() time.Duration {
	_, off := c.look()
	return off
}

// InDoubtSince returns the time at which the wall clock came into doubt, zero if it is
// not in doubt.
func (c *Clock) InDoubtSince() time.Time {
	if c.Off() == 0 {
		return time.Time{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.base.Add(c.moved)
}

// NotBefore says that a time has been, before the daemon started, and what InDoubtSince
// was then. A wall clock that is behind that time is in doubt until it gets there. The
// doubt before the start counts in its clockDoubt.
func (c *Clock) NotBefore(t, inDoubtSince time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.wall(); t.Sub(now) > clockStep {
		passed := c.passed()
		c.base, c.off, c.moved, c.behind = t.Add(-passed), now.Sub(t), passed, true
		if !inDoubtSince.IsZero() {
			c.moved -= max(t.Sub(inDoubtSince), 0)
		}
		c.agreed.Store(inDoubt)
	}
}

// look compares the clocks.
func (c *Clock) look() (now time.Time, off time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, passed := c.wall(), c.passed()
	steady := c.base.Add(passed)
	off = now.Round(0).Sub(steady)
	if (off - c.off).Abs() > clockStep {
		c.off, c.moved = off, passed
	}
	if passed-c.moved >= clockDoubt || c.behind && off > -clockStep {
		c.base, c.off, c.moved, c.behind = c.base.Add(off), 0, passed, false
		off = 0
	}
	if c.off.Abs() > clockStep {
		c.agreed.Store(inDoubt)
		return steady, off
	}
	c.agreed.Store(now.Unix())
	return now, 0
}
