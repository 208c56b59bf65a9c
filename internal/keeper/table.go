package keeper

import (
	"container/list"
	"sync"
	"sync/atomic"
)

// A table holds entries before the store, bounded in bytes. The entry that
// goes first is the oldest that was not asked for since it was last passed
// over (a second-chance queue).
type table struct {
	shards [tableShards]shard
	door   doorkeeper
}

type shard struct {
	mu      sync.RWMutex
	entries map[string]*list.Element
	queue   list.List    // of *Entry, the next to go in front
	bytes   atomic.Int64 // kept replies included
	limit   int64        // of bytes
	changes uint64       // replacements and removals so far
}

func newTable(limit int64) *table {
	t := &table{}
	for i := range t.shards {
		t.shards[i].entries = make(map[string]*list.Element)
		t.shards[i].limit = limit / tableShards
	}
	return t
}

func (t *table) shard(hash uint64) *shard { return &t.shards[hash%tableShards] }

// get returns the entry of a domain, nil if there is none, and the generation
// of what it has looked at. That is to be read before the store is: an entry made
// from what the store said then is refused by put if anything has changed in
// between.
func (t *table) get(hash uint64, domain []byte) (e *Entry, generation uint64) {
	s := t.shard(hash)
	s.mu.RLock()
	el, generation := s.entries[string(domain)], s.changes
	s.mu.RUnlock()
	if el == nil {
		return nil, generation
	}
	e = el.Value.(*Entry)
	if !e.touched.Load() {
		e.touched.Store(true)
	}
	return e, generation
}

// secondUse says whether a domain was asked for before, not long ago.
func (t *table) secondUse(hash uint64) bool { return t.door.seen(hash) }

// put adds an entry that nobody has seen yet, unless the table has one for
// the domain or the generation has passed.
func (t *table) put(e *Entry, generation uint64) {
	s := t.shard(e.hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changes == generation && s.entries[e.Domain] == nil {
		s.add(e)
	}
}

// keep adds an entry that nobody has seen yet, in the place of an older one.
func (t *table) keep(e *Entry) {
	s := t.shard(e.hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changes++
	s.remove(s.entries[e.Domain])
	s.add(e)
}

// replace puts an entry that nobody has seen yet in the place of an older one
// of its domain, if there is one. A nil entry just removes it.
func (t *table) replace(hash uint64, domain string, e *Entry) {
	s := t.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changes++
	old := s.entries[domain]
	if old == nil {
		return
	}
	s.remove(old)
	if e != nil {
		s.add(e)
	}
}

// size returns how many entries the table holds, and their bytes.
func (t *table) size() (entries int, bytes int64) {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.RLock()
		entries += len(s.entries)
		s.mu.RUnlock()
		bytes += s.bytes.Load()
	}
	return entries, bytes
}

func (s *shard) add(e *Entry) {
	size := int64(entryOverhead + len(e.Domain) + len(e.Ready))
	if size > s.limit {
		return
	}
	for s.bytes.Load()+size > s.limit && s.queue.Len() > 0 {
		s.makeRoom()
	}
	e.home = s
	e.size.Store(size)
	s.bytes.Add(size)
	s.entries[e.Domain] = s.queue.PushBack(e)
}

// trim makes room for a reply that was kept on an entry of the shard.
func (s *shard) trim() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.bytes.Load() > s.limit && s.queue.Len() > 0 {
		s.makeRoom()
	}
}

func (s *shard) remove(el *list.Element) {
	if el == nil {
		return
	}
	e := s.queue.Remove(el).(*Entry)
	delete(s.entries, e.Domain)
	s.bytes.Add(-e.size.Swap(sizeGone))
}

// makeRoom removes one entry. It ends, since each step clears a mark, and
// marks are set by lookups that the lock keeps out.
func (s *shard) makeRoom() {
	for range s.queue.Len() {
		el := s.queue.Front()
		if !el.Value.(*Entry).touched.Swap(false) {
			s.remove(el)
			return
		}
		s.queue.MoveToBack(el)
	}
	s.remove(s.queue.Front())
}

// A doorkeeper remembers first uses, approximately, and forgets them all
// after a while.
type doorkeeper struct {
	bits [doorkeeperUses * doorkeeperBits / 64]atomic.Uint64
	uses atomic.Int64
}

// seen notes a use and says whether there was one before.
func (d *doorkeeper) seen(hash uint64) bool {
	hash >>= 8 // the low bits choose the shard
	word, bit := &d.bits[(hash/64)%uint64(len(d.bits))], uint64(1)<<(hash%64)
	if word.Load()&bit != 0 {
		return true
	}
	word.Or(bit)
	if d.uses.Add(1) >= doorkeeperUses {
		d.uses.Store(0)
		for i := range d.bits {
			d.bits[i].Store(0)
		}
	}
	return false
}
