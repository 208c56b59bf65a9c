package keeper

import (
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// A Negative is a domain for which no policy was found, and until when it is
// not tried again.
type Negative struct {
	Domain string
	Result policy.Result
	Err    string
	Until  time.Time

	damaged   bool  // a policy was held and cannot be read
	failures  int   // in a row
	heldUntil int64 // Unix seconds: until when a policy is held that has expired by the clock; 0: none is
}

// counts says whether it is known at now that there is no policy. It goes by
// the time that has passed, not by the clock on the wall: one that is set back
// must not make a domain wait for years. But if that brings a policy back to
// life, which had expired by a clock that was ahead, that counts.
func (n *Negative) counts(now time.Time) bool {
	return now.Before(n.Until) && now.Unix() >= n.heldUntil
}

// size is about what it takes in memory.
func (n *Negative) size() int64 { return negativeOverhead + int64(len(n.Domain)+len(n.Err)) }

// negatives are kept in memory only, so many at most and so many bytes, under a
// hash of the domain that nobody outside can aim at.
type negatives struct {
	byHash *lru.Cache[uint64, *Negative]
	mu     sync.Mutex // of those that change it
	bytes  int64
}

func newNegatives() *negatives {
	n := new(negatives)
	// What goes is told while mu is held.
	c, err := lru.NewWithEvict(maxNegative, func(_ uint64, v *Negative) { n.bytes -= v.size() })
	if err != nil {
		panic(err) // the size is a positive constant
	}
	n.byHash = c
	return n
}

// get says whether a domain is known to have no policy at now, and whether
// that is because a stored one cannot be read.
func (n *negatives) get(hash uint64, domain []byte, now time.Time) (known, damaged bool) {
	v, ok := n.byHash.Get(hash)
	if !ok || v.Domain != string(domain) || !v.counts(now) {
		return false, false
	}
	return true, v.damaged
}

// failures returns how often in a row discovery has failed.
func (n *negatives) failures(hash uint64, domain string) int {
	if v, ok := n.byHash.Peek(hash); ok && v.Domain == domain {
		return v.failures
	}
	return 0
}

func (n *negatives) put(hash uint64, v *Negative) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if old, ok := n.byHash.Peek(hash); ok { // what is replaced is not told
		n.bytes -= old.size()
	}
	n.byHash.Add(hash, v)
	n.bytes += v.size()
	for n.bytes > maxNegativeBytes {
		n.byHash.RemoveOldest()
	}
}

func (n *negatives) drop(hash uint64) {
	if !n.byHash.Contains(hash) { // as nearly always
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.byHash.Remove(hash)
}

// clear drops all, and returns how many of them counted at now.
func (n *negatives) clear(now time.Time) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	counted := 0
	for _, v := range n.byHash.Values() {
		if v.counts(now) {
			counted++
		}
	}
	n.byHash.Purge()
	return counted
}

// Negative returns what is remembered of a domain without a policy.
func (k *Keeper) Negative(domain string) (Negative, bool) {
	v, ok := k.negative.byHash.Peek(k.hash(domain))
	if !ok || v.Domain != domain || !v.counts(time.Now()) {
		return Negative{}, false
	}
	return *v, true
}
