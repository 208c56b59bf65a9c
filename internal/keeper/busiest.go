package keeper

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// sampleEvery is the least time between two lookups that are counted for
	// Busiest: where there are fewer, all are.
	sampleEvery = time.Millisecond
	// maxBusy is how many domains are counted at once. One of which more than
	// that part of the sampled lookups are is among them.
	maxBusy = 256
	// busyHalfLife is after how long a lookup counts half.
	busyHalfLife = 12 * time.Hour
	// leastBusy is the count at which a domain is forgotten.
	leastBusy = 0.1
)

// A Busy domain is one of those looked up most.
type Busy struct {
	Domain string
	Share  float64 // of the lookups sampled, at least
}

// busiest counts which domains are looked up, from a sample: a lookup that is
// not of it costs a comparison and writes nothing that others read. The count
// is a space-saving one (Metwally, Agrawal, El Abbadi: Efficient Computation of
// Frequent and Top-k Elements in Data Streams): a new domain takes the place of
// the least one and inherits its count as its possible error, so that a flood
// of names seen once moves none that is busy.
type busiest struct {
	next atomic.Int64 // Unix nanoseconds: the next lookup from then on is counted

	mu      sync.Mutex
	domains []busy         // at most maxBusy
	index   map[string]int // of a domain in domains
	total   float64
	halved  int64 // Unix nanoseconds
}

type busy struct {
	domain       string
	count, error float64
}

// see counts a lookup, or passes it over.
func (b *busiest) see(domain []byte, now time.Time) {
	at := now.UnixNano()
	if wait := b.next.Load() - at; wait <= 0 || wait > int64(sampleEvery) { // or the clock was set back
		b.count(domain, at)
	}
}

func (b *busiest) count(domain []byte, at int64) {
	if !b.mu.TryLock() {
		return // another is being counted
	}
	defer b.mu.Unlock()
	b.next.Store(at + int64(sampleEvery))
	b.age(at)
	b.total++
	if i, known := b.index[string(domain)]; known {
		b.domains[i].count++
		return
	}
	if b.index == nil {
		b.index = make(map[string]int)
	}
	d := busy{domain: string(domain), count: 1}
	if len(b.domains) < maxBusy {
		b.index[d.domain] = len(b.domains)
		b.domains = append(b.domains, d)
		return
	}
	i := b.least()
	least := &b.domains[i]
	delete(b.index, least.domain)
	d.count, d.error = least.count+1, least.count
	b.index[d.domain], *least = i, d
}

// least returns the index of the domain with the least count.
func (b *busiest) least() int {
	least, count := 0, b.domains[0].count
	for i := range b.domains {
		if c := b.domains[i].count; c < count {
			least, count = i, c
		}
	}
	return least
}

// age halves the counts when a half-life has passed, or several. A clock that
// was set back begins the time anew.
func (b *busiest) age(at int64) {
	if b.halved == 0 || at < b.halved {
		b.halved = at
	}
	for ; at-b.halved >= int64(busyHalfLife) && len(b.domains) > 0; b.halved += int64(busyHalfLife) {
		b.total /= 2
		for i := range b.domains {
			b.domains[i].count, b.domains[i].error = b.domains[i].count/2, b.domains[i].error/2
		}
		b.domains = slices.DeleteFunc(b.domains, func(d busy) bool { return d.count < leastBusy })
		clear(b.index)
		for i := range b.domains {
			b.index[b.domains[i].domain] = i
		}
	}
	if len(b.domains) == 0 {
		b.total, b.halved = 0, at
	}
}

// Busiest returns up to so many domains, those looked up most first, by a
// sample of a thousand lookups a second at most, in which a lookup weighs half
// twelve hours later.
func (k *Keeper) Busiest(most int) []Busy {
	b := &k.busiest
	b.mu.Lock()
	defer b.mu.Unlock()
	list := make([]Busy, 0, len(b.domains))
	for _, d := range b.domains {
		if sure := d.count - d.error; sure > 0 {
			list = append(list, Busy{Domain: d.domain, Share: sure / b.total})
		}
	}
	slices.SortFunc(list, func(x, y Busy) int {
		return cmp.Or(cmp.Compare(y.Share, x.Share), cmp.Compare(x.Domain, y.Domain))
	})
	return list[:min(len(list), most)]
}
