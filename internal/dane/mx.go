package dane

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

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
	Hosts    []MXHost // the most preferred first, equals by name
	Null     bool     // a null MX: the domain takes no mail (RFC 7505)
	NXDomain bool     // the domain does not exist
}

// MX looks up the mail hosts of a domain, at most 64. Their names are host
// names as Postfix takes them. The error is that of the lookup, or of ctx.
func (c *Checker) MX(ctx context.Context, domain string) (*MXSet, error) {
	release, ok := c.turns.take(ctx, domain)
	if !ok {
		return nil, fmt.Errorf("too many MX lookups are under way: %w", context.Cause(ctx))
	}
	defer release()
	l := c.lookup(ctx, domain, resolver.TypeMX)
	if l.Answer == nil {
		return nil, l.Err
	}
	s := readMX(domain, l.Answer) // authenticated or not: the policy says which of the hosts count
	s.Hosts = s.Hosts[:min(len(s.Hosts), maxHosts)]
	return s, nil
}

// readMX reads an answer to the question for the MX records of a domain. Names
// that are no host names are dropped.
func readMX(domain string, a *resolver.Answer) *MXSet {
	switch {
	case a.NXDomain:
		return &MXSet{NXDomain: true}
	case len(a.MX) == 0: // RFC 5321, 5.1
		return &MXSet{Hosts: []MXHost{{Name: domain}}}
	case !slices.ContainsFunc(a.MX, func(mx resolver.MX) bool { return mx.Host != "." }):
		return &MXSet{Null: true} // RFC 7505, 3; the root among hosts is just no host
	}
	s := new(MXSet)
	records := slices.Clone(a.MX)
	slices.SortFunc(records, func(a, b resolver.MX) int {
		return cmp.Or(cmp.Compare(a.Preference, b.Preference), strings.Compare(a.Host, b.Host))
	})
	seen := make(map[string]bool, len(records))
	for _, mx := range records {
		if !seen[mx.Host] && isHostName(mx.Host) {
			s.Hosts = append(s.Hosts, MXHost{mx.Host, mx.Preference})
		}
		seen[mx.Host] = true
	}
	return s
}

// isHostName says whether Postfix takes s for a host name: it lets underscores
// pass, and would use the TLSA records of such a host. A name that only ends in
// a number is none to a policy, but the MTA would look it up.
func isHostName(s string) bool {
	_, err := netip.ParseAddr(s)
	return err != nil && hostname.Labels(s, hostname.Underscore) > 0
}
