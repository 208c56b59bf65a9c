package store

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"errors"
	"maps"
	"time"

	"go.etcd.io/bbolt"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

// This file: how far the reports of days are.

const deliveriesAtOnce = 1000 // read in one transaction

// ErrNoDay is the error of a delivery of a day that the store does not have.
var ErrNoDay = errors.New("the day is not in the store")

// RelayID returns a random name of this relay in a fleet, which lasts as long as the file.
func (s *Store) RelayID() (id string, err error) {
	err = s.update(func(tx *bbolt.Tx) error {
		meta := tx.Bucket(bucketMeta)
		id = cmp.Or(string(meta.Get(keyRelay)), rand.Text()[:16])
		return meta.Put(keyRelay, []byte(id))
	})
	return id, err
}

// Stage returns how far a day is.
func (s *Store) Stage(day tlsrpt.Day) (stage tlsrpt.Stage, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		stage = tlsrpt.Stage(tx.Bucket(bucketStage).Get([]byte(day)))
		return nil
	})
	return stage, err
}

// SetStage stores how far a day is. What the log has of a day that is no longer open is
// dropped when it is merged. A stage stays for good: it is 20 bytes a day.
func (s *Store) SetStage(day tlsrpt.Day, stage tlsrpt.Stage) error {
	return s.update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketStage).Put([]byte(day), []byte(stage)) })
}

// Deliveries calls f with each delivery of a day, in the order of domains, until f fails.
// f may write to the store.
func (s *Store) Deliveries(day tlsrpt.Day, f func(tlsrpt.Delivery) error) error {
	for after, more := "", true; more; {
		var page []tlsrpt.Delivery
		err := s.view(func(tx *bbolt.Tx) error {
			b := tx.Bucket(bucketDelivery).Bucket([]byte(day))
			if b == nil {
				return nil
			}
			c := b.Cursor()
			for k, v := c.Seek([]byte(after + "\x00")); k != nil && len(page) < deliveriesAtOnce; k, v = c.Next() {
				var d tlsrpt.Delivery
				if json.Unmarshal(v, &d) != nil || d.Domain != string(k) || len(d.To) == 0 {
					return errValue
				}
				page = append(page, d)
			}
			return nil
		})
		for _, d := range page {
			if err != nil {
				return err
			}
			after, err = d.Domain, f(d)
		}
		if more = len(page) == deliveriesAtOnce; err != nil {
			return err
		}
	}
	return nil
}

// Delivery returns the delivery of a domain's day, or a zero one.
func (s *Store) Delivery(day tlsrpt.Day, domain string) (d tlsrpt.Delivery, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketDelivery).Bucket([]byte(day))
		if b == nil {
			return nil
		}
		if v := b.Get([]byte(domain)); v != nil && json.Unmarshal(v, &d) != nil {
			return errValue
		}
		return nil
	})
	return d, err
}

// PutDeliveries stores deliveries, all or none. They are on disk when it returns nil.
// ErrNoDay: the store holds nothing of the day any more.
func (s *Store) PutDeliveries(deliveries ...tlsrpt.Delivery) error {
	return s.update(func(tx *bbolt.Tx) error {
		for _, d := range deliveries {
			if tx.Bucket(bucketDay).Bucket([]byte(d.Day)) == nil {
				return ErrNoDay
			}
			b, err := tx.Bucket(bucketDelivery).CreateBucketIfNotExists([]byte(d.Day))
			if err != nil {
				return err
			}
			v, err := json.Marshal(d)
			if err = errors.Join(err, b.Put([]byte(d.Domain), v)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Suppress has no reports sent to an address, as report.Destination.Name has it, until a
// moment; one in the past ends it.
func (s *Store) Suppress(address string, until time.Time) error {
	return s.update(func(tx *bbolt.Tx) error {
		list, err := suppressed(tx, s.o.Now())
		if err != nil {
			return err
		}
		list[address] = until
		v, err := json.Marshal(list)
		return errors.Join(err, tx.Bucket(bucketMeta).Put(keySuppressed, v))
	})
}

// Suppressed returns the addresses that get no reports now, and until when.
func (s *Store) Suppressed() (list map[string]time.Time, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		list, err = suppressed(tx, s.o.Now())
		return err
	})
	return list, err
}

func suppressed(tx *bbolt.Tx, now time.Time) (map[string]time.Time, error) {
	list := make(map[string]time.Time)
	if v := tx.Bucket(bucketMeta).Get(keySuppressed); v != nil && json.Unmarshal(v, &list) != nil {
		return nil, errValue
	}
	maps.DeleteFunc(list, func(_ string, until time.Time) bool { return !until.After(now) })
	return list, nil
}
