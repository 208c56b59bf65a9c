package observe

import (
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
)

// An ageSample tells how old policies are, and how much life they have left. The
// records of the cache are not read through for that: those that follow a
// place drawn at random in the order of the domains stand for all of them.
type ageSample struct {
	list func(after string, limit int) ([]cache.Record, string, error)
	now  func() time.Time

	mu               sync.Mutex
	drawn            time.Time
	fetched, expires []time.Time // each in order
}

// collect draws a new sample when it is time.
func (s *ageSample) collect(o out) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if since := now.Sub(s.drawn); since < 0 || since >= agesEvery {
		s.draw()
		s.drawn = now
	}
	n := len(s.fetched)
	o.gauge(sampled, float64(n))
	if n == 0 {
		return
	}
	o.gauge(age, now.Sub(s.fetched[n-1]).Seconds(), "least")
	o.gauge(age, now.Sub(s.fetched[n/2]).Seconds(), "median")
	o.gauge(age, now.Sub(s.fetched[0]).Seconds(), "most")
	o.gauge(lifeLeft, s.expires[0].Sub(now).Seconds(), "least")
	o.gauge(lifeLeft, s.expires[n/2].Sub(now).Seconds(), "median")
	o.gauge(lifeLeft, s.expires[n-1].Sub(now).Seconds(), "most")
}

// draw reads a sample. A cache that cannot be read has none; that is counted
// where it is noticed.
func (s *ageSample) draw() {
	s.fetched, s.expires = nil, nil
	letters := "abcdefghijklmnopqrstuvwxyz"
	after := string([]byte{letters[rand.IntN(len(letters))], letters[rand.IntN(len(letters))], letters[rand.IntN(len(letters))]})
	records, next, err := s.list(after, agesSize)
	if err == nil && next == "" {
		// Near the end: the beginning follows it.
		records, _, err = s.list("", agesSize)
	}
	if err != nil {
		return
	}
	for i := range records {
		s.fetched = append(s.fetched, records[i].Fetched)
		s.expires = append(s.expires, records[i].Expires)
	}
	slices.SortFunc(s.fetched, time.Time.Compare)
	slices.SortFunc(s.expires, time.Time.Compare)
}
