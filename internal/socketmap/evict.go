package socketmap

import (
	"cmp"
	"slices"
)

// What conn.state holds: since when the connection has been idle, on the
// server's clock, or one of these. A change is a compare-and-swap, so that a
// connection is either evicted or begins a lookup, never both.
const (
	stateBusy int64 = 0  // a request is being answered
	stateGone int64 = -1 // evicted or ended
)

// evictTries is how often evict looks for idle connections that begin a
// lookup before it can take them.
const evictTries = 3

// A victim is a connection that may be evicted if it has done nothing since it
// was noted.
type victim struct {
	conn *conn
	idle int64 // since when
}

// evict takes the connection off the list that has been idle for longest, or
// the oldest if none is idle. The caller hangs it up. s.mu is held.
//
// A connection in the middle of a request is idle since its last whole one.
func (s *Server) evict() *conn {
	c := s.longestIdle()
	if c == nil {
		c = slices.MinFunc(s.conns, func(a, b *conn) int { return cmp.Compare(a.number, b.number) })
	}
	s.remove(c)
	s.totals.Evicted++
	return c
}

// longestIdle claims the connection that has been idle for longest. It returns
// nil if none is idle. Under a flood it is called for each new connection, so
// it notes several in one go: those that did nothing since are still the
// longest idle ones, since all others have become idle later.
func (s *Server) longestIdle() *conn {
	for range evictTries {
		for len(s.victims) > 0 {
			v := s.victims[0]
			s.victims[0] = victim{}
			s.victims = s.victims[1:]
			if v.conn.state.CompareAndSwap(v.idle, stateGone) {
				return v.conn
			}
		}
		s.victims = s.noteVictims()
	}
	return nil
}

func (s *Server) noteVictims() []victim {
	idle := make([]victim, 0, len(s.conns))
	for _, c := range s.conns {
		if since := c.state.Load(); since > 0 {
			idle = append(idle, victim{c, since})
		}
	}
	slices.SortFunc(idle, func(a, b victim) int { return cmp.Compare(a.idle, b.idle) })
	return slices.Clone(idle[:min(len(idle), maxVictims)])
}
