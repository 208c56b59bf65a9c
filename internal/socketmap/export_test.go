package socketmap

// Unread returns the bytes of long replies that were not taken yet.
func (s *Server) Unread() int64 { return s.unread.Load() }

// Idle returns how many connections wait for a request. A client may have its reply
// before its connection counts as idle.
func (s *Server) Idle() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if p, _ := split(c.state.Load()); p == idle {
			n++
		}
	}
	return n
}
