package socketmap

// Unread returns the bytes of long replies that were not taken yet.
func (s *Server) Unread() int64 { return s.unread.Load() }
