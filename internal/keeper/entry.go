package keeper

import (
	"sync/atomic"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// An Entry is a policy in memory. It never changes but for the replies kept
// on it: a newer policy is a new Entry, so that replacing the entry is all the
// invalidation there is.
type Entry struct {
	Domain  string
	Mode    policy.Mode
	Fetched int64  // Unix seconds
	Expires int64  // Unix seconds
	Checked int64  // Unix seconds; when the TXT record was last seen, as far as the store knows
	Ready   []byte // what Options.Prepare made of the policy

	// For a policy that is in memory only; an entry made by a lookup has neither.
	id      string // the TXT record's
	fetchAt int64  // Unix seconds; when it is to be fetched again

	hash    uint64
	touched atomic.Bool  // asked for since the table last passed it over
	size    atomic.Int64 // bytes, kept replies included; above zero while it is in a table
	home    *shard       // where it counts
	replies [MaxSlots]atomic.Pointer[[]byte]
}

// Reply returns the reply kept in a slot, nil if there is none. It must not
// be changed.
func (e *Entry) Reply(slot int) []byte {
	if p := e.replies[slot].Load(); p != nil {
		return *p
	}
	return nil
}

// KeepReply keeps a rendered reply in a slot for as long as the entry lives.
// The caller must not change it afterwards.
func (e *Entry) KeepReply(slot int, reply []byte) {
	if !e.replies[slot].CompareAndSwap(nil, &reply) {
		return
	}
	n := int64(len(reply)) + replyOverhead
	for {
		size := e.size.Load()
		if size <= 0 {
			return // in no table, or not any more: it counts nowhere
		}
		if e.size.CompareAndSwap(size, size+n) {
			if e.home.bytes.Add(n) > e.home.limit {
				e.home.trim()
			}
			return
		}
	}
}

// sizeGone is the size of an entry that has left its table.
const sizeGone = -1

// liveUntil is when the policy stops to count: when it expires, but not in the
// first minute after its fetch, so that max_age 0 costs one fetch a minute and
// not one a message.
func liveUntil(fetched, expires int64) int64 {
	return max(expires, fetched+int64(minLife.Seconds()))
}

// isLive says whether a record's policy counts at now.
func isLive(r *cache.Record, now time.Time) bool {
	return now.Unix() < liveUntil(r.Fetched.Unix(), r.Expires.Unix())
}

// A Held is a lookup's view of a policy. It may be used again, by one lookup
// at a time.
type Held struct {
	Mode    policy.Mode
	Fetched int64  // Unix seconds
	Expires int64  // Unix seconds
	Ready   []byte // valid until the Held is used again
	Entry   *Entry // where replies may be kept; nil if the policy is not in memory

	// Since is when the lookup began, if it was not answered from memory;
	// otherwise it is left as it is, since the clock costs time.
	Since time.Time

	hit cache.Hit
}

func (h *Held) fromEntry(e *Entry) {
	h.Mode, h.Fetched, h.Expires, h.Ready, h.Entry = e.Mode, e.Fetched, e.Expires, e.Ready, e
}

func (h *Held) fromHit() {
	h.Mode, h.Fetched, h.Expires, h.Ready, h.Entry = h.hit.Mode, h.hit.Fetched, h.hit.Expires, h.hit.Ready, nil
}
