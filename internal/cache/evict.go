package cache

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

const (
	// idleAfter is how many days without use make a live enforced policy one
	// that may be given up for another enforced one.
	idleAfter = 7

	// maxPassed bounds how many policies one commit passes over that are in use
	// although their records do not say so yet.
	maxPassed = 4096

	// growSlack is the part of MaxSize, one in so many, by which policies that
	// are held may grow beyond it.
	growSlack = 8

	// maxVictims bounds what one commit gives up, and so how long it takes.
	maxVictims = 4096

	// maxPurge bounds what one Purge deletes.
	maxPurge = 1000
)

// footprint estimates the bytes of pages that a policy takes with its index
// entries. Pages are two thirds full on average.
func footprint(domain []byte, v Value) int64 {
	const entry = elementSize + expiryDomain // roughly, of each of three indexes
	n := int64(elementSize + len(domain) + len(v) + 3*(entry+len(domain)))
	return n + n/2
}

// The phases of giving up, in order.
const (
	phaseExpired = iota
	phaseOther   // none and testing
	phaseIdle    // enforced and not used for idleAfter days
	numPhases
)

// lastPhase returns how far giving up goes for a policy that is put. One of
// mode none or testing protects nothing, and moves no enforced one that lives.
func lastPhase(v Value) int {
	if v.Mode() == policy.ModeEnforce {
		return phaseIdle
	}
	return phaseOther
}

// makeRoom gives up others, up to the phase last, until there is room for need
// bytes, and reports whether there is. If not, it gives up none.
func (p *plan) makeRoom(last int, need int64) (bool, error) {
	if p.room < 0 {
		// Deleting leaves pages half empty, and they count as used. More
		// must go than comes in for the used pages to become fewer.
		need *= 2
	}
	room := max(p.room, 0)
	if least := p.refused[last]; room < need && least > 0 && need >= least {
		return false, nil
	}
	var chosen []put
	for room < need {
		if len(p.result.Evicted)+len(chosen) == maxVictims {
			break
		}
		domain, old, err := p.victims.next(last)
		if err != nil {
			return false, err
		}
		if domain == nil {
			break
		}
		room += footprint(domain, old)
		chosen = append(chosen, put{domain: domain, old: old})
	}
	if room < need {
		p.refused[last] = need
		p.victims = &victims{plan: p}
		return false, nil
	}
	p.room = min(p.room, 0) + room - need
	for _, c := range chosen {
		if err := p.delete(c.domain, c.old); err != nil {
			return false, err
		}
		p.result.Evicted = append(p.result.Evicted, string(c.domain))
	}
	return true, nil
}

// victims goes through those that may be given up, in order.
type victims struct {
	plan  *plan
	phase int
	walk  *walk
}

// next returns the next one up to the phase last, nil if there is none.
func (vs *victims) next(last int) (domain []byte, old Value, err error) {
	for vs.phase <= last {
		if vs.walk == nil {
			vs.walk = vs.begin()
		}
		ended := false
		more, err := vs.walk.next(func(k, _ []byte) error {
			domain, ended = vs.examine(k)
			if domain == nil {
				return nil
			}
			old, err = vs.plan.sn.policy.get(domain)
			if err != nil || old == nil || !vs.fits(domain, old, k) {
				domain = nil // an entry that damage has left
			}
			return err
		})
		if err != nil {
			return nil, nil, err
		}
		if !more || ended {
			vs.walk = nil
			vs.phase++
			continue
		}
		if domain != nil {
			return domain, old, nil
		}
	}
	return nil, nil, nil
}

func (vs *victims) begin() *walk {
	sn := vs.plan.sn
	switch vs.phase {
	case phaseExpired:
		return newWalk(&sn.expiry, nil)
	case phaseOther:
		return newWalk(&sn.evict, []byte{classOther})
	default:
		return newWalk(&sn.evict, []byte{classEnforced})
	}
}

// examine returns the domain of the entry k, nil if it is spoken for already,
// or that the phase has ended with it.
func (vs *victims) examine(k []byte) (domain []byte, ended bool) {
	p := vs.plan
	if vs.phase == phaseExpired {
		if len(k) <= expiryDomain {
			return nil, false
		}
		if binary.BigEndian.Uint64(k) > positive(p.now) {
			return nil, true
		}
		domain = k[expiryDomain:]
	} else {
		if len(k) <= evictDomain {
			return nil, false
		}
		if vs.phase == phaseOther && k[0] != classOther || vs.phase == phaseIdle && k[0] != classEnforced {
			return nil, true
		}
		if vs.phase == phaseIdle && int64(binary.BigEndian.Uint32(k[evictDay:])) > int64(dayOf(p.now))-idleAfter {
			return nil, true
		}
		domain = k[evictDomain:]
		if vs.phase == phaseIdle && p.inUse != nil && p.inUse(domain) {
			p.passed++
			return nil, p.passed >= maxPassed
		}
	}
	if _, taken := p.touched[string(domain)]; taken {
		return nil, false
	}
	return append([]byte(nil), domain...), false
}

// fits reports whether the entry k is that of the record old. A damaged record
// has entries that cannot be told.
func (vs *victims) fits(domain []byte, old Value, k []byte) bool {
	v, err := parseAt(domain, old)
	if err != nil {
		return true
	}
	entries := keysOf(domain, v)
	if vs.phase == phaseExpired {
		return string(entries.expiry) == string(k)
	}
	return string(entries.evict) == string(k)
}

// Purge deletes policies that ran out before the time before, at most max of
// them and at most 1,000, and returns their domains. It reads no others.
func (s *Store) Purge(before time.Time, max int) ([]string, error) {
	var purged []string
	err := s.change(func(sn *snapshot) (*plan, error) {
		p := newPlan(sn, s.options)
		// The phase of the expired, with another idea of now.
		p.now = before.Unix() - 1
		for len(purged) < min(max, maxPurge) {
			domain, old, err := p.victims.next(phaseExpired)
			if err != nil {
				return nil, err
			}
			if domain == nil {
				break
			}
			if err := p.delete(domain, old); err != nil {
				return nil, err
			}
			purged = append(purged, string(domain))
		}
		return p, nil
	})
	if err != nil {
		return nil, fmt.Errorf("purge the cache: %w", err)
	}
	return purged, nil
}
