package cache

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

const (
	// maxEvicted bounds the evictions of one transaction, and so its duration.
	maxEvicted = 4096
	// draws is how many policies are drawn at random to evict one of them.
	draws = 16
	// recentUse, in seconds: a policy that was used on two days or more, and within
	// recentUse, is not given up.
	recentUse = 30 * secondsPerDay
)

// Write carries out ops in one transaction: all or none, except refused ones. The
// last op of a domain counts. When Write returns nil, the ops are on disk. If the
// disk is full, the store stays usable and unchanged.
//
// When the used pages reach MaxSize, a new domain needs room: see makeRoom.
func (s *Store) Write(ops []Op) (WriteResult, error) {
	values := make([]*value, len(ops))
	for i, op := range ops {
		if op.Put != nil {
			var err error
			if values[i], err = valueOf(op.Put); err != nil {
				return WriteResult{}, err
			}
		}
	}
	var w *writing
	err := s.update(func(begun *writing) error {
		w = begun
		for i, op := range ops {
			if err := w.apply([]byte(op.domain()), values[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return WriteResult{}, fmt.Errorf("write to the cache: %w", err)
	}
	return w.result, nil
}

// Purge deletes policies that expired before the given time, at most limit and
// MaxPage, and returns their domains.
func (s *Store) Purge(before time.Time, limit int) ([]string, error) {
	var w *writing
	err := s.update(func(begun *writing) error {
		for w = begun; len(w.result.Evicted) < min(limit, MaxPage); {
			if domain, err := w.expired(before.Unix()); err != nil || domain == nil {
				return err
			} else if err := w.evict(domain); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("purge the cache: %w", err)
	}
	return w.result.Evicted, nil
}

// A writing is a writing transaction.
type writing struct {
	tx       *bbolt.Tx
	policy   *bbolt.Bucket
	due      *bbolt.Bucket
	expiry   *bbolt.Bucket
	now      int64
	sequence uint64
	state    state
	room     int64 // bytes that may be added before something has to go
	result   WriteResult
}

// updateIn runs fn in a writing transaction of file. The caller has the turn, or
// file is not in use yet.
func (s *Store) updateIn(file *boltFile, fn func(*writing) error) error {
	before := file.state.Load()
	w := &writing{
		now: s.o.Now().Unix(), state: state{counts: before.counts}, room: file.maxSize - before.used}
	w.state.heartbeat, w.state.inDoubtSince = w.now, secondsOf(s.o.InDoubtSince())
	return file.update(func(tx *bbolt.Tx) (*state, error) {
		meta := tx.Bucket(bucketMeta)
		w.tx, w.policy, w.due, w.expiry = tx, tx.Bucket(bucketPolicy), tx.Bucket(bucketDue), tx.Bucket(bucketExpiry)
		if meta == nil || w.policy == nil || w.due == nil || w.expiry == nil {
			return nil, faultf("a bucket is gone")
		}
		w.sequence = w.policy.Sequence() + 1
		err := fn(w)
		if stale := s.stale.Swap(nil); err == nil && stale != nil {
			err = w.dropStale(stale)
		}
		if errors.Is(err, bolterrors.ErrIncompatibleValue) {
			err = faultf("a bucket is in the place of a value")
		}
		return &w.state, errors.Join(err,
			meta.Put(keyCounts, encoded(w.state.counts)),
			meta.Put(keyNewest, encoded(w.now)),
			meta.Put(keyInDoubt, encoded(w.state.inDoubtSince)),
			w.policy.SetSequence(w.sequence))
	})
}

// dropStale deletes entries of the due index that match no record.
func (w *writing) dropStale(stale *[][]byte) error {
	for _, k := range *stale {
		own, _, _ := entriesOf(k[dueAtDomain:], w.policy.Get(k[dueAtDomain:]))
		if !bytes.Equal(own, k) {
			if err := w.due.Delete(k); err != nil {
				return err
			}
		}
	}
	return nil
}

// put stores v with the sequence of this transaction, or deletes what is stored
// for domain if v is nil.
func (w *writing) put(domain []byte, v *value) error {
	if v == nil {
		return w.set(domain, nil)
	}
	return w.set(domain, v.bytes(w.sequence))
}

func (w *writing) set(domain, raw []byte) error {
	old := w.policy.Get(domain)
	oldDue, oldExpiry, oldCount := entriesOf(domain, old)
	due, expiry, count := entriesOf(domain, raw)
	w.room += footprint(domain, old) - footprint(domain, raw)
	if old != nil {
		w.state.counts[oldCount]--
	}
	var err error
	if raw != nil {
		w.state.counts[count]++
		err = w.policy.Put(domain, raw)
	} else {
		err = w.policy.Delete(domain)
	}
	return errors.Join(err, move(w.due, oldDue, due), move(w.expiry, oldExpiry, expiry))
}

func move(index *bbolt.Bucket, from, to []byte) (err error) {
	if bytes.Equal(from, to) {
		return nil
	}
	if from != nil {
		err = index.Delete(from)
	}
	if to != nil {
		err = errors.Join(err, index.Put(to, nil))
	}
	return err
}

// apply stores v for a domain, or deletes the stored value if v is nil. It makes room
// for a new domain and for a policy that has grown, never for a changed note about a
// policy. If v is refused, the old policy is deleted too: otherwise it would come
// back after a restart.
func (w *writing) apply(domain []byte, v *value) error {
	if v != nil {
		old := w.policy.Get(domain)
		held, err := parse(domain, old)
		need := footprint(domain, v.bytes(0)) - footprint(domain, old)
		if old == nil || err == nil && len(v.text)+len(v.match) > len(held.text)+len(held.match) {
			ok, err := w.makeRoom(need, policy.Mode(v.Mode) == policy.ModeEnforce)
			if err != nil {
				return err
			}
			if !ok {
				w.result.Refused = append(w.result.Refused, string(domain))
				v = nil
			}
		}
	}
	return w.put(domain, v)
}

// footprint estimates the bytes of pages that a value takes with its two index
// entries. Pages are two thirds full on average.
func footprint(domain, raw []byte) int64 {
	if raw == nil {
		return 0
	}
	const element = 16 // bbolt's, for each key
	return int64(element+len(domain)+len(raw)+2*(element+dueAtDomain+len(domain))) * 3 / 2
}

// makeRoom evicts policies until need bytes are free, and reports whether they are.
// Expired policies go first. Then only an enforced policy displaces others: the least
// recently used of a few drawn at random, but none that is live, enforced and in
// regular use.
func (w *writing) makeRoom(need int64, enforced bool) (bool, error) {
	for w.room < need {
		domain, err := w.expired(w.now)
		if err == nil && domain == nil && enforced {
			domain = w.draw()
		}
		if err != nil || domain == nil || len(w.result.Evicted) >= maxEvicted {
			return false, err
		}
		if err := w.evict(domain); err != nil {
			return false, err
		}
	}
	return true, nil
}

func (w *writing) evict(domain []byte) error {
	w.result.Evicted = append(w.result.Evicted, string(domain))
	return w.put(domain, nil)
}

// expired returns the domain that expired first, if that was before the given time.
// On the way it deletes index entries that match no record.
func (w *writing) expired(before int64) ([]byte, error) {
	c := w.expiry.Cursor()
	for k, _ := c.First(); len(k) >= expiryAtDomain && binary.BigEndian.Uint64(k) < positive(before); {
		domain := bytes.Clone(k[expiryAtDomain:])
		if _, own, _ := entriesOf(domain, w.policy.Get(domain)); !bytes.Equal(own, k) {
			if err := w.expiry.Delete(bytes.Clone(k)); err != nil {
				return nil, err
			}
			k, _ = c.First()
		} else {
			return domain, nil
		}
	}
	return nil, nil
}

// protects says whether a policy is enforced and live.
func (w *writing) protects(v *value) bool {
	return policy.Mode(v.Mode) == policy.ModeEnforce && v.Expires > w.now
}

// draw returns a domain to give up, nil if none of those drawn may go.
func (w *writing) draw() (domain []byte) {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	bestProtects, bestUsed := true, w.now+1
	c := w.policy.Cursor()
	for range draws {
		k, raw := c.Seek([]byte{letters[rand.IntN(len(letters))], letters[rand.IntN(len(letters))], letters[rand.IntN(len(letters))]})
		if k == nil {
			k, raw = c.First()
		}
		v, err := parse(k, raw)
		if err != nil {
			continue
		}
		protects := w.protects(v)
		if protects && v.has(flagRegular) && w.now-v.Used < recentUse {
			continue
		}
		if bestProtects && !protects || bestProtects == protects && v.Used < bestUsed {
			bestProtects, bestUsed, domain = protects, v.Used, bytes.Clone(k)
		}
	}
	return domain
}
