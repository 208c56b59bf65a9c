package cache

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Write carries out ops in one transaction: all of them or none, but for refused
// ones. Of two for one domain the last counts. When it returns nil, they are on
// disk. A full disk leaves the store as it was, and usable.
//
// Where the used pages reach MaxSize, a new domain needs room: see makeRoom.
func (s *Store) Write(ops []Op) (WriteResult, error) {
	changes, err := changesOf(ops)
	if err != nil {
		return WriteResult{}, fmt.Errorf("write to the cache: %w", err)
	}
	var w *writing
	err = s.update(func(begun *writing) error {
		w = begun
		return w.apply(changes)
	})
	if err != nil {
		return WriteResult{}, fmt.Errorf("write to the cache: %w", err)
	}
	return w.result, nil
}

// A change replaces what is stored for a domain by raw; nil deletes it.
type change struct {
	domain []byte
	raw    value
}

func changesOf(ops []Op) ([]change, error) {
	last := make(map[string]int, len(ops))
	for i, op := range ops {
		last[op.domain()] = i
	}
	changes := make([]change, 0, len(last))
	for i, op := range ops {
		if last[op.domain()] != i {
			continue
		}
		c := change{domain: []byte(op.domain())}
		if op.Put != nil {
			var err error
			if c.raw, err = encode(op.Put); err != nil {
				return nil, err
			}
		}
		changes = append(changes, c)
	}
	return changes, nil
}

// Purge deletes policies that ran out before the time before, limit and MaxPage
// of them at most, and returns their domains.
func (s *Store) Purge(before time.Time, limit int) ([]string, error) {
	var purged []string
	err := s.update(func(w *writing) error {
		for len(purged) < min(limit, MaxPage) {
			domain, err := w.expired(before.Unix())
			if err != nil || domain == nil {
				return err
			}
			if err := w.set(domain, nil); err != nil {
				return err
			}
			purged = append(purged, string(domain))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("purge the cache: %w", err)
	}
	return purged, nil
}

// A writing is a writing transaction.
type writing struct {
	tx                        *bbolt.Tx
	meta, policy, due, expiry *bbolt.Bucket
	now                       int64
	sequence                  uint64
	state                     state
	room                      int64 // bytes that may be added before something has to go
	changed                   map[string]bool
	result                    WriteResult
}

// updateIn runs fn in a writing transaction of file. The caller has the turn.
func (s *Store) updateIn(file *boltFile, fn func(*writing) error) error {
	now, before := s.o.Now().Unix(), *file.state.Load()
	return file.update(func(tx *bbolt.Tx) (*state, error) {
		w := &writing{
			tx: tx, meta: tx.Bucket(bucketMeta), policy: tx.Bucket(bucketPolicy),
			due: tx.Bucket(bucketDue), expiry: tx.Bucket(bucketExpiry),
			now: now, state: state{counts: before.counts, heartbeat: now},
			room:    file.maxSize - before.used,
			changed: make(map[string]bool),
		}
		if w.meta == nil || w.policy == nil || w.due == nil || w.expiry == nil {
			return nil, faultf("a bucket is gone")
		}
		w.sequence = w.policy.Sequence() + 1
		err := w.dropStale(s.stale)
		if err == nil {
			err = fn(w)
		}
		if errors.Is(err, bolterrors.ErrIncompatibleValue) {
			err = faultf("a bucket is in the place of a value")
		}
		return &w.state, errors.Join(err, w.finish())
	})
}

// finish writes what is kept of the whole file.
func (w *writing) finish() error {
	return errors.Join(
		w.meta.Put(keyCounts, w.state.counts.encode()),
		w.meta.Put(keyNewest, binary.LittleEndian.AppendUint64(nil, uint64(w.now))),
		w.policy.SetSequence(w.sequence))
}

// dropStale deletes entries of the due index that no record stood behind, unless
// one does by now.
func (w *writing) dropStale(stale chan []byte) error {
	for {
		select {
		case k := <-stale:
			domain := k[dueDomain:]
			if bytes.Equal(entriesOf(domain, w.policy.Get(domain)).due, k) {
				continue
			}
			if err := w.due.Delete(k); err != nil {
				return err
			}
		default:
			return nil
		}
	}
}

// set stores raw for domain, or deletes what is stored if raw is nil.
func (w *writing) set(domain, raw []byte) error {
	old := w.policy.Get(domain)
	was, is := entriesOf(domain, old), entriesOf(domain, raw)
	w.room += footprint(domain, old) - footprint(domain, raw)
	var err error
	if old != nil {
		w.state.counts[countOf(old)]--
	}
	if raw != nil {
		w.state.counts[countOf(raw)]++
		err = w.policy.Put(domain, raw)
	} else {
		err = w.policy.Delete(domain)
	}
	return errors.Join(err, moveEntry(w.due, was.due, is.due), moveEntry(w.expiry, was.expiry, is.expiry))
}

func moveEntry(b *bbolt.Bucket, was, is []byte) error {
	if bytes.Equal(was, is) {
		return nil
	}
	var err error
	if was != nil {
		err = b.Delete(was)
	}
	if is != nil {
		err = errors.Join(err, b.Put(is, nil))
	}
	return err
}

// apply carries out changes, those first that need no room. The old policy of a
// refused one is deleted: it would be answered again after a restart, although a
// newer one was answered before. Without it the domain is discovered anew.
func (w *writing) apply(changes []change) error {
	need := make(map[string]int64, len(changes))
	for _, c := range changes {
		w.changed[string(c.domain)] = true
		need[string(c.domain)] = w.need(c)
	}
	slices.SortStableFunc(changes, func(a, b change) int {
		return cmp.Compare(min(need[string(a.domain)], 1), min(need[string(b.domain)], 1))
	})
	for _, c := range changes {
		if n := need[string(c.domain)]; n > 0 {
			ok, err := w.makeRoom(n, c.raw)
			if err != nil {
				return err
			}
			if !ok {
				w.result.Refused = append(w.result.Refused, string(c.domain))
				c.raw = nil
			}
		}
		if err := w.put(c); err != nil {
			return err
		}
	}
	return nil
}

// need returns the bytes for which room must be made: none where the policy has
// not grown, since nobody loses a policy to what is noted about it.
func (w *writing) need(c change) int64 {
	old := w.policy.Get(c.domain)
	held, err := parseAt(c.domain, old)
	if c.raw == nil || old != nil && (err != nil || c.raw.policySize() <= held.policySize()) {
		return 0
	}
	return footprint(c.domain, c.raw) - footprint(c.domain, old)
}

func (w *writing) put(c change) error {
	if c.raw == nil {
		return w.set(c.domain, nil)
	}
	c.raw.seal(w.sequence)
	return w.set(c.domain, c.raw)
}
