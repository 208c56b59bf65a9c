package cache

import (
	"encoding/binary"
	"math/rand/v2"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

const (
	// maxVictims bounds what one transaction gives up, and so how long it takes.
	maxVictims = 4096

	// draws is how many policies are drawn, of which one is given up.
	draws = 16

	// recentUse, in seconds: a policy used on two days or more and within it stays.
	recentUse = 30 * secondsPerDay
)

// footprint estimates the bytes of pages that a value takes with its two index
// entries. Pages are two thirds full on average.
func footprint(domain, raw []byte) int64 {
	if raw == nil {
		return 0
	}
	const element = 16 // bbolt's, for each key
	n := int64(element + len(domain) + len(raw) + 2*(element+dueDomain+len(domain)))
	return n + n/2
}

// makeRoom gives up policies until there is room for need bytes of the policy
// raw, and reports whether there is. Expired ones go first. After that only an
// enforced newcomer displaces others: of a few drawn at random the one that was
// not used for longest, and none that is live, enforced and in regular use.
func (w *writing) makeRoom(need int64, raw value) (bool, error) {
	for w.room < need {
		if len(w.result.Evicted) >= maxVictims {
			return false, nil
		}
		domain, err := w.expired(w.now)
		if err == nil && domain == nil && raw.mode() == policy.ModeEnforce {
			domain = w.draw()
		}
		if err != nil || domain == nil {
			return false, err
		}
		if err := w.set(domain, nil); err != nil {
			return false, err
		}
		w.result.Evicted = append(w.result.Evicted, string(domain))
	}
	return true, nil
}

// expired returns the domain that ran out first, if that was before the time
// before, and deletes entries that no record stands behind on the way. It skips
// the domains that are written in this transaction.
func (w *writing) expired(before int64) (domain []byte, err error) {
	c := w.expiry.Cursor()
	for k, _ := c.First(); k != nil; {
		if len(k) >= expiryDomain && binary.BigEndian.Uint64(k) >= positive(before) {
			return nil, nil
		}
		domain := append([]byte(nil), k[min(expiryDomain, len(k)):]...)
		raw := w.policy.Get(domain)
		switch {
		case raw == nil || string(entriesOf(domain, raw).expiry) != string(k):
			if err := w.expiry.Delete(append([]byte(nil), k...)); err != nil {
				return nil, err
			}
			c = w.expiry.Cursor()
			k, _ = c.First()
		case w.changed[string(domain)]:
			k, _ = c.Next()
		default:
			return domain, nil
		}
	}
	return nil, nil
}

// draw returns a domain to give up, nil if none of those drawn may go.
func (w *writing) draw() (domain []byte) {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	best := struct {
		protects bool
		used     int64
	}{true, w.now + 1}
	c := w.policy.Cursor()
	for range draws {
		from := []byte{letters[rand.IntN(len(letters))], letters[rand.IntN(len(letters))], letters[rand.IntN(len(letters))]}
		k, raw := c.Seek(from)
		if k == nil {
			k, raw = c.First()
		}
		v, err := parseAt(k, raw)
		if err != nil || w.changed[string(k)] {
			continue
		}
		used := v.time(offUsed)
		protects := v.mode() == policy.ModeEnforce && v.time(offExpires) > w.now
		if protects && v.has(flagRegular) && w.now-used < recentUse {
			continue
		}
		if best.protects && !protects || best.protects == protects && used < best.used {
			best.protects, best.used, domain = protects, used, append(domain[:0], k...)
		}
	}
	return domain
}
