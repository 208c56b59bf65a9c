package cache

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/bbolt"

	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
)

// Write carries out ops in one transaction, all of them or none but the refused
// ones; of two for one domain the last counts. When it returns nil they are on
// disk. errBusy and a full disk leave the store as it was, and usable.
//
// A new domain needs room: where the used pages come near MaxSize, expired
// policies are given up for it, then those of mode none and testing by the age
// of their last use, and for an enforced one at last also enforced ones that
// were not used for a week. What is held may be replaced without that, but a
// policy that has grown only until growSlack is used up, too.
func (s *Store) Write(ops []Op) (WriteResult, error) {
	var p *plan
	err := s.change(func(sn *snapshot) (_ *plan, err error) {
		p = newPlan(sn, s.options)
		return p, p.addAll(ops)
	})
	if err != nil {
		return WriteResult{}, fmt.Errorf("write to the cache: %w", err)
	}
	return p.result, nil
}

// change takes the turn, has a plan made from the current state, carries it out
// and makes its outcome the current state.
func (s *Store) change(planFor func(*snapshot) (*plan, error)) error {
	if s.readOnly {
		return ErrReadOnly
	}
	if !s.takeTurn(turnWait) {
		return errBusy
	}
	defer s.endTurn()
	// No reference is taken: who has the turn keeps the state from being
	// replaced, and one that is let go too late stays pinned until the next commit.
	sn := s.snap.Load()
	if sn == nil {
		return ErrClosed
	}
	var p *plan
	err := guard(func() (err error) {
		p, err = planFor(sn)
		return err
	})
	if err == nil {
		p.dropStale(s.stale.take())
		if p.empty() {
			return nil
		}
		p.dropHints()
		// After a failed commit too: a sync that fails may still have written.
		err = s.file.update(p.apply)
		err = errors.Join(err, s.renew(p, err == nil))
		s.lines.changed(p.puts) // not before Due can see them
	}
	if unreadable(err) {
		return s.noticed(err)
	}
	return err
}

// A plan is what one transaction is to change. It is made from the current
// state, which is the one the transaction begins with, and checks every page
// that bbolt is going to rewrite.
type plan struct {
	sn       *snapshot
	now      int64
	sequence uint64
	puts     []put
	deletes  []put
	stale    [][]byte            // entries of the due index to take out
	exempt   *[]exempt.Exemption // to replace those that are stored; nil: they stay
	touched  map[string]struct{} // domains of the ops, and in puts and deletes
	counts   counts
	newest   int64
	room     int64 // bytes that may be added before something has to go
	slack    int64 // bytes by which policies that are held may grow beyond
	inUse    func(domain []byte) bool
	passed   int // policies in use that victims has passed over
	victims  *victims
	refused  [numPhases]int64 // the least need that was refused by last phase; 0: none was
	result   WriteResult
}

// A put replaces old, nil if there is none, by raw, nil to delete.
type put struct {
	domain   []byte
	old, raw Value
}

func newPlan(sn *snapshot, o Options) *plan {
	now := o.Now().Unix()
	p := &plan{
		sn:       sn,
		now:      now,
		sequence: sn.policy.sequence + 1,
		touched:  make(map[string]struct{}),
		counts:   sn.counts,
		newest:   sn.newest,
		room:     o.MaxSize - sn.used,
		slack:    o.MaxSize / growSlack,
	}
	p.victims = &victims{plan: p}
	return p
}

func (p *plan) empty() bool { return len(p.puts)+len(p.deletes)+len(p.stale) == 0 && p.exempt == nil }

// addAll adds ops: first those for which there is always room. None of their
// domains is given up for another of them: what is expired may be here anew.
func (p *plan) addAll(ops []Op) error {
	for _, op := range ops {
		p.touched[op.domain()] = struct{}{}
	}
	added := make(map[string]struct{}, len(ops))
	var newcomers []put
	for i := len(ops) - 1; i >= 0; i-- { // of two for one domain the last counts
		op := ops[i]
		domain := op.domain()
		if _, again := added[domain]; again {
			continue
		}
		added[domain] = struct{}{}
		old, err := p.sn.policy.get([]byte(domain))
		if err != nil {
			return err
		}
		if op.Put == nil {
			if old != nil {
				err = p.delete([]byte(domain), old)
			}
		} else {
			var raw Value
			if raw, err = encode(op.Put, p.sequence); err != nil {
				return err
			}
			change := put{domain: []byte(domain), old: old, raw: raw}
			if old == nil {
				newcomers = append(newcomers, change)
			} else {
				err = p.replace(change)
			}
		}
		if err != nil {
			return err
		}
	}
	slices.Reverse(newcomers) // the first come first
	for _, n := range newcomers {
		admitted, err := p.makeRoom(lastPhase(n.raw), footprint(n.domain, n.raw))
		if err != nil {
			return err
		}
		if !admitted {
			p.result.Refused = append(p.result.Refused, string(n.domain))
			continue
		}
		if err := p.put(n); err != nil {
			return err
		}
	}
	return nil
}

