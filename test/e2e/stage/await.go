package stage

import (
	"context"
	"time"
)

// pollEvery is how often Await looks.
const pollEvery = 10 * time.Millisecond

// Await returns nil as soon as cond holds, and an error when ctx ends before.
// It is for what happens in other processes, where there is nothing to wait on
// but its traces.
func Await(ctx context.Context, cond func() bool) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}
