package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

const (
	closeAfter = 10 * time.Minute // after a day's end, for batches on their way
	// unreported is how long after its end a day without a state counts as delivered:
	// nobody reports.
	unreported = 48 * time.Hour
)

// Upkeep does what is due: it merges the log once an hour and where a segment is full,
// closes days, and deletes those that are too old or for which there is no room. After an
// error, call it again in a minute.
func (s *Store) Upkeep() (err error) {
	s.turn.Lock()
	defer s.turn.Unlock()
	defer func() {
		if p := recover(); p != nil { // nothing here may end the daemon
			err = fmt.Errorf("bug: recovered from a panic; please report it: %v\n%s", p, debug.Stack())
		}
		s.mu.Lock()
		s.stats.Err = err
		s.mu.Unlock()
	}()
	if s.shut.Load() {
		return ErrClosed
	}
	if err := s.reopen(); err != nil {
		return err
	}
	now := s.o.Now()
	if err := s.prune(now); err != nil { // first: it makes room
		return err
	}
	ending, err := s.ending(now)
	if err != nil {
		return err
	}
	if len(ending) > 0 || !now.Truncate(time.Hour).Equal(s.lastMerge.Truncate(time.Hour)) {
		if err := s.log.seal(); err != nil {
			return err
		}
		s.lastMerge = now
	}
	if err := s.mergeSealed(); err != nil {
		return err
	}
	s.starts.Forget()
	return s.close(ending, now)
}

// Merge merges the log now, so that Load sees all that was written.
func (s *Store) Merge() error {
	s.turn.Lock()
	defer s.turn.Unlock()
	if err := s.reopen(); err != nil {
		return err
	}
	return errors.Join(s.log.seal(), s.mergeSealed())
}

// ending returns the days that are to be closed now. A day that is closed stays so,
// however the clock jumps.
func (s *Store) ending(now time.Time) (days []tlsrpt.Day, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketDay).ForEachBucket(func(k []byte) error {
			day := tlsrpt.Day(k)
			if tx.Bucket(bucketClosed).Get(k) == nil && !now.Before(day.End().Add(closeAfter)) {
				days = append(days, day)
			}
			return nil
		})
	})
	return days, err
}

// close marks days as closed. What the log has of them from now on is dropped when it is
// merged. A mark stays for good: it is 20 bytes a day.
func (s *Store) close(days []tlsrpt.Day, now time.Time) error {
	if len(days) == 0 {
		return nil
	}
	return s.update(func(tx *bbolt.Tx) (err error) {
		for _, day := range days {
			err = errors.Join(err, tx.Bucket(bucketClosed).Put([]byte(day), []byte(now.UTC().Format(time.RFC3339))))
		}
		return err
	})
}

// prune deletes the days that are too old, and delivered ones, the oldest first, while
// there is little room.
func (s *Store) prune(now time.Time) error {
	days, err := s.Days()
	for _, day := range days {
		var done bool
		if err == nil && s.used() > s.o.MaxSize/8*7 {
			if done, err = s.delivered(day, now); done {
				s.o.Log.Warn("little room for TLS sessions: a delivered day is deleted before its time", "path", s.path, "day", day)
			}
		}
		if err == nil && (done || now.Sub(day.End()) > s.o.Keep) {
			err = s.drop(day)
		}
	}
	return err
}

// delivered reports whether nothing is left to be reported of a day.
func (s *Store) delivered(day tlsrpt.Day, now time.Time) (done bool, err error) {
	closed, err := s.Closed(day, now)
	if err != nil || !closed {
		return false, err
	}
	own, err := s.States(day, "")
	if len(own) == 0 {
		return err == nil && now.Sub(day.End()) > unreported, err
	}
	return own[0].Kind == tlsrpt.Accepted, nil
}

// drop deletes a day.
func (s *Store) drop(day tlsrpt.Day) error {
	return s.update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketDay, bucketPolicy, bucketState} {
			if err := tx.Bucket(name).DeleteBucket([]byte(day)); err != nil && !errors.Is(err, bolterrors.ErrBucketNotFound) {
				return err
			}
		}
		return nil
	})
}

// Days returns the days that hold data, the oldest first.
func (s *Store) Days() (days []tlsrpt.Day, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketDay).ForEachBucket(func(k []byte) error {
			days = append(days, tlsrpt.Day(k))
			return nil
		})
	})
	return days, err
}

// Closed reports whether a day is closed: merged, and nothing more is counted for it.
func (s *Store) Closed(day tlsrpt.Day, _ time.Time) (closed bool, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		closed = tx.Bucket(bucketClosed).Get([]byte(day)) != nil
		return nil
	})
	return closed, err
}

// Domains returns the recipient domains of a day that come after a name, in order, limit
// at most.
func (s *Store) Domains(day tlsrpt.Day, after string, limit int) (domains []string, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketDay).Bucket([]byte(day))
		if b == nil {
			return nil
		}
		c := b.Cursor()
		for k, _ := c.Seek([]byte(after)); k != nil && len(domains) < limit; k, _ = c.Next() {
			if name, _, _ := bytes.Cut(k, []byte{0}); string(name) != after {
				after = string(name)
				domains = append(domains, after)
			}
		}
		return nil
	})
	return domains, err
}

// Load returns what is known of a domain's day: no policies if there is nothing.
func (s *Store) Load(day tlsrpt.Day, domain string) (tlsrpt.DomainDay, error) {
	loaded := tlsrpt.DomainDay{Domain: domain, Day: day}
	err := s.view(func(tx *bbolt.Tx) error {
		sums, policies := tx.Bucket(bucketDay).Bucket([]byte(day)), tx.Bucket(bucketPolicy).Bucket([]byte(day))
		if sums == nil || policies == nil {
			return nil
		}
		prefix := domainKey(domain)
		c := sums.Cursor()
		for k, v := c.Seek(prefix); bytes.HasPrefix(k, prefix) && len(loaded.Policies) < maxPolicies; k, v = c.Next() {
			var sum tlsrpt.Summary
			if json.Unmarshal(v, &sum) != nil || json.Unmarshal(policies.Get(k[len(prefix):]), &sum.Policy) != nil {
				return errValue
			}
			loaded.Policies = append(loaded.Policies, sum)
		}
		return nil
	})
	return loaded, err
}
