package keeper

import (
	"context"
	"sync"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"golang.org/x/time/rate"
)

// A source is a part of the due index from which the refresher works.
type source struct {
	lane    cache.Lane
	overdue time.Duration // only records that have been due for so long
	slots   chan struct{} // one token per worker that the source may use
	read    []cache.Due   // read from the store and not yet taken
	late    time.Duration // how overdue the most overdue record is
}

// turns are the orders in which the refresher asks the sources normal, overdue and
// troubled, so that a flood in one source leaves the others their share. Overdue is
// part of the normal lane: short-lived policies always have the least life left,
// and would otherwise keep long-overdue ones waiting for ever.
var turns = [...][3]int{{0, 1, 2}, {1, 0, 2}, {0, 1, 2}, {2, 1, 0}}

// refresh fetches due policies until ctx ends, and returns when the workers have
// stopped. The troubled lane has a quarter of the workers.
func (k *Keeper) refresh(ctx context.Context) {
	n := k.o.RefreshConcurrency
	slots := make(chan struct{}, n)
	sources := [...]*source{
		{lane: cache.LaneNormal, slots: slots},
		{lane: cache.LaneNormal, slots: slots, overdue: overdueBy},
		{lane: cache.LaneTroubled, slots: make(chan struct{}, max(1, n/4))},
	}
	visits := rate.NewLimiter(max(visitsPerSecond, rate.Limit(k.o.FetchRate)), 1)
	var workers sync.WaitGroup
	defer workers.Wait()
	for turn := 0; ctx.Err() == nil; turn++ {
		var domain string
		var from *source
		pause := idlePoll
		for _, i := range turns[turn%len(turns)] {
			if from = sources[i]; len(slots) == n || len(from.slots) == cap(from.slots) {
				continue
			}
			var next time.Time
			if domain, next = k.nextDue(from); domain != "" {
				break
			}
			if wait := next.Sub(k.o.Now()); wait > 0 {
				pause = min(pause, wait)
			}
		}
		k.late.Store(int64(max(sources[0].late, sources[1].late) / time.Second))
		if domain == "" {
			select {
			case <-ctx.Done():
			case <-k.wakeRefresher:
			case <-time.After(pause):
			}
			continue
		}
		slots <- struct{}{}
		if from.slots != slots {
			from.slots <- struct{}{}
		}
		workers.Go(func() {
			k.fetchDue(domain)
			if from.slots != slots {
				<-from.slots
			}
			<-slots
			k.nudge()
		})
		_ = visits.Wait(ctx)
	}
}

// nudge wakes the refresher.
func (k *Keeper) nudge() {
	select {
	case k.wakeRefresher <- struct{}{}:
	default:
	}
}

// nextDue returns the next domain of a source, with the least life left first; or
// when there may be one.
func (k *Keeper) nextDue(s *source) (domain string, next time.Time) {
	now, more := k.o.Now(), false
	for limit := dueBatch; ; limit *= 2 {
		for len(s.read) > 0 {
			d := s.read[0]
			if s.read = s.read[1:]; !k.wasVisited(d.Domain, now) {
				k.fetched.Add(k.hash(d.Domain), now)
				return d.Domain, time.Time{}
			}
		}
		if s.late = 0; limit > cache.MaxPage {
			if more { // behind those that were fetched and wait for the disk
				next = now.Add(commitEvery)
			}
			return "", next
		}
		var err error
		if s.read, next, err = k.o.Store.Due(s.lane, now.Add(-s.overdue), limit); err != nil {
			k.counters.add(&k.counters.StoreErrors, 1)
		}
		if more = len(s.read) == limit; !more {
			limit = cache.MaxPage // do not ask again
		}
		for _, d := range s.read {
			if !k.wasVisited(d.Domain, now) {
				s.late = max(s.late, now.Sub(d.Due))
			}
		}
	}
}

// wasVisited says whether the refresher tried a domain less than five minutes ago.
// Its record stays due in the store until the result is written.
func (k *Keeper) wasVisited(domain string, now time.Time) bool {
	last, ok := k.fetched.Get(k.hash(domain))
	return ok && now.Sub(last).Abs() < firstBackoff
}
