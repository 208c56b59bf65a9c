package store

import (
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
	// unreported is how long after its end a closed day counts as done: nobody reports.
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
	ending, err := s.prune(now) // first: it makes room
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
	for _, day := range ending {
		err = errors.Join(err, s.SetStage(day, tlsrpt.StageClosed))
	}
	return err
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

// prune deletes the days that are too old, and while there is little room those that are
// done, the oldest first. It returns the days that are to be closed. A day that was closed
// stays so, however the clock jumps.
func (s *Store) prune(now time.Time) (ending []tlsrpt.Day, err error) {
	days, err := s.Days()
	for _, day := range days {
		stage, failed := s.Stage(day)
		if err = errors.Join(err, failed); err != nil {
			return nil, err
		}
		age := now.Sub(day.End())
		done := stage == tlsrpt.StageDone || stage == tlsrpt.StageClosed && age > unreported
		switch {
		case done && s.used() > s.o.MaxSize/8*7:
			s.o.Log.Warn("little room for TLS sessions: a delivered day is deleted before its time", "path", s.path, "day", day)
			err = s.drop(day)
		case age > s.o.Keep:
			err = s.drop(day)
		case stage == tlsrpt.StageOpen && age >= closeAfter:
			ending = append(ending, day)
		}
	}
	return ending, err
}

// drop deletes a day. Its stage stays.
func (s *Store) drop(day tlsrpt.Day) error {
	return s.update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketDay, bucketPolicy, bucketDelivery} {
			if err := tx.Bucket(name).DeleteBucket([]byte(day)); err != nil && !errors.Is(err, bolterrors.ErrBucketNotFound) {
				return err
			}
		}
		return nil
	})
}
