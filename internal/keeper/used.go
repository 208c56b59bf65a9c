package keeper

import (
	"hash/maphash"
	"sync/atomic"
	"time"
)

// A usedMap remembers which domains were asked for lately: one bit for a hash
// of the domain, in two bitmaps that are rotated, so that a use is remembered
// for one to two periods. Two domains may share a bit; the worst that comes of
// it is a fetch that was not needed.
type usedMap struct {
	maps    [2]*[usedBits / 64]atomic.Uint64
	current atomic.Uint32
	rotated atomic.Int64 // Unix seconds
}

func newUsedMap() *usedMap {
	u := &usedMap{}
	u.maps[0], u.maps[1] = new([usedBits / 64]atomic.Uint64), new([usedBits / 64]atomic.Uint64)
	u.rotated.Store(time.Now().Unix())
	return u
}

// mark notes a use. It writes only where the bit is not set yet.
func (u *usedMap) mark(hash uint64) {
	word, bit := &u.maps[u.current.Load()][hash>>8%(usedBits/64)], uint64(1)<<(hash>>40%64)
	if word.Load()&bit == 0 {
		word.Or(bit)
	}
}

// lately says whether a use was noted in this period or the one before.
func (u *usedMap) lately(hash uint64) bool {
	i, bit := hash>>8%(usedBits/64), uint64(1)<<(hash>>40%64)
	return (u.maps[0][i].Load()|u.maps[1][i].Load())&bit != 0
}

// InUse says whether a policy may be in use although its record does not say
// so yet: a use comes into it a day later. For a day after a start nothing is
// known of late uses, and all may be.
func (k *Keeper) InUse(domain []byte) bool {
	return time.Since(k.begun) < usedPeriod || k.used.lately(maphash.Bytes(k.seed, domain))
}

// rotate begins a new period if the last one is over.
func (u *usedMap) rotate(now time.Time) {
	since := now.Unix() - u.rotated.Load()
	if since >= 0 && since < int64(usedPeriod/time.Second) {
		return
	}
	u.rotated.Store(now.Unix())
	next := 1 - u.current.Load()
	for i := range u.maps[next] {
		if u.maps[next][i].Load() != 0 {
			u.maps[next][i].Store(0)
		}
	}
	u.current.Store(next)
}

// A recency remembers when domains' TXT records were last wanted. A domain has
// recheckWays slots to stand in, which it shares with those whose hashes lead
// there too.
type recency struct {
	slots [recheckSlots]atomic.Uint64 // 32 bits of hash, 32 bits of Unix seconds
}

func newRecency() *recency { return new(recency) }

// claim says whether the last time was at least so many seconds ago, and if
// so, makes it now. Of several at once, one gets it. A domain that is not known
// takes the place of the one that is longest ago, but only once that is out of
// date: domains in use that share slots would otherwise make each other be
// looked at with every lookup. Until there is room, it has to wait.
func (r *recency) claim(hash uint64, now, seconds int64) bool {
	at := hash >> 8 % recheckSlots / recheckWays * recheckWays
	tag := hash >> 32
	var place *atomic.Uint64
	var held uint64
	oldest := seconds - 1
	for i := range uint64(recheckWays) {
		slot := &r.slots[at+i]
		old := slot.Load()
		since := now - int64(old&0xffffffff)
		if since < 0 {
			since = seconds // the clock was set back
		}
		if old>>32 == tag {
			return since >= seconds && slot.CompareAndSwap(old, tag<<32|uint64(now)&0xffffffff)
		}
		if since > oldest {
			place, held, oldest = slot, old, since
		}
	}
	return place != nil && place.CompareAndSwap(held, tag<<32|uint64(now)&0xffffffff)
}
