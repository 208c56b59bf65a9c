package observe

import (
	"math/rand/v2"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
)

// The kinds of what is due.
const (
	dueCheck = iota // the TXT record is asked for
	dueFetch        // the policy is fetched
	dueRetry        // the same, after a failure
	dueKinds
)

// lives are how the policies are told apart by the life that they have left:
// each row is what has less than its bound and is in none before.
var lives = [...]struct {
	below time.Duration
	name  string
}{
	{0, "expired"}, {24 * time.Hour, "less than a day"}, {7 * 24 * time.Hour, "a day to a week"},
	{30 * 24 * time.Hour, "a week to 30 days"}, {90 * 24 * time.Hour, "30 to 90 days"}, {1 << 62, "more than 90 days"},
}

// A sample is what was read of the cache. Counts stand for all of it.
type sample struct {
	read    int  // records
	all     bool // that is all of the cache
	overdue [dueKinds]int64
	hours   [plotHours][dueKinds]int64
	later   int64 // due after that, or only to be deleted
	lives   [len(lives)]int64
}

// draw reads all of a small cache. Of a large one it reads some pages, each
// from a place drawn at random in the order of the domains, which has nothing
// to do with when they are due.
func draw(list func(after string, limit int) ([]cache.Record, string, error), total int64, now time.Time) (*sample, error) {
	s := new(sample)
	after, small := "", total <= samplePages*samplePage
	for range samplePages {
		if !small {
			after = place()
		}
		page, next, err := list(after, samplePage)
		if err == nil && len(page) == 0 && !small {
			page, next, err = list("", samplePage) // beyond the end: the beginning follows it
		}
		if err != nil {
			return nil, err
		}
		for i := range page {
			s.add(&page[i], now)
		}
		if after = next; small && next == "" {
			break
		}
	}
	s.all = int64(s.read) >= total
	if !s.all && s.read > 0 {
		s.scale(float64(total) / float64(s.read))
	}
	return s, nil
}

// place is a place in the order of the domains.
func place() string {
	const letters = "abcdefghijklmnopqrstuvwxyz"
	name := make([]byte, 3)
	for i := range name {
		name[i] = letters[rand.IntN(len(letters))]
	}
	return string(name)
}

func (s *sample) add(r *cache.Record, now time.Time) {
	s.read++
	left := r.Expires.Sub(now)
	for i := range lives {
		if left <= lives[i].below {
			s.lives[i]++
			break
		}
	}
	switch in := r.Due.Sub(now); {
	case left <= 0 || r.Due.IsZero() || r.Due.After(r.Expires) || in >= plotHours*time.Hour:
		s.later++
	case in <= 0:
		s.overdue[kindOf(r)]++
	default:
		s.hours[in/time.Hour][kindOf(r)]++
	}
}

func kindOf(r *cache.Record) int {
	switch {
	case r.Due.Equal(r.CheckAt):
		return dueCheck
	case r.Failures > 0:
		return dueRetry
	}
	return dueFetch
}

// scale has what was read stand for all.
func (s *sample) scale(by float64) {
	grow := func(n *int64) { *n = int64(float64(*n)*by + 0.5) }
	for kind := range dueKinds {
		grow(&s.overdue[kind])
		for i := range s.hours {
			grow(&s.hours[i][kind])
		}
	}
	for i := range s.lives {
		grow(&s.lives[i])
	}
	grow(&s.later)
}
