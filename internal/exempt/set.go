package exempt

import (
	"bytes"
	"fmt"
	"math"
	"time"
)

// forGood is the time until which an entry without an end is in force.
const forGood = math.MaxInt64

// A Set holds entries, as Parse returns them, each with the time until which
// it is in force, in Unix seconds. It may be asked by several at once.
type Set map[string]int64

// ForGood returns the set of entries without an end.
func ForGood(entries []string) (Set, error) {
	s := make(Set, len(entries))
	for _, entry := range entries {
		canonical, err := Parse(entry)
		if err != nil {
			return nil, fmt.Errorf("exempt domains: %w", err)
		}
		s[canonical] = forGood
	}
	return s, nil
}

// Timed returns the set of exemptions that are in force until a time, of which
// there are MaxTimed at most.
func Timed(list []Exemption) (Set, error) {
	if len(list) > MaxTimed {
		return nil, fmt.Errorf("%d exemptions at once; at most %d are possible: for good, [exempt] in the configuration has room for more",
			len(list), MaxTimed)
	}
	s := make(Set, len(list))
	for _, x := range list {
		canonical, err := Parse(x.Domain)
		if err != nil {
			return nil, err
		}
		s[canonical] = x.Until.Unix()
	}
	return s, nil
}

// Has reports whether an entry of the set is for the domain, which is in
// canonical form. The end of the entry does not matter. Nothing is allocated.
func (s Set) Has(domain []byte) bool { return len(s) > 0 && s.Until(domain, 0) != 0 }

// Until returns until when the domain, in canonical form, is exempt, in Unix
// seconds; of several entries the longest counts. Zero: at now, it is not
// exempt. Nothing is allocated.
func (s Set) Until(domain []byte, now int64) int64 {
	latest := int64(0)
	note := func(until int64) {
		if until > now {
			latest = max(latest, until)
		}
	}
	note(s[string(domain)])
	for {
		dot := bytes.IndexByte(domain, '.')
		if dot < 0 {
			return latest
		}
		note(s[string(domain[dot:])])
		domain = domain[dot+1:]
	}
}

// Matching returns the entries that are for the domain, in canonical form, and
// in force at now, in Unix seconds: its own first, then those of its parents.
// Until is zero for one without an end.
func (s Set) Matching(domain string, now int64) []Exemption {
	var list []Exemption
	note := func(entry string) {
		switch until := s[entry]; {
		case until == forGood:
			list = append(list, Exemption{Domain: entry})
		case until > now:
			list = append(list, Exemption{Domain: entry, Until: time.Unix(until, 0)})
		}
	}
	note(domain)
	for i := 1; i < len(domain); i++ {
		if domain[i] == '.' {
			note(domain[i:])
		}
	}
	return list
}
