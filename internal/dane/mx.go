package dane

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// An MXHost is one host of an MX RRset.
type MXHost struct {
	Name       string // lower case, no trailing dot
	Preference uint16
}

// An MXSet is what the DNS says about the mail hosts of a domain.
type MXSet struct {
	Hosts    []MXHost // the most preferred first, equals by name; at most 128
	Null     bool     // a null MX: the domain takes no mail (RFC 7505)
	NXDomain bool     // the domain does not exist
	Implicit bool     // no MX records: the domain is its own host (RFC 5321, 5.1)
	Secure   bool     // the answer is authenticated
	Dropped  int      // MX records whose host is no host name, or beyond the 128
}

// MX returns the mail hosts of a domain, each of them a host name in the
// strict sense: letters, digits and hyphens. The answer is kept for its TTL.
// The error is that of the lookup, or of ctx.
func (c *Checker) MX(ctx context.Context, domain string) (*MXSet, error) {
	a, err := c.mx.get(ctx, domain)
	switch {
	case err != nil:
		return nil, err
	case a.set == nil && a.err == nil:
		return nil, errBrokeOff
	}
	return a.set, a.err
}

// errBrokeOff is what comes of a lookup that ended in a panic.
var errBrokeOff = errors.New("the lookup broke off")

// An mxAnswer is what is held of an MX lookup. The set is not changed.
type mxAnswer struct {
	set   *MXSet
	err   error
	until time.Time
}

func (c *Checker) renewMX(ctx context.Context, domain string, old mxAnswer) mxAnswer {
	l := c.ask(ctx, domain, resolver.TypeMX) // the policy says which of the hosts count
	now := time.Now()
	if !l.answered() {
		if now.Before(old.until) {
			return old
		}
		return mxAnswer{err: l.Err, until: now.Add(failKeep)}
	}
	a := mxAnswer{set: readMX(domain, l, strictName)}
	if a.set.size() <= maxMXBytes {
		a.until = now.Add(clampKeep(l.ttl()))
	}
	return a
}

// readMX reads an answer to the question for the MX records of a domain. Hosts
// whose name does not please valid are dropped.
func readMX(domain string, l *Lookup, valid func(string) bool) *MXSet {
	s := &MXSet{Secure: l.Security == Secure}
	if l.Answer.NXDomain {
		s.NXDomain = true
		return s
	}
	if len(l.Answer.MX) == 0 {
		s.Implicit = true
		s.Hosts = []MXHost{{Name: domain}}
		return s
	}
	if isNull(l.Answer.MX) {
		s.Null = true
		return s
	}
	for _, mx := range l.Answer.MX {
		if !valid(mx.Host) {
			s.Dropped++
			continue
		}
		s.Hosts = append(s.Hosts, MXHost{mx.Host, mx.Preference})
	}
	s.sort()
	return s
}

// isNull says whether an MX RRset is the null MX: the root and nothing else
// (RFC 7505, 3). The root among hosts is just no host.
func isNull(records []resolver.MX) bool {
	return !slices.ContainsFunc(records, func(mx resolver.MX) bool { return mx.Host != "." })
}

// size returns the length of all names in the set.
func (s *MXSet) size() (n int) {
	for _, h := range s.Hosts {
		n += len(h.Name)
	}
	return n
}

// sort puts the hosts in order of preference, drops repeats of a name, and
// those beyond the bound.
func (s *MXSet) sort() {
	slices.SortFunc(s.Hosts, func(a, b MXHost) int {
		return cmp.Or(cmp.Compare(a.Preference, b.Preference), strings.Compare(a.Name, b.Name))
	})
	seen := make(map[string]bool, len(s.Hosts))
	s.Hosts = slices.DeleteFunc(s.Hosts, func(h MXHost) bool {
		again := seen[h.Name]
		seen[h.Name] = true
		return again
	})
	if n := len(s.Hosts) - maxMX; n > 0 {
		s.Dropped += n
		s.Hosts = s.Hosts[:maxMX]
	}
}

// strictName says whether s is a host name (RFC 1123, 2.1). Exim takes more
// than that from the DNS.
func strictName(s string) bool { return hostname.Labels(s, 0) > 0 && !isAddress(s) }

// laxName says whether Postfix takes s for a host name: it lets underscores
// pass, and would use the TLSA records of such a host.
func laxName(s string) bool { return hostname.Labels(s, hostname.Underscore) > 0 && !isAddress(s) }

// isAddress says whether s is an address as a whole. That the last label is a
// number, as hostname.EndsInNumber tells, does not suffice here: the MTA would
// look "mx.1" up.
func isAddress(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}
