package cache

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"time"

	"go.etcd.io/bbolt"
)

// maxCounted bounds the index entries that DueByHour reads.
const maxCounted = 200_000

// Due returns what is due in lane at now, limit and MaxPage records at most,
// those with the least life left first. If fewer are due, next says when the next
// one will be; zero: none will.
//
// Life left is told apart by slots of six hours; within one the record that has
// been due for longest comes first. A record stays due until it is written with
// another time. Due reads what it returns, and one entry for each slot.
func (s *Store) Due(lane Lane, now time.Time, limit int) (due []Due, next time.Time, err error) {
	type entry struct {
		Due
		slot uint32
	}
	var list []entry
	limit = min(limit, MaxPage)
	soonest := int64(math.MaxInt64)
	err = s.view(func(tx *bbolt.Tx) error {
		list, soonest = nil, math.MaxInt64
		policies, found, last := tx.Bucket(bucketPolicy), 0, uint8(0)
		if policies == nil {
			return faultf("it has no policies")
		}
		return ascendLane(tx, lane, func(k []byte, slot uint32, at int64) (seek bool, err error) {
			if k[0] != last {
				found, last = 0, k[0]
			}
			if found == limit {
				return false, errStop
			}
			if at > now.Unix() {
				soonest = min(soonest, at)
				return true, nil
			}
			domain := k[dueAtDomain:]
			raw := policies.Get(domain)
			e := entry{Due{string(domain), timeOf(at), timeOf(int64(slot) * dueSlot)}, slot}
			if v, err := parse(domain, raw); err == nil {
				e.Expires = timeOf(v.Expires)
				if own, _, _ := entriesOf(domain, raw); !bytes.Equal(own, k) {
					raw = nil
				}
			}
			if raw == nil { // the entry of a record that is gone, or of another time
				select {
				case s.stale <- bytes.Clone(k):
				default:
				}
				return false, nil
			}
			list = append(list, e)
			found++
			return false, nil
		})
	})
	slices.SortStableFunc(list, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.slot, b.slot), a.Due.Due.Compare(b.Due.Due))
	})
	for _, e := range list[:min(len(list), limit)] {
		due = append(due, e.Due)
	}
	if len(due) < limit && soonest != math.MaxInt64 {
		next = timeOf(soonest)
	}
	return due, next, err
}

// ascendLane goes through the entries of a lane in the due index, under all
// numbers that it has in the file. If fn returns seek, it goes on in the next slot.
func ascendLane(tx *bbolt.Tx, lane Lane, fn func(k []byte, slot uint32, at int64) (seek bool, err error)) error {
	for n := range uint8(maxLanes) {
		if laneOf(n) != lane {
			continue
		}
		err := ascend(tx, bucketDue, []byte{n}, func(k, _ []byte) ([]byte, error) {
			if k[0] != n {
				return nil, errStop
			}
			if len(k) <= dueAtDomain {
				return nil, nil
			}
			slot := binary.BigEndian.Uint32(k[dueAtSlot:])
			seek, err := fn(k, slot, int64(binary.BigEndian.Uint64(k[dueAtTime:])))
			switch {
			case err != nil || !seek:
				return nil, err
			case slot == math.MaxUint32:
				return nil, errStop
			}
			return binary.BigEndian.AppendUint32([]byte{n}, slot+1), nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// DueByHour counts the records that fall due in each of the next hours, overdue
// ones in the first. It reads maxCounted index entries at most; where there are
// more, complete is false and the counts are too low.
func (s *Store) DueByHour(now time.Time, hours int) (counts []int, complete bool, err error) {
	err = s.view(func(tx *bbolt.Tx) (err error) {
		counts, complete = make([]int, hours), true
		read := 0
		for _, lane := range []Lane{LaneNormal, LaneTroubled} {
			err = errors.Join(err, ascendLane(tx, lane, func(_ []byte, _ uint32, at int64) (seek bool, err error) {
				if read++; read > maxCounted {
					complete = false
					return false, errStop
				}
				hour := max(at-now.Unix(), 0) / 3600
				if hour >= int64(hours) {
					return true, nil
				}
				counts[hour]++
				return false, nil
			}))
		}
		return err
	})
	return counts, complete, err
}
