package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

const (
	mergeKeys   = 2500 // keys that one transaction changes at most
	maxPolicies = 64   // policies of a domain and day

	// maxOwn is how many details have a place of their own. The others are folded into
	// one for each result type, so that there are MaxDetails at most.
	maxOwn = tlsrpt.MaxDetails - len(tlsrpt.ResultTypes)
)

// A segment is a sealed segment of the log in memory, sorted by day, domain and policy.
// Sorting takes the memory of the segment, however many domains it has.
type segment struct {
	number  uint64
	batches []logged
	refs    []ref
	texts   map[policyHash][]byte // of the policies whose text stands in the segment
}

func (s *segment) hash(r *ref) *policyHash { return &s.batches[r.batch].policies[r.policy].hash }

func (s *segment) domain(r *ref) []byte {
	return s.batches[r.batch].sessions[r.domain : r.domain+uint32(r.length)]
}

func (s *segment) failures(r *ref) []byte {
	return s.batches[r.batch].sessions[r.domain+uint32(r.length):]
}

func (s *segment) compare(a, b *ref) int {
	if c := strings.Compare(string(s.batches[a.batch].day), string(s.batches[b.batch].day)); c != 0 {
		return c
	}
	if c := bytes.Compare(s.domain(a), s.domain(b)); c != 0 {
		return c
	}
	return bytes.Compare(s.hash(a)[:], s.hash(b)[:])
}

// key is the key of a session's day, domain and policy, in whose order the refs are.
func (s *segment) key(r *ref) []byte {
	return append(dayKey(string(s.batches[r.batch].day), s.domain(r)), s.hash(r)[:]...)
}

// dayKey is prefix, domain and a NUL: so keys have the order of their domains.
func dayKey[T string | []byte](prefix string, domain T) []byte {
	k := make([]byte, 0, len(prefix)+len(domain)+1+hashSize)
	return append(append(append(k, prefix...), domain...), 0)
}

// load reads a segment of the log and sorts it.
func (s *Store) load(number uint64) (*segment, error) {
	batches, torn, err := s.log.read(number)
	if err != nil {
		return nil, err
	}
	if torn > 0 {
		s.o.Log.Warn("the log of TLS sessions ends in the middle of a batch; its sessions are lost",
			"path", s.log.name(number), "bytes", torn)
		s.counts.TornBytes.Add(uint64(torn))
	}
	seg := &segment{number: number, batches: batches, texts: make(map[policyHash][]byte)}
	n := 0
	for i := range batches {
		n += batches[i].n
	}
	seg.refs = make([]ref, 0, n)
	for i := range batches {
		seg.refs = batches[i].appendRefs(seg.refs, uint32(i))
		for _, p := range batches[i].policies {
			if p.text != nil {
				seg.texts[p.hash] = p.text
			}
		}
	}
	slices.SortFunc(seg.refs, func(a, b ref) int { return seg.compare(&a, &b) })
	return seg, nil
}

// A progress is how far the log is merged: up to the end of a segment if after is empty,
// else up to a key of it.
type progress struct {
	segment uint64
	after   []byte
}

func readProgress(tx *bbolt.Tx) (p progress) {
	if v := tx.Bucket(bucketMeta).Get(keyProgress); len(v) >= 8 {
		p = progress{binary.BigEndian.Uint64(v), bytes.Clone(v[8:])}
	}
	return p
}

func (p progress) put(tx *bbolt.Tx) error {
	return tx.Bucket(bucketMeta).Put(keyProgress, append(binary.BigEndian.AppendUint64(nil, p.segment), p.after...))
}

// mergeSealed merges the sealed segments of the log into the days and removes them.
// Each transaction stores how far it came, so that a crash counts nothing twice.
func (s *Store) mergeSealed() error {
	for {
		number, ok := s.firstSealed()
		if !ok {
			return nil
		}
		if err := s.mergeSegment(number); err != nil {
			return fmt.Errorf("merge the log of TLS sessions: %w", err)
		}
		s.removeSealed(number)
	}
}

func (s *Store) mergeSegment(number uint64) error {
	var done progress
	err := s.view(func(tx *bbolt.Tx) error {
		done = readProgress(tx)
		return nil
	})
	if err != nil {
		return err
	}
	seg, err := s.load(number)
	if err != nil {
		return err
	}
	rest := seg.refs
	if done.segment == number {
		at, _ := slices.BinarySearchFunc(rest, done.after, func(r ref, after []byte) int {
			if bytes.Compare(seg.key(&r), after) <= 0 {
				return -1
			}
			return 1
		})
		rest = rest[at:]
	}
	for ended := false; !ended; {
		if s.shut.Load() {
			return ErrClosed
		}
		var m *merging
		room := s.o.MaxSize - s.used()
		err := s.update(func(tx *bbolt.Tx) (err error) {
			m = &merging{seg: seg, tx: tx, room: room}
			ended, err = m.run(rest)
			return err
		})
		if err != nil {
			return err
		}
		rest = rest[m.taken:]
		s.count(m)
	}
	return nil
}

// count counts what a transaction has merged and dropped.
func (s *Store) count(m *merging) {
	s.counts.Merged.Add(m.sessions)
	s.counts.Late.Add(m.late)
	s.counts.Full.Add(m.full)
	s.counts.Crowded.Add(m.crowded)
	s.counts.Unknown.Add(m.unknown)
	s.short = s.short || m.full > 0
	if m.full+m.crowded+m.unknown > 0 {
		s.forgetKnown() // a policy that was not stored is wanted again
	}
}

