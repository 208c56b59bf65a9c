package store

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"

	"go.etcd.io/bbolt"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

const (
	mergeKeys   = 2500 // keys of the days that one transaction changes at most, each with a policy
	maxPolicies = 64   // policies of a domain and day

	// maxOwn is how many details have a place of their own. The others are folded into
	// one for each result type, so that there are MaxDetails at most.
	maxOwn = tlsrpt.MaxDetails - len(tlsrpt.ResultTypes)
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

func (s *Store) mergeSegment(name string) error {
	seg, err := readSegment(name)
	if err != nil {
		return err
	}
	if seg.torn > 0 {
		s.o.Log.Warn("the log of TLS sessions cannot be read to its end, as after a crash; what is there is lost",
			"path", name, "bytes", seg.torn)
	}
	for ended := false; !ended; {
		if s.shut.Load() {
			return ErrClosed
		}
		m := merging{seg: seg, room: s.o.MaxSize - s.used(), dropped: make(map[string]uint64)}
		err := s.update(func(tx *bbolt.Tx) (err error) {
			m.tx = tx
			ended, err = m.run(filepath.Base(name))
			return err
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
	room int64 // bytes that may be added before domains not seen before are dropped

	sessions uint64            // counted
	dropped  map[string]uint64 // by reason, see Stats
}

// run goes on with the segment where the last transaction ended, and stores how far it
// came: so a crash counts nothing twice. It reports whether the segment has ended.
func (m *merging) run(name string) (ended bool, err error) {
	meta, head := m.tx.Bucket(bucketMeta), append([]byte(name), 0)
	key, again := bytes.CutPrefix(meta.Get(keyProgress), head)
	rest := m.seg.sessions
	if again {
		rest = rest[sort.Search(len(rest), func(i int) bool {
			return bytes.Compare(rest[i], key) > 0 && !bytes.HasPrefix(rest[i], key)
		}):]
	}
	for keys := 0; keys < mergeKeys && len(rest) > 0; keys++ {
		key = rest[0][:keyLen(rest[0])]
		n := 1
		for n < len(rest) && bytes.HasPrefix(rest[n], key) {
			n++
		}
		if err := m.group(key, rest[:n]); err != nil {
			return false, err
		}
		rest = rest[n:]
	}
	return len(rest) == 0, meta.Put(keyProgress, append(head, key...))
}

// group adds the sessions of one key.
func (m *merging) group(key []byte, sessions [][]byte) error {
	n, keySize := uint64(len(sessions)), len(key)
	day, key := key[:dayLen], key[dayLen:]
	if m.tx.Bucket(bucketStage).Get(day) != nil {
		m.dropped["late"] += n
		return nil
	}
	sums, err := m.tx.Bucket(bucketDay).CreateBucketIfNotExists(day)
	if err != nil {
		return err
	}
	var sum tlsrpt.Summary
	old := sums.Get(key)
	if old == nil {
		if why, err := m.admit(day, key, sums); why != "" || err != nil {
			m.dropped[why] += n
			return err
		}
	} else if json.Unmarshal(old, &sum) != nil {
		return errValue
	}
	for _, session := range sessions {
		add(&sum, session[keySize:], m.room <= 0)
	}
	value, err := json.Marshal(&sum)
	if err != nil {
		return err
	}
	m.room -= int64(len(value)-len(old)) * 3 / 2 // pages are two thirds full on average
	m.sessions += n
	return sums.Put(key, value)
}

// admit stores the policy of a new key of the day. If there is no room for the key, it
// returns why.
func (m *merging) admit(day, key []byte, sums *bbolt.Bucket) (why string, err error) {
	policies, err := m.tx.Bucket(bucketPolicy).CreateBucketIfNotExists(day)
	if err != nil {
		return "", err
	}
	domain, hash := key[:len(key)-hashSize], key[len(key)-hashSize:]
	var text []byte
	if policies.Get(hash) == nil {
		text = m.seg.texts[policyHash(hash)]
	}
	need := int64(len(key)+len(text)+64) * 3 / 2
	if m.room < need {
		return "full", nil
	}
	n, c := 0, sums.Cursor()
	for k, _ := c.Seek(domain); bytes.HasPrefix(k, domain); k, _ = c.Next() {
		if n++; n == maxPolicies {
			return "policies", nil
		}
	}
	m.room -= need
	if text != nil {
		err = policies.Put(hash, text)
	}
	return "", err
}

// add adds a session: nothing if it succeeded, else the JSON of its failures. full: no
// new failure gets a place of its own.
func add(sum *tlsrpt.Summary, failures []byte, full bool) {
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
		place := func() int {
			return slices.IndexFunc(sum.Details, func(d tlsrpt.Detail) bool { return d.Failure == f })
		}
		i := place()
		if i < 0 && (full || len(sum.Details) >= maxOwn) {
			f = tlsrpt.Failure{Result: f.Result}
			i = place()
		}
		if i < 0 {
			i = len(sum.Details)
			sum.Details = append(sum.Details, tlsrpt.Detail{Failure: f})
		}
		sum.Details[i].Sessions++
	}
}
