package tlsmap

import (
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

// An outcome is how a lookup ended.
type outcome uint8

const (
	outcomeOK outcome = iota
	outcomeTemp
	outcomeNotFound
	outcomeExempt
	outcomeRehearsedOK // a rehearsal's: in the order of the first two
	outcomeRehearsedTemp
	outcomes
)

// SlowBounds are the upper bounds of the buckets of MapStats.Slow.
var SlowBounds = [...]time.Duration{
	time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2500 * time.Millisecond,
	5 * time.Second, 10 * time.Second, 20 * time.Second, 30 * time.Second, time.Minute,
}

// mapCounters count one map's replies. Replies from memory are not timed: each
// takes a few microseconds, and reading the clock twice is a good part of that.
type mapCounters struct {
	by      [outcomes]atomic.Uint64
	slow    [len(SlowBounds) + 1]atomic.Uint64 // the last is for what takes longer
	slowSum atomic.Int64                       // nanoseconds
}

func (c *mapCounters) addSlow(took time.Duration) {
	i, _ := slices.BinarySearch(SlowBounds[:], took)
	c.slow[i].Add(1)
	c.slowSum.Add(int64(took))
}

func outcomeOf(reply []byte, exempt bool) outcome {
	switch {
	case reply[0] == replyTemp[0]:
		return outcomeTemp
	case reply[0] == replySecure[0]:
		return outcomeOK
	case exempt:
		return outcomeExempt
	}
	return outcomeNotFound
}

// results are the names of the outcomes.
var results = [outcomes]string{"ok", "temp", "notfound", "exempt", "rehearsed-ok", "rehearsed-temp"}

// MapStats are the numbers of replies of one map since the start.
type MapStats struct {
	Map     string
	By      map[string]uint64           // "ok", "temp", "notfound" (no policy applies), "exempt"; "rehearsed-ok" and "rehearsed-temp": NOTFOUND, since enforce is false
	Slow    [len(SlowBounds) + 1]uint64 // those not answered from memory, by the time they took: a number for each of SlowBounds, and the rest
	SlowSum time.Duration               // the time that they took together
}

// Replies returns the number of all replies.
func (m *MapStats) Replies() (n uint64) {
	for _, by := range m.By {
		n += by
	}
	return n
}

// Stats are numbers of replies since the start.
type Stats struct {
	Maps        []MapStats // in the order of the table
	UnknownMap  uint64     // PERM
	LastUnknown UnknownMap // the last one of them
}

// An UnknownMap is a lookup in a map that does not exist.
type UnknownMap struct {
	Name string    // as asked for, cut short
	At   time.Time // zero: there was none
}

// Stats returns the numbers of replies so far.
func (s *Server) Stats() Stats {
	stats := Stats{UnknownMap: s.unknownCount.Load()}
	if last := s.lastUnknown.Load(); last != nil {
		stats.LastUnknown = *last
	}
	for i := range s.counters {
		c := &s.counters[i]
		m := MapStats{Map: s.table.maps[i].Name, By: make(map[string]uint64)}
		for j := range m.Slow { // before the replies, of which they are a part at any moment
			m.Slow[j] = c.slow[j].Load()
		}
		m.SlowSum = time.Duration(c.slowSum.Load())
		for out, result := range results {
			m.By[result] = c.by[out].Load()
		}
		stats.Maps = append(stats.Maps, m)
	}
	return stats
}

// noteUnknown counts, remembers and logs a lookup in an unknown map.
func (s *Server) noteUnknown(name []byte) {
	shown := text.Cut(text.Printable(string(name)), mta.MaxName)
	s.unknownCount.Add(1)
	s.lastUnknown.Store(&UnknownMap{Name: shown, At: time.Now()})
	if s.unknown.due(shown, nil, nil) {
		s.unknown.print(slog.String("map", shown), slog.String("next", "correct the map's name in the MTA's configuration"+s.table.known))
	}
}
