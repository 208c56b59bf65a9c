package main

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// beats runs beat for a while with that probe, and counts.
func beats(t *testing.T, interval, total time.Duration, probe func(context.Context) error) (alive, failed int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), total)
	defer cancel()
	beat(ctx, interval, probe, func() { alive++ }, func(error) { failed++ })
	return alive, failed
}

func TestTheWatchdogIsToldOnlyWhenALookupIsAnswered(t *testing.T) {
	const interval = 20 * time.Second
	for _, c := range []struct {
		name          string
		probe         func(context.Context) error
		alive, failed int
	}{
		{"answered", func(context.Context) error { return nil }, 3, 0},
		{"refused", func(context.Context) error { return errors.New("refused") }, 0, 3},
		{"no answer", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, 0, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				alive, failed := beats(t, interval, 3*interval-time.Second, c.probe)
				if alive != c.alive || failed != c.failed {
					t.Errorf("%d alive, %d failed; want %d and %d", alive, failed, c.alive, c.failed)
				}
			})
		})
	}
}

func TestAProbeThatHangsIsReportedAndNotStartedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var started atomic.Int32
		release := make(chan struct{})
		alive, failed := beats(t, 20*time.Second, 2*time.Minute-time.Second, func(context.Context) error {
			started.Add(1)
			<-release
			return nil
		})
		if started.Load() != 1 || alive != 0 || failed != 5 {
			t.Errorf("%d probes, %d alive, %d failed; want 1, 0 and 5", started.Load(), alive, failed)
		}
		close(release)
	})
}

func TestTheWatchdogIsToldAgainAfterAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		alive, failed := beats(t, 20*time.Second, time.Minute-time.Second, func(context.Context) error {
			if n++; n == 1 {
				return errors.New("not yet")
			}
			return nil
		})
		if alive != 2 || failed != 1 {
			t.Errorf("%d alive, %d failed; want 2 and 1", alive, failed)
		}
	})
}
