package cache

import (
	"bytes"
	"encoding/binary"
	"math"
	"slices"
	"time"

	"go.etcd.io/bbolt"
)

// Due returns the records that are due in lane at now, at most limit and MaxPage,
// the least life left first. If fewer are due, next is when the next one will be,
// zero if there is none.
//
// Life left counts in slots of six hours; within a slot, the record that has been
// due longest comes first. A record stays due until it is written with another
// time. Due reads the records that it returns, and one index entry for each slot.
func (s *Store) Due(lane Lane, now time.Time, limit int) (due []Due, next time.Time, err error) {
	var keys, stale [][]byte
	var soonest int64
	limit = min(limit, MaxPage)
	err = s.view(func(tx *bbolt.Tx) error {
		keys, stale, due, soonest = nil, nil, nil, 0
		err := ascendLane(tx, lane, func(k []byte, at int64) (seek bool, err error) {
			if at > now.Unix() {
				if soonest == 0 || at < soonest {
					soonest = at
				}
				return true, nil
			}
			keys = append(keys, bytes.Clone(k))
			if len(keys)%MaxPage == 0 {
				err = errStop
			}
			return false, err
		})
		// Old files may have several numbers for a lane: sort across them.
		slices.SortStableFunc(keys, func(a, b []byte) int { return bytes.Compare(a[dueAtSlot:], b[dueAtSlot:]) })
		for i := 0; i < len(keys) && len(due) < limit && err == nil; i++ {
			domain := keys[i][dueAtDomain:]
			raw := tx.Bucket(bucketPolicy).Get(domain)
			if own, _, _ := entriesOf(domain, raw); !bytes.Equal(own, keys[i]) {
				stale = append(stale, keys[i])
			} else if v, damage := parse(domain, raw); damage != nil {
				err = faultf("the policy of %q: %v", domain, damage)
			} else {
				due = append(due, Due{string(domain), timeOf(v.Due), timeOf(v.Expires)})
			}
		}
		return err
	})
	if len(stale) > 0 {
		s.stale.Store(&stale)
	}
	if len(due) < limit {
		next = timeOf(soonest)
	}
	return due, next, err
}

// ascendLane calls fn with the due entries of a lane, under each number that the
// lane has in the file. If fn returns seek, ascendLane continues in the next slot.
func ascendLane(tx *bbolt.Tx, lane Lane, fn func(k []byte, at int64) (seek bool, err error)) error {
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
			seek, err := fn(k, int64(binary.BigEndian.Uint64(k[dueAtTime:])))
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
