// Package exempt says for which domains the policy is not applied. An entry is
// "example.com", that domain alone, or ".example.com", all below it. A Set holds
// entries and answers lookups; a List keeps the exemptions that an administrator
// sets until a time, over restarts. Exemptions without an end are those of
// package config.
package exempt

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
)

// MaxTimed bounds the exemptions until a time.
const MaxTimed = 1000

// noEnd is the time until which an entry without an end is in force.
const noEnd = math.MaxInt64

// An Exemption is an entry that is in force until a time.
type Exemption struct {
	Domain string    `json:"entry"`          // as Parse returns it
	Until  time.Time `json:"until,omitzero"` // in UTC; zero: it has no end, since it is of [exempt] in the configuration
}

// Parse returns an entry in canonical form (hostname.Canonical).
func Parse(entry string) (string, error) {
	name := strings.TrimPrefix(entry, ".")
	canonical, err := hostname.Canonical([]byte(name), nil)
	if err != nil {
		return "", fmt.Errorf("%q %w", entry, err)
	}
	if !hostname.Valid(string(canonical)) {
		return "", fmt.Errorf("%q is not a domain; expected \"example.com\", or \".example.com\" for all below it", entry)
	}
	return entry[:len(entry)-len(name)] + string(canonical), nil
}

// A Set holds entries, as Parse returns them, each with the time until which
// it is in force, in Unix seconds. A Set that does not change is safe for
// concurrent use.
type Set map[string]int64

// ForGood returns the set of entries without an end. Parse has returned each.
func ForGood(entries []string) Set {
	s := make(Set, len(entries))
	for _, entry := range entries {
		s[entry] = noEnd
	}
	return s
}

// Timed returns the set of exemptions that are in force until a time, of which
// there are MaxTimed at most.
func Timed(list []Exemption) (Set, error) {
	if len(list) > MaxTimed {
		return nil, fmt.Errorf("at most %d exemptions are possible at once; [exempt] in the configuration takes more, without an end", MaxTimed)
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

// Has reports whether an entry covers the domain, which is in canonical form.
// It ignores the end of the entry and allocates nothing.
func (s Set) Has(domain []byte) bool { return len(s) > 0 && s.Until(domain, 0) != 0 }

// Until returns until when the domain, in canonical form, is exempt, in Unix
// seconds: the longest of the entries that cover it counts. Zero: it is not
// exempt at now. Until allocates nothing.
func (s Set) Until(domain []byte, now int64) int64 {
	latest := s[string(domain)]
	for i, c := range domain {
		if c == '.' {
			latest = max(latest, s[string(domain[i:])])
		}
	}
	if latest <= now {
		return 0
	}
	return latest
}

// All returns the entries that are in force at now, in Unix seconds, ordered by domain.
func (s Set) All(now int64) []Exemption {
	var list []Exemption
	for _, domain := range slices.Sorted(maps.Keys(s)) {
		list = s.appendInForce(list, domain, now)
	}
	return list
}

// Matching returns the entries that cover the domain, in canonical form, and
// are in force at now, in Unix seconds: its own first, then those of its
// parents.
func (s Set) Matching(domain string, now int64) []Exemption {
	var list []Exemption
	for i := range len(domain) {
		if i > 0 && domain[i] != '.' {
			continue
		}
		list = s.appendInForce(list, domain[i:], now)
	}
	return list
}

func (s Set) appendInForce(list []Exemption, entry string, now int64) []Exemption {
	switch until := s[entry]; {
	case until == noEnd:
		return append(list, Exemption{Domain: entry})
	case until > now:
		return append(list, Exemption{Domain: entry, Until: time.Unix(until, 0).UTC()})
	}
	return list
}
