package keeper

import (
	"bytes"
	"cmp"
	"sync/atomic"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// An Entry is a policy in memory. A newer policy is a new Entry, so that the
// rendered replies kept on it need no other invalidation.
type Entry struct {
	domain        string
	hash          uint64
	home          *memory
	id            string       // of the TXT record; empty in an entry made from the store
	hit           cache.Hit    // but for Used and Checked
	used, checked atomic.Int64 // Unix seconds; the latest known
	unstored      string       // why it is not on disk; empty: it is

	size    int64 // bytes, kept replies included; guarded by home.mu
	replies [MaxSlots]atomic.Pointer[[]byte]
}

// newEntry makes an entry, which takes over the bytes of h.
func (k *Keeper) newEntry(domain string, h cache.Hit) *Entry {
	e := &Entry{domain: domain, hash: k.hash(domain), home: &k.memory, hit: h,
		size: overheadBytes + int64(len(domain)+len(h.Match)+len(h.Text))}
	e.used.Store(h.Used)
	e.checked.Store(h.Checked)
	return e
}

func (k *Keeper) entryOf(r *cache.Record) *Entry {
	e := k.newEntry(r.Domain, cache.Hit{Mode: r.Mode, Fetched: r.Fetched.Unix(), Expires: r.Expires.Unix(),
		Used: r.Used.Unix(), Checked: r.Checked.Unix(), Match: r.Match, Text: r.Text})
	e.id = r.ID
	return e
}

// record returns what is known of a policy that only memory has. Once it is
// stored, it is due for a fetch.
func (e *Entry) record() cache.Record {
	r := cache.Record{Domain: e.domain, ID: e.id, Mode: e.hit.Mode, Text: e.hit.Text, Match: e.hit.Match,
		Fetched: time.Unix(e.hit.Fetched, 0), Expires: time.Unix(e.hit.Expires, 0),
		Used: time.Unix(e.hit.Used, 0), Checked: time.Unix(e.hit.Checked, 0), NotOnDisk: cmp.Or(e.unstored, notInFile)}
	fetchAt(&r, r.Fetched)
	return r
}

// entryOfHit makes an entry of what was read from the store.
func (k *Keeper) entryOfHit(domain []byte, h cache.Hit) *Entry {
	h.Match, h.Text = bytes.Clone(h.Match), bytes.Clone(h.Text)
	return k.newEntry(string(domain), h)
}

func (e *Entry) name() string  { return e.domain }
func (e *Entry) weight() int64 { return e.size }

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
	if e.replies[slot].CompareAndSwap(nil, &reply) && e.home != nil {
		e.home.grow(e, int64(len(reply)))
	}
}

// liveUntil returns when a policy ends, in Unix seconds: at its expiry, but not in
// the first minute after its fetch, so that a max_age of 0 costs one fetch per
// minute, not one per message.
func liveUntil(fetched, expires int64) int64 { return max(expires, fetched+int64(minLife/time.Second)) }

func isLive(h *cache.Hit, now int64) bool { return now < liveUntil(h.Fetched, h.Expires) }

// A Held is a lookup's view of a policy. It may be used again, by one lookup
// at a time.
type Held struct {
	Mode    policy.Mode
	Fetched int64  // Unix seconds
	Expires int64  // Unix seconds
	Match   []byte // the stored match list, as Options.MatchList made it; valid until the Held is used again
	Text    []byte // the policy as served; likewise
	Entry   *Entry // where rendered replies may be kept; nil: the policy is not in memory

	// Since is when the lookup began. A lookup answered from memory does not set
	// it, because reading the clock takes time.
	Since time.Time

	hit cache.Hit
}

// set fills in what a lookup has found. e may be nil.
func (h *Held) set(hit *cache.Hit, e *Entry) {
	h.Mode, h.Fetched, h.Expires, h.Match, h.Text, h.Entry = hit.Mode, hit.Fetched, hit.Expires, hit.Match, hit.Text, e
}
