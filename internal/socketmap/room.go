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

// awaitRoom waits as long as the budget for unread replies is used up and the client
// of c has replies to read: further lookups would fill memory with more of them.
func (s *Server) awaitRoom(c *conn) error {
	for s.unread.Load() > maxUnread-2*MaxReply && unreadBytes(c.nc) > 0 && !s.closing.Load() {
		select {
		case <-time.After(awaitRoomEvery):
		case <-c.ctx.Done():
			return net.ErrClosed
		}
	}
	return nil
}

// A victim is a connection that gives way to a new one, if its state is still
// the same.
type victim struct {
	conn *conn
	seen int64
}

// makeRoom ends a connection in favour of a new one: one whose client is gone, or
// seems to be, else the longest idle one; with evenBusy, else a busy one at random
// that is not too young. s.mu is held.
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
	var idlers, leavers []victim
	halfClosed := 0
	for c := range s.conns {
		v := victim{c, c.state.Load()}
		switch p, _ := split(v.seen); p {
		case idle, reading:
			idlers = append(idlers, v)
		case busy: // the others notice by themselves that the client is gone
			switch events := poll(c.nc); {
			case events&(unix.POLLHUP|unix.POLLERR) != 0:
				s.victims = append(s.victims, v)
			case events&pollRDHUP != 0:
				if halfClosed++; now-c.born >= minAge {
					leavers = append(leavers, v)
				}
			}
		}
	}
	// A client that waits may have closed its sending side, as Exim does. If most
	// have, they are a flood of clients that are gone.
	if halfClosed > s.max/2 {
		s.victims = append(s.victims, leavers[:min(len(leavers), maxVictims)]...)
	}
	slices.SortFunc(idlers, func(a, b victim) int { return cmp.Compare(a.seen>>phaseBits, b.seen>>phaseBits) })
	s.victims = append(s.victims, idlers[:min(len(idlers), maxVictims)]...)
	if len(s.victims) == 0 {
		s.nextNote = now + scanEvery
	}
}

// unreadBytes returns how much of what was written to nc waits in the kernel here,
// 0 if the system does not tell.
func unreadBytes(nc net.Conn) (n int) {
	control(nc, func(fd int) { n, _ = unix.IoctlGetInt(fd, unix.TIOCOUTQ) })
	return n
}

// poll returns what poll(2) tells about the client. Over TCP, one that is gone
// cannot be told from one that has closed its sending side only, until something is
// written.
func poll(nc net.Conn) int16 {
	var fds [1]unix.PollFd
	control(nc, func(fd int) {
		fds[0] = unix.PollFd{Fd: int32(fd), Events: pollRDHUP}
		unix.Poll(fds[:], 0)
	})
	return fds[0].Revents
}

// control calls f with the descriptor of a connection or a listener, if it has one.
func control(socket any, f func(fd int)) {
	if sc, ok := socket.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			raw.Control(func(fd uintptr) { f(int(fd)) })
		}
	}
}

// Descriptors returns how many files the process may have open. The Go runtime
// has raised the soft limit to the hard one.
func Descriptors() int {
	limit := unix.Rlimit{Cur: 1024} // the usual one
	unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	return int(min(limit.Cur, 1<<30))
}
