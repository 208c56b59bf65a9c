package cache

import (
	"bytes"
	"encoding/binary"
	"math"
	"slices"
	"strings"
	"sync"
	"time"
)

// lines remember, for each lane, until when nothing is due, so that asking an
// idle store again and again reads nothing.
type lines struct {
	mu         sync.Mutex
	generation uint64          // counts changes of the due index
	until      [maxLanes]int64 // nothing is due before; 0: not known
}

// forget is for an index that was made anew.
func (l *lines) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.generation++
	l.until = [maxLanes]int64{}
}

// maxStale bounds the index entries that wait to be taken out.
const maxStale = 1024

// stale are entries of the due index beside those of their records: damaged
// ones that were replaced leave such. The next write takes them out.
type stale struct {
	mu   sync.Mutex
	keys map[string]struct{}
}

func (st *stale) add(key []byte) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.keys == nil {
		st.keys = make(map[string]struct{})
	}
	if len(st.keys) < maxStale {
		st.keys[string(key)] = struct{}{}
	}
}

func (st *stale) take() map[string]struct{} {
	st.mu.Lock()
	defer st.mu.Unlock()
	keys := st.keys
	st.keys = nil
	return keys
}

// Due returns what is due in lane at now, at most max of it and at most
// MaxPage, that with the least life left first. If fewer than max are due, next
// says when the next one will be; it is zero if none will.
//
// Life left is told apart by slots of six hours: of two policies that run out
// within the same, that which has been due longer counts as the more urgent
// when not both can be returned. A record stays due until it is written with
// another time.
func (s *Store) Due(lane Lane, now time.Time, max int) (due []Due, next time.Time, err error) {
	if lane >= maxLanes || max <= 0 {
		return nil, time.Time{}, nil
	}
	at := now.Unix()
	s.lines.mu.Lock()
	until, generation := s.lines.until[lane], s.lines.generation
	s.lines.mu.Unlock()
	if until > at && s.snap.Load() != nil {
		return nil, nextOf(until), nil
	}

	q := dueWalk{store: s, lane: lane, now: at, max: min(max, MaxPage), next: math.MaxInt64}
	for from := []byte{byte(lane)}; from != nil; {
		if from, err = q.page(from); err != nil {
			return nil, time.Time{}, err
		}
	}
	slices.SortStableFunc(q.found, func(a, b Due) int {
		if c := a.Expires.Compare(b.Expires); c != 0 {
			return c
		}
		return strings.Compare(a.Domain, b.Domain)
	})
	if len(q.found) == q.max {
		return q.found, time.Time{}, nil
	}
	if len(q.found) == 0 && !q.bad {
		s.lines.mu.Lock()
		if s.lines.generation == generation {
			s.lines.until[lane] = q.next
		}
		s.lines.mu.Unlock()
	}
	return q.found, nextOf(q.next), nil
}

func nextOf(until int64) time.Time {
	if until == math.MaxInt64 {
		return time.Time{}
	}
	return timeOf(until)
}

// A dueWalk goes through one lane of the due index: in each slot of the expiry
// it takes what is due, and jumps to the next slot at the first that is not. So
// it reads what is due, and one entry more for each slot.
type dueWalk struct {
	store *Store
	lane  Lane
	now   int64
	max   int
	found []Due
	next  int64
	read  int  // entries
	bad   bool // something could not be read
}

// page reads on from the key from, through MaxPage keys at most, and returns
// the key to go on from, nil at the end. What cannot be read does not count: if
// it did, there may be no key to go on from.
func (q *dueWalk) page(from []byte) ([]byte, error) {
	sn := q.store.current()
	if sn == nil {
		return nil, ErrClosed
	}
	defer sn.release()
	w := newWalk(&sn.due, from)
	for keys := 0; keys < MaxPage; keys++ {
		if len(q.found) == q.max {
			return nil, nil
		}
		ended := false
		more, err := w.next(func(k, _ []byte) error {
			q.read++
			if len(k) <= dueDomain {
				return indexError(&sn.due, "too short an entry")
			}
			if Lane(k[0]) != q.lane {
				ended = true
				return nil
			}
			due := int64(binary.BigEndian.Uint64(k[dueDue:]))
			slot := binary.BigEndian.Uint32(k[dueSlot:])
			if due > q.now {
				q.next = min(q.next, due)
				if slot == math.MaxUint32 {
					ended = true
					return nil
				}
				w.seek(binary.BigEndian.AppendUint32([]byte{k[0]}, slot+1))
				return nil
			}
			return q.take(sn, k, due, slot)
		})
		if err != nil {
			q.bad = true
			q.store.noticed(err)
			keys--
		}
		if !more || ended {
			return nil, nil
		}
	}
	if !w.started {
		return w.from, nil
	}
	return append(w.last, 0), nil
}

// take looks at the record behind the entry k, which is due. A damaged record
// is due too: to be fetched anew.
//
// An entry that is not its record's is left over where a damaged record was
// replaced, if the right one stands in the index. If not, a bit of the index has
// changed, and only a rebuild brings the record back to where it is looked at.
func (q *dueWalk) take(sn *snapshot, k []byte, due int64, slot uint32) error {
	domain := k[dueDomain:]
	raw, err := sn.policy.get(domain)
	if err != nil {
		return err
	}
	if raw == nil {
		return indexError(&sn.due, "an entry without a policy")
	}
	expires := int64(slot) * expirySlot
	if v, err := parseAt(domain, raw); err == nil {
		if own := keysOf(domain, v).due; !bytes.Equal(own, k) {
			return q.left(sn, k, own)
		}
		expires = v.Expires()
	}
	q.found = append(q.found, Due{Domain: string(domain), Due: timeOf(due), Expires: timeOf(expires)})
	return nil
}

// left deals with the entry k of a record whose own entry is another.
func (q *dueWalk) left(sn *snapshot, k, own []byte) error {
	if own != nil {
		there, err := sn.due.get(own)
		if err != nil {
			return err
		}
		if there == nil {
			return indexError(&sn.due, "a wrong entry in the place of a policy's own")
		}
	}
	q.store.stale.add(k)
	return nil
}

func indexError(t *tree, has string) error {
	return &pageError{t.root, "is the root of an index that has " + has}
}

// DueByHour counts the records that fall due in each of the next hours, those
// that are overdue in the first. It reads maxCounted index entries at most;
// complete is false if there are more, and the counts are then too low.
func (s *Store) DueByHour(now time.Time, hours int) (counts []int, complete bool, err error) {
	return make([]int, hours), true, nil
}
