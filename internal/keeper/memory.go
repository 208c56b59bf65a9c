package keeper

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// A bounded is an LRU cache by domain that is bounded in bytes. Its keys are
// seeded hashes, at which nobody outside can aim.
type bounded[V interface {
	name() string
	weight() int64
}] struct {
	mu     sync.Mutex
	values *simplelru.LRU[uint64, V]
	bytes  int64
	most   int64
}

func (b *bounded[V]) init(most int64) {
	b.most = most
	b.values = must(simplelru.NewLRU(math.MaxInt, func(_ uint64, v V) { b.bytes -= v.weight() }))
}

// must returns v. Only an invalid constant size could cause an error.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newRecent() *lru.Cache[uint64, time.Time] {
	return must(lru.New[uint64, time.Time](recentDomains))
}

// get returns the value of a domain, or the zero value.
func (b *bounded[V]) get(hash uint64, domain []byte) (found V) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if v, ok := b.values.Get(hash); ok && v.name() == string(domain) {
		return v
	}
	return found
}

func (b *bounded[V]) put(hash uint64, v V) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.add(hash, v)
}

func (b *bounded[V]) add(hash uint64, v V) {
	b.values.Remove(hash)
	b.values.Add(hash, v)
	b.bytes += v.weight()
	b.trim()
}

func (b *bounded[V]) trim() {
	for b.bytes > b.most {
		b.values.RemoveOldest()
	}
}

func (b *bounded[V]) drop(hash uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.values.Remove(hash)
}

func (b *bounded[V]) size() (entries int, bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.values.Len(), b.bytes
}

// The memory cache holds policies in use, with their rendered replies, before
// the store. A domain joins it with its second lookup.
type memory struct {
	bounded[*Entry]
	changes    atomic.Uint64 // replacements and removals so far
	unstored   atomic.Bool   // there may be entries that are not on disk
	doorkeeper [doorkeeperSlots]atomic.Uint32
}

// secondUse says whether a domain was asked for recently.
func (m *memory) secondUse(hash uint64) bool {
	mark := uint32(hash>>32) | 1
	return m.doorkeeper[hash%doorkeeperSlots].Swap(mark) == mark
}

// putStored adds an entry read from the store. changes was read before the store:
// if it has grown since then, the entry may be old and is not added.
func (m *memory) putStored(e *Entry, changes uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.changes.Load() == changes {
		m.add(e.hash, e)
	}
}

// replace replaces the older entry of the domain. Without one, it adds the entry
// only if it is not on disk.
func (m *memory) replace(e *Entry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.changes.Add(1)
	if e.unstored != "" {
		m.unstored.Store(true)
	}
	if e.unstored != "" || m.values.Contains(e.hash) {
		m.add(e.hash, e)
	}
}

// unstoredAfter returns the entries that are not on disk, of the domains after one.
func (m *memory) unstoredAfter(after string) (found []*Entry) {
	if !m.unstored.Load() {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	more := false
	for _, e := range m.values.Values() {
		more = more || e.unstored != ""
		if e.unstored != "" && e.domain > after {
			found = append(found, e)
		}
	}
	m.unstored.Store(more)
	return found
}

// forget removes the entry of a domain.
func (m *memory) forget(hash uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.changes.Add(1)
	m.values.Remove(hash)
}

// grow counts a reply that is kept on an entry.
func (m *memory) grow(e *Entry, bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e.size += bytes
	if held, ok := m.values.Peek(e.hash); ok && held == e {
		m.bytes += bytes
		m.trim()
	}
}
