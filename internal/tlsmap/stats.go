package tlsmap

import (
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

// An outcome is how a lookup ended.
type outcome uint8

const (
	outcomeOK outcome = iota
	outcomeNotFound
	outcomeExempt
	outcomeTemp
	outcomeRehearsedOK
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
	i := 0
	for i < len(SlowBounds) && took > SlowBounds[i] {
		i++
	}
	c.slow[i].Add(1)
	c.slowSum.Add(int64(took))
}

// MapStats are the numbers of replies of one map since the start.
type MapStats struct {
	Map           string
	OK            uint64
	NotFound      uint64 // no policy applies
	Exempt        uint64 // NOTFOUND, since the domain is exempt
	Temp          uint64
	RehearsedOK   uint64 // NOTFOUND, since enforce is false; it would have been OK
	RehearsedTemp uint64 // likewise TEMP

	Slow    [len(SlowBounds) + 1]uint64 // those not answered from memory, by the time they took: a number for each of SlowBounds, and the rest
	SlowSum time.Duration               // the time that they took together
}

// Replies returns the number of all replies.
func (m *MapStats) Replies() uint64 {
	return m.OK + m.NotFound + m.Exempt + m.Temp + m.RehearsedOK + m.RehearsedTemp
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
	stats := Stats{Maps: make([]MapStats, len(s.table.maps))}
	s.unknownMu.Lock()
	stats.UnknownMap, stats.LastUnknown = s.unknownCount, s.lastUnknown
	s.unknownMu.Unlock()
	for i := range stats.Maps {
		m, c := &stats.Maps[i], &s.counters[i]
		m.Map = s.table.maps[i].Name
		// The slow ones first: they are a part of the replies at any moment.
		for j := range m.Slow {
			m.Slow[j] = c.slow[j].Load()
		}
		m.SlowSum = time.Duration(c.slowSum.Load())
		m.OK = c.by[outcomeOK].Load()
		m.NotFound = c.by[outcomeNotFound].Load()
		m.Exempt = c.by[outcomeExempt].Load()
		m.Temp = c.by[outcomeTemp].Load()
		m.RehearsedOK = c.by[outcomeRehearsedOK].Load()
		m.RehearsedTemp = c.by[outcomeRehearsedTemp].Load()
	}
	return stats
}

// noteUnknown counts, remembers and logs a lookup in an unknown map.
func (s *Server) noteUnknown(name []byte) {
	shown := text.Cut(text.Printable(string(name)), mta.MaxName)
	s.unknownMu.Lock()
	s.unknownCount++
	s.lastUnknown = UnknownMap{Name: shown, At: time.Now()}
	s.unknownMu.Unlock()
	if s.unknown.due(shown, nil, nil) {
		s.unknown.print(slog.String("map", shown), slog.String("next", "correct the map's name in the MTA's configuration"+s.table.known))
	}
}
