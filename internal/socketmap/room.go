package socketmap

import (
	"cmp"
	"net"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// This file: how connections are ended from outside, for time, for memory, and
// to make room for others.

// end ends a connection, unless its state has changed from the given one. s.mu is held.
func (s *Server) end(c *conn, seen int64, why int64) bool {
	if seen < 0 || !c.state.CompareAndSwap(seen, -why) {
		return false
	}
	s.release(c)
	delete(s.conns, c)
	c.nc.Close()
	c.cancel()
	return true
}

// watch ends the connections that take too long, until the server is closing.
func (s *Server) watch() {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.done:
			return
		}
		s.mu.Lock()
		now := s.now()
		for c := range s.conns {
			seen := c.state.Load()
			switch p, since := split(seen); {
			case p == idle && now-since >= IdleTimeout:
				s.end(c, seen, endIdle)
			case p == reading && now-since >= StartedTimeout:
				s.end(c, seen, endSlow)
			case p == writing && now-since >= WriteTimeout:
				s.end(c, seen, endNotRead)
			}
		}
		s.mu.Unlock()
	}
}

// charge takes n bytes from the budget for unread replies, for a reply of c. If the
// budget is used up, it closes the clients that have left long replies unread for
// longest. It returns false if that is not enough.
func (s *Server) charge(c *conn, n int64) bool {
	for s.unread.Add(n) > maxUnread {
		s.unread.Add(-n)
		if !s.endStalled() {
			return false
		}
	}
	c.large.Store(n)
	return true
}

func (s *Server) endStalled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if now < s.nextStalled {
		return false
	}
	var longest *conn
	var state int64
	for c := range s.conns {
		seen := c.state.Load()
		p, since := split(seen)
		if p == writing && now-since >= stalledAfter && c.large.Load() > 0 && (longest == nil || seen < state) {
			longest, state = c, seen
		}
	}
	if longest == nil {
		s.nextStalled = now + scanEvery
		return false
	}
	s.end(longest, state, endNotRead)
	return true // a client whose state has changed meanwhile has read
}

// release returns the bytes that charge took.
func (s *Server) release(c *conn) { s.unread.Add(-c.large.Swap(0)) }

// A victim is a connection that gives way to a new one, if its state is still
// the same.
type victim struct {
	conn *conn
	seen int64
}

// makeRoom ends a connection in favour of a new one: one whose client is gone,
// else the longest idle one; with evenBusy, else a busy one at random that is not
// too young. s.mu is held.
func (s *Server) makeRoom(evenBusy bool) {
	now := s.now()
	for range 2 {
		for len(s.victims) > 0 {
			v := s.victims[0]
			s.victims[0] = victim{}
			s.victims = s.victims[1:]
			if s.end(v.conn, v.seen, endEvicted) {
				return
			}
		}
		s.noteVictims(now)
	}
	if !evenBusy {
		return
	}
	var chosen *conn
	for chosen = range s.conns { // in random order
		if now-chosen.born >= minAge {
			break
		}
	}
	for !s.end(chosen, chosen.state.Load(), endEvicted) { // again, if it went on meanwhile
	}
}

// noteVictims notes several in one go: under a flood it is called for every new
// connection. Of the idle ones, those that do nothing meanwhile stay the longest
// idle, since all others become idle later.
func (s *Server) noteVictims(now time.Duration) {
	s.victims = nil
	if now < s.nextNote {
		return
	}
	var idlers []victim
	for c := range s.conns {
		v := victim{c, c.state.Load()}
		switch p, _ := split(v.seen); {
		case p == idle, p == reading:
			idlers = append(idlers, v)
		case p == busy && isGone(c.nc): // the others notice it by themselves
			s.victims = append(s.victims, v)
		}
	}
	slices.SortFunc(idlers, func(a, b victim) int { return cmp.Compare(a.seen>>phaseBits, b.seen>>phaseBits) })
	s.victims = append(s.victims, idlers[:min(len(idlers), maxVictims)]...)
	if len(s.victims) == 0 {
		s.nextNote = now + scanEvery
	}
}

// isGone reports whether the client has closed the connection. One that has
// closed its sending side only, as Exim does, is not gone; over TCP, the two
// cannot be told apart until something is written.
func isGone(nc net.Conn) bool {
	var fds [1]unix.PollFd
	if sc, ok := nc.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			raw.Control(func(fd uintptr) {
				fds[0].Fd = int32(fd)
				unix.Poll(fds[:], 0)
			})
		}
	}
	return fds[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
}

// Descriptors returns how many files the process may have open. The Go runtime
// has raised the soft limit to the hard one.
func Descriptors() int {
	limit := unix.Rlimit{Cur: 1024} // the usual one
	unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	return int(min(limit.Cur, 1<<30))
}
