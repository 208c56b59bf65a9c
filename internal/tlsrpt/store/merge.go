package store

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sort"

	"go.etcd.io/bbolt"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

const (
	mergeKeys   = 2500 // keys of the days that one transaction changes at most, each with a policy
	maxPolicies = 64   // policies of a domain and day
)

// mergeSealed merges the sealed segments of the log into the days, and removes them.
func (s *Store) mergeSealed() error {
	for {
		names := s.log.sealed()
		if len(names) == 0 {
			return nil
		}
		err := s.mergeSegment(names[0])
		if err == nil {
			err = os.Remove(names[0]) // for good before the next one begins: only one segment's progress is stored
			syncFolder(s.path)
		}
		if err != nil {
			return fmt.Errorf("merge the log of TLS sessions: %w", err)
		}
	}
}

// mergeSegment merges a segment, some keys in each transaction. Each stores how far it
// came, so a crash counts nothing twice.
func (s *Store) mergeSegment(path string) error {
	seg, err := readSegment(path)
	if err != nil {
		return err
	}
	if seg.torn > 0 {
		s.o.Log.Warn("a part of the log of TLS sessions cannot be read, as after a crash or an update of this program; it is lost",
			"path", path, "bytes", seg.torn)
	}
	head := append([]byte(filepath.Base(path)), 0) // of the progress of this segment
	for rest := seg.sessions; len(rest) > 0; {
		if s.shut.Load() {
			return ErrClosed
		}
		m := merging{seg: seg, full: s.used() >= s.o.MaxSize, dropped: make(map[string]uint64)}
		err := s.update(func(tx *bbolt.Tx) error {
			m.tx = tx
			meta, last := tx.Bucket(bucketMeta), []byte(nil)
			if done, ok := bytes.CutPrefix(meta.Get(keyProgress), head); ok {
				last = done
				rest = rest[sort.Search(len(rest), func(i int) bool { return bytes.Compare(key(rest[i]), done) > 0 }):]
			}
			for n := 0; n < mergeKeys && len(rest) > 0; n++ {
				k, same := key(rest[0]), 1
				for same < len(rest) && bytes.HasPrefix(rest[same], k) {
					same++
				}
				if err := m.add(k, rest[:same]); err != nil {
					return err
				}
				last, rest = k, rest[same:]
			}
			return meta.Put(keyProgress, append(head, last...))
		})
		if err != nil {
			return err
		}
		s.count(m.sessions, m.dropped)
	}
	return nil
}

// A merging is one transaction of a merge.
type merging struct {
	seg  *segment
	tx   *bbolt.Tx
	full bool // no new domain, policy or kind of failure gets a place

	sessions uint64            // counted
	dropped  map[string]uint64 // by reason, see Stats
}

// add adds the sessions of one key.
func (m *merging) add(key []byte, sessions [][]byte) error {
	n := uint64(len(sessions))
	day, domainKey := key[:dayLen], key[dayLen:]
	if m.tx.Bucket(bucketStage).Get(day) != nil {
		m.dropped["late"] += n
		return nil
	}
	sums, err := m.tx.Bucket(bucketDay).CreateBucketIfNotExists(day)
	if err != nil {
		return err
	}
	var sum tlsrpt.Summary
	if old := sums.Get(domainKey); old == nil {
		if why, err := m.admit(day, domainKey, sums); why != "" || err != nil {
			m.dropped[why] += n
			return err
		}
	} else if json.Unmarshal(old, &sum) != nil {
		return errValue
	}
	for _, session := range sessions {
		count(&sum, session[len(key):], m.full)
	}
	value, err := json.Marshal(&sum)
	if err != nil {
		return err
	}
	m.sessions += n
	return sums.Put(domainKey, value)
}

// admit stores the policy of a new key of the day. If there is no room for the key, it
// returns why.
func (m *merging) admit(day, key []byte, sums *bbolt.Bucket) (why string, err error) {
	if m.full {
		return "full", nil
	}
	domain, hash := key[:len(key)-hashSize], key[len(key)-hashSize:]
	n, c := 0, sums.Cursor()
	for k, _ := c.Seek(domain); bytes.HasPrefix(k, domain); k, _ = c.Next() {
		if n++; n == maxPolicies {
			return "policies", nil
		}
	}
	policies, err := m.tx.Bucket(bucketPolicy).CreateBucketIfNotExists(day)
	if err == nil && policies.Get(hash) == nil {
		err = policies.Put(hash, m.seg.texts[policyHash(hash)])
	}
	return "", err
}

// count counts a session: a success if failures is empty, else the JSON of its failures.
// full: no new failure gets a place of its own.
func count(sum *tlsrpt.Summary, failures []byte, full bool) {
	if len(failures) == 0 {
		sum.Successful++
		return
	}
	sum.Failed++
	var list []tlsrpt.Failure
	if json.Unmarshal(failures, &list) != nil {
		return
	}
	for _, f := range list {
		sum.Details = tlsrpt.Count(sum.Details, f, 1, full)
	}
}
