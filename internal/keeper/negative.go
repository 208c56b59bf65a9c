package keeper

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// A Negative is a domain for which no policy was found, and until when it is
// not tried again. It is kept in memory only.
type Negative struct {
	Domain string        `json:"-"`
	Result policy.Result `json:"result"`
	Err    string        `json:"error,omitempty"`
	Until  time.Time     `json:"until"`
	// Proven says that the failure is the domain's: the host has answered, or other fetches
	// succeeded between two failures of this domain. It may be an outage of ours otherwise.
	Proven bool `json:"-"`

	unreadable bool          // a policy may be stored, and cannot be read
	notFetched bool          // the lookup's error is ErrNotFetched
	failures   int           // in a row
	asked      *atomic.Int64 // when the fleet was asked, Unix seconds
	others     uint64        // fetches that had succeeded, see health
}

func (n *Negative) name() string { return n.Domain }

// err is the error of a lookup.
func (n *Negative) err() error {
	switch {
	case n.unreadable:
		return ErrUnreadable
	case n.notFetched:
		return ErrNotFetched
	}
	return ErrNoPolicy
}

// mayAskFleet says whether the fleet is to be asked for a domain that has failed: once a minute.
func (n *Negative) mayAskFleet(now int64) bool {
	last := n.asked.Load()
	return n.Result != policy.ResultNoRecord && !n.unreadable && now-last >= int64(askFleetEvery/time.Second) && n.asked.CompareAndSwap(last, now)
}

func (n *Negative) weight() int64 { return overheadBytes + int64(len(n.Domain)+len(n.Err)) }

// Negative returns what is remembered of a domain without a policy.
func (k *Keeper) Negative(domain string) (Negative, bool) {
	if n := k.negative.get(k.hash(domain), []byte(domain)); n != nil && k.o.Now().Before(n.Until) {
		return *n, true
	}
	return Negative{}, false
}

// notFetched reports whether err is a failure of a domain whose record is valid. A refused
// address counts as ours: another relay may allow it.
func notFetched(err error) bool {
	var failed *policy.Error
	if !errors.As(err, &failed) || policy.OurFault(err) || errors.Is(err, policy.ErrAddressRefused) {
		return false
	}
	return failed.Result == policy.ResultFetch || failed.Result == policy.ResultInvalid || failed.Result == policy.ResultWebPKI
}

// ForgetFailures drops all negative results and returns their number. A discovery
// under way may still add one.
func (k *Keeper) ForgetFailures() int {
	k.negative.mu.Lock()
	defer k.negative.mu.Unlock()
	defer k.negative.values.Purge()
	return k.negative.values.Len()
}

// remember keeps a negative result: for the TTL of the DNS answer, or after a
// failure for five minutes, doubling to an hour (RFC 8461, 3.3). A fault of our own
// is not remembered.
func (k *Keeper) remember(domain string, unreadable bool, err error) {
	now, hash := k.o.Now(), k.hash(domain)
	n := &Negative{Domain: domain, Result: policy.ResultOf(err), Err: policy.Reason(err), Until: now, unreadable: unreadable, notFetched: notFetched(err)}
	n.others, n.Proven = k.health.fetches(), fetchSign(err) != signBad
	n.asked = new(atomic.Int64)
	n.asked.Store(now.Unix())
	ours := policy.OurFault(err)
	if !ours {
		keep := minNegative
		if pe := (*policy.Error)(nil); errors.As(err, &pe) {
			keep = min(max(pe.TTL, minNegative), maxNegative)
		}
		if n.Result != policy.ResultNoRecord {
			if old := k.negative.get(hash, []byte(domain)); old != nil {
				n.failures = old.failures
				n.Proven = n.Proven || old.notFetched && (old.Proven || old.others < n.others)
			}
			n.failures++
			keep = max(keep, backoff(n.failures))
		}
		if unreadable && k.o.Store.Stats().Salvaging {
			keep = minNegative // the record may be carried over soon
		}
		n.Until = now.Add(keep)
		k.negative.put(hash, n)
	}
	if n.Result != policy.ResultNoRecord || unreadable {
		k.logFailure(n, ours)
	}
}
