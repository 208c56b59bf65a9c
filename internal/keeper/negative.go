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

	damaged  bool // a policy was held and cannot be read
	failures int  // in a row
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
// that is because a stored one cannot be read. It goes by the time that has
// passed, not by the clock on the wall: one that is set back must not make a
// domain wait for years.
func (n *negatives) get(hash uint64, domain []byte, now time.Time) (known, damaged bool) {
	v, ok := n.byHash.Get(hash)
	if !ok || v.Domain != string(domain) || !now.Before(v.Until) {
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
	if !ok || v.Domain != domain || !time.Now().Before(v.Until) {
		return Negative{}, false
	}
	return *v, true
}
