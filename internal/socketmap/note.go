package socketmap

import (
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
)

// noteEnd counts and logs why a connection ended. What clients can cause at
// will is logged at most once in logEvery; the counts tell the rest.
func (s *Server) noteEnd(c *conn, err error) {
	switch {
	case errors.Is(err, errMalformed), errors.Is(err, errTooLong):
		s.count(&s.totals.Malformed)
		if s.malformedLog.pass(s.now()) {
			s.log.Warn("connection closed: what came is not a socketmap request", "client", client(c), "err", err,
				"bytes", fmt.Sprintf("%.*q", maxLoggedBytes, c.in[c.r:c.w]),
				"next", "check what connects here; further ones are only counted for a while")
		}
	case errors.Is(err, errSlow), errors.Is(err, errNotRead):
		s.count(&s.totals.Slow)
		if s.slowLog.pass(s.now()) {
			s.log.Warn("connection closed", "client", client(c), "err", err,
				"next", "check what connects here; further ones are only counted for a while")
		}
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), errors.Is(err, errClosing):
		// the usual ends
	default:
		s.log.Debug("connection closed", "client", client(c), "err", err)
	}
}

// notePanic counts and logs a panic and where it came from. request is the one
// that was looked up, if it was in a lookup.
func (s *Server) notePanic(c *conn, panicked any, request []byte) {
	s.count(&s.totals.Panics)
	if !s.panicLog.pass(s.now()) {
		return
	}
	s.log.Error("panic in a lookup, answered TEMP", "client", client(c),
		"request", fmt.Sprintf("%.*q", maxLogged, request), "err", fmt.Sprint(panicked),
		"stack", string(debug.Stack()), "next", "please report this; further ones are only counted for a while")
}

// client is the client's address. Clients of unix sockets have none.
func client(c *conn) string {
	if a := c.nc.RemoteAddr(); a != nil && a.String() != "" && a.String() != "@" {
		return a.String()
	}
	if a := c.nc.LocalAddr(); a != nil {
		return "at " + a.String()
	}
	return "unknown"
}
