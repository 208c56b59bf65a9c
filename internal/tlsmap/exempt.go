package tlsmap

import (
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
)

// SetExempt replaces the entries that are exempt for good. On an error they
// stay as they were. It may be called while lookups are answered.
func (s *Server) SetExempt(entries []string) error {
	set, err := exempt.ForGood(entries)
	if err != nil {
		return err
	}
	s.exempt.Store(&set)
	return nil
}

// SetTimedExempt replaces the exemptions that are in force until a time;
// those of SetExempt stay. On an error they stay as they were. It may be
// called while lookups are answered.
func (s *Server) SetTimedExempt(list []exempt.Exemption) error {
	set, err := exempt.Timed(list)
	if err != nil {
		return err
	}
	s.timed.Store(&set)
	return nil
}

// IsExempt reports whether the domain, in canonical form, is exempt.
func (s *Server) IsExempt(domain string) bool { return s.isExempt([]byte(domain)) }

// isExempt reports whether the domain, in canonical form, is exempt now. The
// clock is looked at only where an exemption has an end.
func (s *Server) isExempt(domain []byte) bool {
	if s.exempt.Load().Has(domain) {
		return true
	}
	timed := *s.timed.Load()
	return len(timed) > 0 && timed.Until(domain, time.Now().Unix()) != 0
}

// Exempt reports whether the domain, in canonical form, is exempt, and until
// when: zero for one that the configuration exempts.
func (s *Server) Exempt(domain string) (until time.Time, exempt bool) {
	if s.exempt.Load().Has([]byte(domain)) {
		return time.Time{}, true
	}
	if at := s.timed.Load().Until([]byte(domain), time.Now().Unix()); at != 0 {
		return time.Unix(at, 0), true
	}
	return time.Time{}, false
}

// ExemptBy returns the entries that exempt the domain, in canonical form: those
// without an end, whose Until is zero, and then those until a time.
func (s *Server) ExemptBy(domain string) []exempt.Exemption {
	now := time.Now().Unix()
	return append(s.exempt.Load().Matching(domain, now), s.timed.Load().Matching(domain, now)...)
}
