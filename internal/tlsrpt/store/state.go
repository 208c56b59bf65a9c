package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"go.etcd.io/bbolt"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

// Bounds of what deliver stores.
const (
	MaxStateKey   = 2048 // bytes of a state's domain and destination
	maxStateText  = 1024 // bytes of a report id, or of a reason
	maxAddress    = 1024 // bytes of a suppressed address or URL
	MaxSuppressed = 1000
)

// Errors of states and suppressions.
var (
	ErrNoDay      = errors.New("the day is not in the store")
	ErrTooLong    = errors.New("too long to be stored")
	ErrSuppressed = fmt.Errorf("%d addresses are suppressed, which is all that may be", MaxSuppressed)
)

// States returns the states of a domain's day: its own, then those of its destinations. Of
// domain "" it returns the day's own.
func (s *Store) States(day tlsrpt.Day, domain string) (states []tlsrpt.State, err error) {
	prefix := []byte(tlsrpt.State{Domain: domain}.Key())
	err = s.view(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketState).Bucket([]byte(day))
		if b == nil {
			return nil
		}
		c := b.Cursor()
		for k, v := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, v = c.Next() {
			var st tlsrpt.State
			if json.Unmarshal(v, &st) != nil || st.Key() != string(k) {
				return errValue
			}
			states = append(states, st)
		}
		return nil
	})
	return states, err
}

// PutStates stores states, all or none; one with the day and key of a stored state
// replaces it. They are on disk when it returns nil. ErrNoDay: the store holds nothing of
// the day any more.
func (s *Store) PutStates(states []tlsrpt.State) error {
	return s.update(func(tx *bbolt.Tx) error {
		for _, st := range states {
			if len(st.Key()) > MaxStateKey || max(len(st.ReportID), len(st.Reason)) > maxStateText {
				return ErrTooLong
			}
			if tx.Bucket(bucketDay).Bucket([]byte(st.Day)) == nil {
				return ErrNoDay
			}
			b, err := tx.Bucket(bucketState).CreateBucketIfNotExists([]byte(st.Day))
			if err != nil {
				return err
			}
			v, err := json.Marshal(st)
			if err = errors.Join(err, b.Put([]byte(st.Key()), v)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Suppress has no reports sent to an address until a moment; one in the past ends it.
// ErrSuppressed: there are too many.
func (s *Store) Suppress(address string, until time.Time) error {
	if address == "" || len(address) > maxAddress {
		return ErrTooLong
	}
	now := s.o.Now()
	return s.update(func(tx *bbolt.Tx) error {
		list, err := suppressed(tx, now)
		if err != nil {
			return err
		}
		if list[address] = until; !until.After(now) {
			delete(list, address)
		}
		if len(list) > MaxSuppressed {
			return ErrSuppressed
		}
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
