package cache

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"math"
	"slices"
	"time"

	"go.etcd.io/bbolt"
)

// maxCounted bounds the index entries that DueByHour reads.
const maxCounted = 200_000

// stored returns the numbers that a lane has in the file, old ones too.
func (l Lane) stored() []byte {
	switch l {
	case LaneNormal:
		return []byte{byte(LaneNormal), 1, 2, 3, 4, 5, 6}
	case LaneTroubled:
		return []byte{byte(LaneTroubled), 7}
	}
	return []byte{byte(l)}
}

// Due returns what is due in lane at now, limit and MaxPage records at most,
// those with the least life left first. If fewer are due, next says when the next
// one will be; zero: none will.
//
// Life left is told apart by slots of six hours; within one the record that has
// been due for longest comes first. A record stays due until it is written with
// another time. Due reads what it returns, and one entry for each slot.
func (s *Store) Due(lane Lane, now time.Time, limit int) (due []Due, next time.Time, err error) {
	type found struct {
		Due
		slot uint32
	}
	var list []found
	soonest := int64(math.MaxInt64)
	limit = min(limit, MaxPage)
	err = s.view(func(tx *bbolt.Tx) error {
		list, soonest = nil, math.MaxInt64
		policies := tx.Bucket(bucketPolicy)
		if policies == nil {
			return faultf("the bucket of the policies is gone")
		}
		for _, n := range lane.stored() {
			count := 0
			err := ascendLane(tx, n, func(k []byte, slot uint32, at int64) ([]byte, error) {
				if at > now.Unix() {
					soonest = min(soonest, at)
					return nextSlot(n, slot)
				}
				if count == limit {
					return nil, errStop
				}
				domain := k[dueDomain:]
				raw := policies.Get(domain)
				d := Due{Domain: string(domain), Due: timeOf(at), Expires: timeOf(int64(slot) * dueSlotWidth)}
				v, err := parseAt(domain, raw)
				switch {
				case err == nil && bytes.Equal(entriesOf(domain, v).due, k):
					d.Expires = timeOf(v.time(offExpires))
				case err == nil || raw == nil:
					select {
					case s.stale <- bytes.Clone(k):
					default:
					}
					return nil, nil
				}
				list = append(list, found{d, slot})
				count++
				return nil, nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, time.Time{}, err
	}
	slices.SortStableFunc(list, func(a, b found) int {
		return cmp.Or(cmp.Compare(a.slot, b.slot), a.Due.Due.Compare(b.Due.Due))
	})
	for _, f := range list[:min(len(list), limit)] {
		due = append(due, f.Due)
	}
	if len(due) < limit && soonest != math.MaxInt64 {
		next = timeOf(soonest)
	}
	return due, next, nil
}

// ascendLane goes through the due index of one number of a lane.
func ascendLane(tx *bbolt.Tx, lane byte, fn func(k []byte, slot uint32, at int64) (seek []byte, err error)) error {
	return ascend(tx, bucketDue, []byte{lane}, func(k, _ []byte) ([]byte, error) {
		if k[0] != lane {
			return nil, errStop
		}
		if len(k) <= dueDomain {
			return nil, nil
		}
		return fn(k, binary.BigEndian.Uint32(k[dueSlot:]), int64(binary.BigEndian.Uint64(k[dueTime:])))
	})
}

// nextSlot returns the first key of the slot after slot.
func nextSlot(lane byte, slot uint32) ([]byte, error) {
	if slot == math.MaxUint32 {
		return nil, errStop
	}
	return binary.BigEndian.AppendUint32([]byte{lane}, slot+1), nil
}

// DueByHour counts the records that fall due in each of the next hours, overdue
// ones in the first. It reads maxCounted index entries at most; where there are
// more, complete is false and the counts are too low.
func (s *Store) DueByHour(now time.Time, hours int) (counts []int, complete bool, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		counts, complete = make([]int, hours), true
		read := 0
		for _, n := range append(LaneNormal.stored(), LaneTroubled.stored()...) {
			err := ascendLane(tx, n, func(_ []byte, slot uint32, at int64) ([]byte, error) {
				if read++; read > maxCounted {
					complete = false
					return nil, errStop
				}
				hour := max(at-now.Unix(), 0) / 3600
				if hour >= int64(hours) {
					return nextSlot(n, slot)
				}
				counts[hour]++
				return nil, nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	return counts, complete, err
}
