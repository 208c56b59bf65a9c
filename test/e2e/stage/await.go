package stage

import (
	"context"
	"time"
)

// pollEvery is Await's interval.
const pollEvery = 10 * time.Millisecond

// Await returns nil as soon as cond holds, or an error when ctx ends first. It
// polls, for events in other processes.
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