// replace adds the change of a policy that is held. One that has grown makes
// others go, and where there are none it may take some of the slack.
//
// Beyond that it cannot be stored: small policies that are replaced by long ones
// would fill the disk. The old one is deleted then. It would be answered again
// after a crash, although a newer one was answered before, which may ask for
// more; without it the domain is discovered anew. A record whose policy has not
// grown is always stored: nobody loses a policy to what we note about it.
func (p *plan) replace(change put) error {
	grown := footprint(change.domain, change.raw) - footprint(change.domain, change.old)
	if grown <= 0 {
		return p.put(change)
	}
	admitted, err := p.makeRoom(lastPhase(change.raw), grown)
	if err != nil {
		return err
	}
	if !admitted {
		if p.room-grown < -p.slack && change.grows() {
			p.result.Refused = append(p.result.Refused, string(change.domain))
			return p.delete(change.domain, change.old)
		}
		p.room -= grown
	}
	return p.put(change)
}

// grows says whether the policy is longer than the one it replaces. A damaged
// one is replaced by whatever there is: until then mail waits.
func (c put) grows() bool {
	old, err := parseAt(c.domain, c.old)
	return err == nil && c.raw.policyLen() > old.policyLen()
}

func (p *plan) put(change put) error {
	p.touched[string(change.domain)] = struct{}{}
	p.puts = append(p.puts, change)
	p.counts[countOf(change.raw)]++
	p.newest = max(p.newest, change.raw.newest())
	if change.old != nil {
		p.counts[countOf(change.old)]--
	}
	return p.check(change)
}

func (p *plan) delete(domain []byte, old Value) error {
	p.touched[string(domain)] = struct{}{}
	change := put{domain: domain, old: old}
	p.deletes = append(p.deletes, change)
	p.counts[countOf(old)]--
	return p.check(change)
}

// check checks the pages that the change touches.
func (p *plan) check(change put) error {
	if err := p.sn.policy.check(change.domain); err != nil {
		return err
	}
	for _, v := range []Value{change.old, change.raw} {
		if len(v) < headerSize {
			continue
		}
		k := keysOf(change.domain, v)
		err := errors.Join(p.sn.expiry.check(k.expiry), p.sn.evict.check(k.evict))
		if k.due != nil {
			err = errors.Join(err, p.sn.due.check(k.due))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// dropStale adds entries of the due index that no record stands behind.
func (p *plan) dropStale(found map[string]struct{}) {
	for k := range found {
		if p.sn.due.check([]byte(k)) == nil {
			p.stale = append(p.stale, []byte(k))
		}
	}
}

// apply carries the plan out. The stale entries go first: one of them may be
// right again.
func (p *plan) apply(tx *bbolt.Tx) error {
	b := bucketsOf(tx)
	for _, k := range p.stale {
		if err := b.due.Delete(k); err != nil {
			return err
		}
	}
	for _, changes := range [][]put{p.deletes, p.puts} {
		for _, c := range changes {
			if err := b.store(c); err != nil {
				return fmt.Errorf("%s: %w", c.domain, err)
			}
		}
	}
	if p.exempt != nil {
		if err := putExemptions(tx, *p.exempt); err != nil {
			return err
		}
	}
	return b.seal(p.counts, p.newest, p.sequence)
}

// buckets are those of one transaction.
type buckets struct {
	meta, policy, due, expiry, evict *bbolt.Bucket
}

func bucketsOf(tx *bbolt.Tx) buckets {
	return buckets{
		meta:   tx.Bucket(bucketMeta),
		policy: tx.Bucket(bucketPolicy),
		due:    tx.Bucket(bucketDue),
		expiry: tx.Bucket(bucketExpiry),
		evict:  tx.Bucket(bucketEvict),
	}
}

// store makes one change. Index entries that stay as they are cost nothing.
func (b buckets) store(c put) error {
	var old, now keys
	if len(c.old) >= headerSize {
		old = keysOf(c.domain, c.old)
	}
	if c.raw == nil {
		if err := b.policy.Delete(c.domain); err != nil {
			return err
		}
	} else {
		now = keysOf(c.domain, c.raw)
		if err := b.policy.Put(c.domain, c.raw); err != nil {
			return err
		}
	}
	return b.index(old, now)
}

func (b buckets) index(old, now keys) error {
	for _, entry := range []struct {
		bucket   *bbolt.Bucket
		old, now []byte
	}{{b.due, old.due, now.due}, {b.expiry, old.expiry, now.expiry}, {b.evict, old.evict, now.evict}} {
		if bytes.Equal(entry.old, entry.now) {
			continue
		}
		if entry.old != nil {
			if err := entry.bucket.Delete(entry.old); err != nil {
				return err
			}
		}
		if entry.now != nil {
			if err := entry.bucket.Put(entry.now, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// seal writes what is kept of the whole.
func (b buckets) seal(c counts, newest int64, sequence uint64) error {
	if err := b.meta.Put(keyCounts, c.encode()); err != nil {
		return err
	}
	if err := b.meta.Put(keyNewest, binary.LittleEndian.AppendUint64(nil, uint64(newest))); err != nil {
		return err
	}
	return b.policy.SetSequence(sequence)
}

// changed notes what became due by puts.
func (l *lines) changed(puts []put) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.generation++
	for _, c := range puts {
		if c.raw.due() != 0 {
			lane := c.raw.lane()
			l.until[lane] = min(l.until[lane], c.raw.due())
		}
	}
}
