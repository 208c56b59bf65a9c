package keeper

import (
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
)

// This file: the way of a record to the disk and into memory.

// store brings a record to the disk, or as near as it can, and waits for it.
// The result is closed when it is on disk.
func (k *Keeper) store(r *cache.Record) <-chan struct{} {
	p := &pending{domain: r.Domain, record: r, entry: k.entryOf(r)}
	return k.stored(p, k.writer.write(p))
}

// storeSoon has a record written and does not wait. Unless it is urgent it
// shares a later commit. The result is closed when it is on disk.
func (k *Keeper) storeSoon(r *cache.Record, urgent bool) <-chan struct{} {
	p := &pending{domain: r.Domain, record: r, entry: k.entryOf(r), lazy: !urgent}
	return k.stored(p, k.writer.enqueue(p))
}

// stored deals with a record for which neither disk nor queue has room: it is
// answered from the table while it lives there.
func (k *Keeper) stored(p *pending, err error) <-chan struct{} {
	if err == nil {
		return p.done
	}
	k.counters.notKept.Add(1)
	k.skipped.note(p.domain, time.Now()) // in the store it is due as before
	k.inMemoryOnly(p.record)
	if k.hasRoom(k.ownLines) {
		k.o.Log.Error("a new MTA-STS policy could not be written", "domain", p.domain, "err", err,
			"next", "it is fetched again when it is asked for")
	}
	return nil
}

func (k *Keeper) inMemoryOnly(r *cache.Record) {
	e := k.entryOf(r)
	k.negative.drop(e.hash)
	k.table.keep(e)
}

// published brings the memory up to date with a batch that is on disk.
func (k *Keeper) published(batch []*pending, result cache.WriteResult) {
	for _, p := range batch {
		k.publish(p)
		if p.record != nil {
			k.lineOf(p.record.Lane).expect(p.record.Due)
		}
	}
	for _, domain := range result.Evicted {
		k.table.replace(k.hash(domain), domain, nil)
	}
	if len(result.Refused) == 0 {
		return
	}
	refused := make(map[string]bool, len(result.Refused))
	for _, domain := range result.Refused {
		refused[domain] = true
	}
	for _, p := range batch {
		if p.record != nil && refused[p.domain] {
			k.counters.refused.Add(1)
			k.writer.whileNewest(p, func() { k.inMemoryOnly(p.record) })
		}
	}
	if k.hasRoom(k.ownLines) {
		k.o.Log.Warn("the cache is full of policies in use; new ones are kept in memory only",
			"refused", len(result.Refused), "next", "raise [cache] max_size")
	}
}

// lineOf returns the line that works off a lane.
func (k *Keeper) lineOf(lane cache.Lane) *line {
	if lane >= laneFetchUsed {
		return k.fetch
	}
	return k.check
}

// publish replaces what memory has of a domain, unless that is newer: an older
// policy may come to the disk while a newer one is answered that still waits.
func (k *Keeper) publish(p *pending) {
	hash := k.hash(p.domain)
	var e *Entry
	if p.record != nil {
		e = k.entryOf(p.record)
	}
	k.writer.whileNewest(p, func() {
		k.negative.drop(hash)
		k.table.replace(hash, p.domain, e)
	})
}