// A merging is one transaction of a merge.
type merging struct {
	seg   *segment
	tx    *bbolt.Tx
	room  int64 // bytes that may be added before domains not seen before are dropped
	taken int   // sessions dealt with

	day      tlsrpt.Day // that of the buckets
	closed   bool
	sums     *bbolt.Bucket
	policies *bbolt.Bucket

	late, full, crowded, unknown uint64 // sessions dropped
	sessions                     uint64 // sessions counted
}

// run merges keys until there are enough for one transaction, and reports whether the
// segment has ended.
func (m *merging) run(refs []ref) (ended bool, err error) {
	done := progress{segment: m.seg.number}
	for keys := 0; m.taken < len(refs); keys++ {
		if keys == mergeKeys {
			return false, done.put(m.tx)
		}
		group := refs[m.taken:]
		n := 1
		for n < len(group) && m.seg.compare(&group[0], &group[n]) == 0 {
			n++
		}
		if err := m.group(group[:n]); err != nil {
			return false, err
		}
		m.taken += n
		done.after = m.seg.key(&group[0])
	}
	done.after = nil
	return true, done.put(m.tx)
}

// group adds the sessions of one domain, policy and day.
func (m *merging) group(group []ref) error {
	first := &group[0]
	n := uint64(len(group))
	if err := m.open(m.seg.batches[first.batch].day); err != nil {
		return err
	}
	if m.closed {
		m.late += n
		return nil
	}
	hash := m.seg.hash(first)
	key := append(dayKey("", m.seg.domain(first)), hash[:]...)
	old := m.sums.Get(key)
	if old == nil {
		if ok, err := m.admit(key, hash, n); !ok || err != nil {
			return err
		}
	}
	value, err := m.add(old, group)
	if err != nil {
		return fmt.Errorf("%s on %s: %w", m.seg.domain(first), m.day, err)
	}
	m.room -= int64(len(value)-len(old)) * 3 / 2
	m.sessions += n
	return m.sums.Put(key, value)
}

// open opens the buckets of a day.
func (m *merging) open(day tlsrpt.Day) (err error) {
	if m.day == day {
		return nil
	}
	m.day = day
	if m.closed = m.tx.Bucket(bucketClosed).Get([]byte(day)) != nil; m.closed {
		return nil
	}
	m.sums, err = m.tx.Bucket(bucketDay).CreateBucketIfNotExists([]byte(day))
	if err == nil {
		m.policies, err = m.tx.Bucket(bucketPolicy).CreateBucketIfNotExists([]byte(day))
	}
	return err
}

// admit reports whether there may be a new key, of n sessions, and stores its policy.
func (m *merging) admit(key []byte, hash *policyHash, n uint64) (bool, error) {
	known := m.policies.Get(hash[:]) != nil
	text := m.seg.texts[*hash]
	if known {
		text = nil
	}
	need := int64(len(key)+len(text)+64) * 3 / 2 // pages are two thirds full on average
	switch {
	case m.room < need:
		m.full += n
		return false, nil
	case !known && text == nil:
		m.unknown += n
		return false, nil
	case m.crowd(key[:len(key)-hashSize]) >= maxPolicies:
		m.crowded += n
		return false, nil
	}
	m.room -= need
	if known {
		return true, nil
	}
	return true, m.policies.Put(bytes.Clone(hash[:]), text)
}

// crowd counts the policies of a domain.
func (m *merging) crowd(prefix []byte) (n int) {
	c := m.sums.Cursor()
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix) && n < maxPolicies; k, _ = c.Next() {
		n++
	}
	return n
}

// add returns the value old with the sessions added.
func (m *merging) add(old []byte, group []ref) ([]byte, error) {
	d := decoder{b: old}
	var successful, failed uint64
	if old != nil {
		successful, failed = d.uint(), d.uint()
	}
	var sums *details
	for i := range group {
		if !group[i].failed {
			successful++
			continue
		}
		failed++
		if sums == nil {
			sums = newDetails(d.details(), m.room <= 0)
		}
		sums.add(m.seg.failures(&group[i]))
	}
	if d.bad {
		return nil, errValue
	}
	value := appendCounts(nil, successful, failed)
	if sums == nil {
		return append(value, d.b...), nil
	}
	for i := range sums.list {
		value = appendDetail(value, &sums.list[i])
	}
	return value, nil
}

// A details is the details of a policy's day.
type details struct {
	list     []tlsrpt.Detail
	place    map[tlsrpt.Failure]int
	full     bool  // no new failure has a place of its own
	sessions int   // added
	last     []int // the last session that counted, of each in list: it counts once
}

func newDetails(list []tlsrpt.Detail, full bool) *details {
	d := &details{list: list, place: make(map[tlsrpt.Failure]int), full: full, last: make([]int, len(list))}
	for i := range list {
		d.place[list[i].Failure] = i
	}
	return d
}

// add adds the failures of one session.
func (d *details) add(encoded []byte) {
	d.sessions++
	in := decoder{b: encoded}
	for n := in.uint(); n > 0; n-- {
		f := in.failure()
		if in.bad {
			return
		}
		i, ok := d.place[f]
		if !ok && (d.full || len(d.list) >= maxOwn) {
			f = tlsrpt.Failure{Result: f.Result}
			i, ok = d.place[f]
		}
		if !ok {
			i = len(d.list)
			d.place[f] = i
			d.list, d.last = append(d.list, tlsrpt.Detail{Failure: f}), append(d.last, 0)
		}
		if d.last[i] != d.sessions {
			d.last[i] = d.sessions
			d.list[i].Sessions++
		}
	}
}
