package keeper

import (
	"context"
	"time"
)

// A deletion says when long expired policies are to be deleted. Expired ones
// are kept for a clock that jumps ahead and is put right again; so after a jump
// nothing is deleted for a day.
type deletion struct {
	last time.Time // when due was last asked, by the clock that no one sets
	wall time.Time // and by the one on the wall
	next time.Time // nothing is deleted before
}

func newDeletion(now time.Time) *deletion {
	return &deletion{last: now, wall: now.Round(0), next: now.Add(purgeEvery)}
}

// due says whether to delete now. It is to be asked every few minutes. now
// goes with the time that passes, wall with the clock on the wall.
func (d *deletion) due(now, wall time.Time) bool {
	ahead := wall.Sub(d.wall) - now.Sub(d.last)
	d.last, d.wall = now, wall
	if ahead > ClockSlack {
		d.next = now.Add(purgeAfterJump)
	}
	if now.Before(d.next) {
		return false
	}
	d.next = now.Add(purgeEvery)
	return true
}

// purge deletes what has been expired for a week, a batch at a time. Where
// nothing has been written for as long before the start, the clock may have been
// ahead from the beginning: then nothing is deleted for a day.
func (k *Keeper) purge(ctx context.Context, now time.Time) {
	if k.gap > keepExpired && now.Sub(k.begun) < purgeAfterJump {
		return
	}
	for ctx.Err() == nil {
		gone, err := k.o.Store.Purge(now.Add(-keepExpired), purgeBatch)
		if err != nil {
			k.counters.storeErrors.Add(1)
			k.o.Log.Warn("cannot delete expired policies from the cache", "err", err, "next", "tried again in "+purgeEvery.String())
			return
		}
		for _, domain := range gone {
			k.publish(&pending{domain: domain})
		}
		if len(gone) < purgeBatch {
			return
		}
	}
}
