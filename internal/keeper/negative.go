package keeper

import (
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

// negatives are kept in memory only, so many at most, under a hash of the
// domain that nobody outside can aim at.
type negatives struct {
	byHash *lru.Cache[uint64, *Negative]
}

func newNegatives() *negatives {
	c, err := lru.New[uint64, *Negative](maxNegative)
	if err != nil {
		panic(err) // the size is a positive constant
	}
	return &negatives{byHash: c}
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

func (n *negatives) put(hash uint64, v *Negative) { n.byHash.Add(hash, v) }

func (n *negatives) drop(hash uint64) { n.byHash.Remove(hash) }

// Negative returns what is remembered of a domain without a policy.
func (k *Keeper) Negative(domain string) (Negative, bool) {
	v, ok := k.negative.byHash.Peek(k.hash(domain))
	if !ok || v.Domain != domain || !v.counts(time.Now()) {
		return Negative{}, false
	}
	return *v, true
}
