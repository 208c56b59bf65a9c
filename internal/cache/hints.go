package cache

import (
	"hash/maphash"
	"math/bits"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// hintsPerBucket is how many hints share a bucket, which is a cache line.
	hintsPerBucket = 8

	// maxHints bounds the hints: 12 MiB of them, enough for a million policies.
	// Where there are more policies, those looked up last have one.
	maxHints = 3 << 19
	minHints = 64 // bounds from below how often a growing cache gets a new table

	// maxHinted is the size in bytes of the largest value that a hint leads to:
	// what is found there is copied.
	maxHinted = 4 << 10

	// hintsOffHeap is from how many bytes on a table is not the garbage
	// collector's: it would let the heap grow by as much again.
	hintsOffHeap = 1 << 20

	placeBits = 40 // of a hint: where in the file; the rest is of the domain's hash
)

// hints remember where in the file lookups have found records. A descent
// through the pages of a large file waits for memory at each of them; a hint
// leads to the record at once.
//
// It cannot make a lookup find anything but the current record:
//
//   - What is there is copied, and counts if the copy is a whole value of the
//     domain, by its checksum, and the hint is there still when it has been
//     made, and the state the current one. If not, the lookup descends.
//   - A domain's hint is dropped before a transaction that changes the domain
//     begins, since that may write on the very page, if it is free by now; and
//     again in the moment in which its outcome becomes the current state.
//   - A place is learned from the state that is the current one in that moment,
//     and a transaction writes on none of that state's pages.
//
// So when the copy was made the record had not changed since its place was
// learned, and nobody had begun to write what is to replace it: a copy of it is
// the right one wherever it stands, be it on a page that is free.
//
// A state hands its hints on to the next one only if no transaction lies
// between them but the one of which it is known what it has changed.
type hints struct {
	buckets []hintBucket
	seed    maphash.Seed

	mu   sync.Mutex // held to change buckets, and to replace the current state
	turn uint       // the place in a full bucket that is taken next
}

type hintBucket [hintsPerBucket]atomic.Uint64

// newHints returns hints for so many policies.
func newHints(policies int64) *hints {
	n := min(policies, maxHints) // a count may be damaged
	n = (min(max(n+n/2, minHints), maxHints) + hintsPerBucket - 1) / hintsPerBucket
	h := &hints{seed: maphash.MakeSeed()}
	if n*int64(unsafe.Sizeof(hintBucket{})) < hintsOffHeap || !h.mapBuckets(int(n)) {
		h.buckets = make([]hintBucket, n)
	}
	return h
}

// mapBuckets has the kernel give the memory for n buckets, in huge pages if it
// can: a lookup jumps into the middle, and should not wait for a page table as
// well. It is given back when nobody has h any more.
func (h *hints) mapBuckets(n int) bool {
	memory, err := unix.Mmap(-1, 0, n*int(unsafe.Sizeof(hintBucket{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return false
	}
	_ = unix.Madvise(memory, unix.MADV_HUGEPAGE) // without, it is slower
	h.buckets = unsafe.Slice((*hintBucket)(unsafe.Pointer(unsafe.SliceData(memory))), n)
	runtime.AddCleanup(h, func(memory []byte) { _ = unix.Munmap(memory) }, memory)
	return true
}

// fits says whether there are hints enough for so many policies.
func (h *hints) fits(policies int64) bool {
	n := int64(len(h.buckets)) * hintsPerBucket
	return policies <= n || n >= maxHints
}

// of returns the domain's bucket, and the part of a hint that says whose it is.
func (h *hints) of(domain []byte) (*hintBucket, uint64) {
	hash := maphash.Bytes(h.seed, domain)
	i, _ := bits.Mul64(hash, uint64(len(h.buckets)))
	return &h.buckets[i], hash << placeBits
}

const placeMask = 1<<placeBits - 1

// slot returns where the domain's hint is, and the hint; nil if there is none.
// It may be another's.
func (h *hints) slot(domain []byte) (slot *atomic.Uint64, hint uint64) {
	bucket, whose := h.of(domain)
	for i := range bucket {
		if hint := bucket[i].Load(); hint&^placeMask == whose && hint != 0 {
			return &bucket[i], hint
		}
	}
	return nil, 0
}

// put is for the holder of mu.
func (h *hints) put(domain []byte, place uint64) {
	if place == 0 || place > placeMask {
		return
	}
	defer runtime.KeepAlive(h)
	bucket, whose := h.of(domain)
	free := -1
	for i := range bucket {
		hint := bucket[i].Load()
		if hint == 0 {
			free = i
		} else if hint&^placeMask == whose {
			free = i
			break
		}
	}
	if free < 0 {
		h.turn++
		free = int(h.turn % hintsPerBucket)
	}
	bucket[free].Store(whose | place)
}

// drop is for the holder of mu.
func (h *hints) drop(domain []byte) {
	defer runtime.KeepAlive(h)
	if slot, _ := h.slot(domain); slot != nil {
		slot.Store(0)
	}
}

// recall reads the value of domain from where it was found before, into buffer,
// which it may replace. It is nil if there is no telling.
func (s *Store) recall(sn *snapshot, domain, buffer []byte) (v Value, _ []byte) {
	if sn.hints == nil {
		return nil, buffer
	}
	defer runtime.KeepAlive(sn.hints)
	slot, hint := sn.hints.slot(domain)
	place, end := hint&placeMask, sn.policy.limit*sn.policy.size
	if slot == nil || place+headerSize > end {
		return nil, buffer
	}
	raw := sn.policy.data[place:end]
	length := lengthField(raw)
	if length < headerSize || length > min(maxHinted, uint64(len(raw))) {
		return nil, buffer
	}
	// The page may be free, and be written on while it is read: what is judged
	// is the copy.
	buffer = append(buffer[:0], raw[:length]...)
	v, err := parseAt(domain, buffer)
	if err != nil {
		return nil, buffer
	}
	// A transaction that changes the domain may have begun since the hint was
	// found, and have written on the page what is not stored yet: then the hint is
	// gone, or this state is not the current one.
	if slot.Load() != hint || s.snap.Load() != sn {
		return nil, buffer
	}
	return v, buffer
}

// learn notes where the value of domain is in sn, unless sn is no longer the
// current state, or another learns something. A lookup does not wait for that.
func (s *Store) learn(sn *snapshot, domain []byte, place uint64) {
	h := sn.hints
	if h == nil || !h.mu.TryLock() {
		return
	}
	defer h.mu.Unlock()
	if s.snap.Load() == sn {
		h.put(domain, place)
	}
}

// dropHints drops the hints of what the plan changes, before it is carried out.
func (p *plan) dropHints() {
	h := p.sn.hints
	h.mu.Lock()
	defer h.mu.Unlock()
	p.dropHintsLocked(h)
}

func (p *plan) dropHintsLocked(h *hints) {
	for _, changes := range [][]put{p.deletes, p.puts} {
		for _, c := range changes {
			h.drop(c.domain)
		}
	}
}

// publish makes sn the current state, which the plan led to if it was committed,
// and returns the one before. If it was not, a transaction that lies between them
// is another's, and what that has changed is not known.
func (s *Store) publish(sn *snapshot, p *plan, committed bool) (old *snapshot) {
	h := p.sn.hints
	if txs := sn.txID - p.sn.txID; txs < 0 || txs > 1 || txs == 1 && !committed || !h.fits(sn.policies()) {
		sn.hints = newHints(sn.policies())
		return s.snap.Swap(sn)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	p.dropHintsLocked(h)
	sn.hints = h
	return s.snap.Swap(sn)
}
