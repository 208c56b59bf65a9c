package tlsmap

import (
	"bytes"
	"fmt"
	"time"
)

// MaxTimedExempt bounds the exemptions that are in force until a time: they
// are for emergencies. The list in the configuration has a bound of its own.
const MaxTimedExempt = 1000

// An Exemption exempts a domain until a time: "example.com" is that domain,
// ".example.com" is all below it.
type Exemption struct {
	Domain string // as ParseExempt returns it
	Until  time.Time
}

// timedExemptions are domains with the Unix seconds until which they are
// exempt.
type timedExemptions map[string]int64

// SetTimedExempt replaces the exemptions that are in force until a time;
// those of SetExempt stay. On an error they stay as they were. It may be
// called while lookups are answered.
func (s *Server) SetTimedExempt(list []Exemption) error {
	if len(list) > MaxTimedExempt {
		return fmt.Errorf("%d exemptions at once; at most %d are possible: for good, [exempt] in the configuration has room for more",
			len(list), MaxTimedExempt)
	}
	x := make(timedExemptions, len(list))
	for _, e := range list {
		canonical, err := ParseExempt(e.Domain)
		if err != nil {
			return err
		}
		x[canonical] = e.Until.Unix()
	}
	s.timed.Store(&x)
	return nil
}

// until returns until when the domain, in canonical form, is exempt, in Unix
// seconds; of several exemptions the longest counts. Zero: it is not, at now.
func (x timedExemptions) until(domain []byte, now int64) int64 {
	latest := int64(0)
	note := func(until int64) {
		if until > now {
			latest = max(latest, until)
		}
	}
	note(x[string(domain)])
	for {
		dot := bytes.IndexByte(domain, '.')
		if dot < 0 {
			return latest
		}
		note(x[string(domain[dot:])])
		domain = domain[dot+1:]
	}
}

// isExempt reports whether the domain, in canonical form, is exempt now. The
// clock is looked at only where an exemption has an end.
func (s *Server) isExempt(domain []byte) bool {
	if s.exempt.Load().has(domain) {
		return true
	}
	x := *s.timed.Load()
	return len(x) > 0 && x.until(domain, time.Now().Unix()) != 0
}

// Exempt reports whether the domain, in canonical form, is exempt, and until
// when: zero for one that the configuration exempts.
func (s *Server) Exempt(domain string) (until time.Time, exempt bool) {
	if s.exempt.Load().has([]byte(domain)) {
		return time.Time{}, true
	}
	if at := s.timed.Load().until([]byte(domain), time.Now().Unix()); at != 0 {
		return time.Unix(at, 0), true
	}
	return time.Time{}, false
}
