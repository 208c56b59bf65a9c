package tlsmap

import (
	"sync/atomic"
	"time"
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

// stripes is how many counters there are of each kind. Those who count at the
// same time on several processors should not share one: to take its cache line
// from another costs a tenth of a microsecond.
const stripes = 8

// mapCounters count one map's replies, those of one stripe. The padding keeps
// the counters of two maps off one cache line.
type mapCounters struct {
	by   [outcomes]atomic.Uint64
	_    [128 - outcomes*8]byte
	slow durations
	_    [128]byte
}

// SlowBounds are the upper bounds of the buckets of MapStats.Slow.
var SlowBounds = [...]time.Duration{
	time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2500 * time.Millisecond,
	5 * time.Second, 10 * time.Second, 20 * time.Second, 30 * time.Second, time.Minute,
}

// durations are those of the lookups that were not answered from memory. The
// others are not timed: there are many of them, each takes some microseconds,
// and to read the clock twice would be a good part of that.
type durations struct {
	by  [len(SlowBounds) + 1]atomic.Uint64 // the last is for what takes longer
	sum atomic.Int64                       // nanoseconds
}

func (d *durations) add(took time.Duration) {
	i := 0
	for i < len(SlowBounds) && took > SlowBounds[i] {
		i++
	}
	d.by[i].Add(1)
	d.sum.Add(int64(took))
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

	Slow    [len(SlowBounds) + 1]uint64 // those not answered from memory, by how long they took: a number for each of SlowBounds, and the rest
	SlowSum time.Duration               // that they took together
}

// Replies returns the number of all replies.
func (m *MapStats) Replies() uint64 {
	return m.OK + m.NotFound + m.Exempt + m.Temp + m.RehearsedOK + m.RehearsedTemp
}

// Stats are numbers of replies since the start.
type Stats struct {
	Maps       []MapStats // in the order of the table
	UnknownMap uint64     // PERM
}

// Stats returns the numbers of replies so far.
func (s *Server) Stats() Stats {
	stats := Stats{Maps: make([]MapStats, len(s.table.maps)), UnknownMap: s.unknown.Load()}
	for i := range s.table.maps {
		m := &stats.Maps[i]
		m.Map = s.table.maps[i].Name
		// Read before the replies, which are counted first: the slow ones are
		// a part of them at any moment.
		for stripe := range s.counters {
			slow := &s.counters[stripe][i].slow
			for j := range m.Slow {
				m.Slow[j] += slow.by[j].Load()
			}
			m.SlowSum += time.Duration(slow.sum.Load())
		}
		for stripe := range s.counters {
			by := &s.counters[stripe][i].by
			m.OK += by[outcomeOK].Load()
			m.NotFound += by[outcomeNotFound].Load()
			m.Exempt += by[outcomeExempt].Load()
			m.Temp += by[outcomeTemp].Load()
			m.RehearsedOK += by[outcomeRehearsedOK].Load()
			m.RehearsedTemp += by[outcomeRehearsedTemp].Load()
		}
	}
	return stats
}
