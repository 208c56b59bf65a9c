package policy

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// The bounds of finding a policy host's addresses.
const (
	MaxAddresses = 8                      // addresses tried in one fetch
	familyGrace  = 500 * time.Millisecond // for the other family's lookup, when one has found addresses
)

// addresses looks up the policy host's addresses: IPv6 and IPv4 in turn (RFC
// 8305, 4), without special ones, at most MaxAddresses.
func (c *Client) addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	families, lookupErr := c.bothFamilies(ctx, host)
	err := fmt.Errorf("%w: %s", ErrHostAbsent, host)
	if lookupErr != nil {
		err = fmt.Errorf("%w: %w", ErrHostLookup, lookupErr)
	}
	var addrs []netip.Addr
	for i := range max(len(families[0]), len(families[1])) {
		for _, family := range families {
			if i >= len(family) || len(addrs) == MaxAddresses {
				continue
			}
			what := Special(family[i])
			if what == "" || c.config.AllowPrivate {
				addrs = append(addrs, family[i])
				continue
			}
			err = fmt.Errorf("%w: %s has the address %s, which is %s", ErrAddressRefused, host, family[i], what)
		}
	}
	if len(addrs) > 0 {
		return addrs, nil
	}
	return nil, err
}

// bothFamilies asks for AAAA and A records at once. When one family is found,
// the other has a little time left: some name servers never answer AAAA. Both
// lookups have ended at the return. The error is from a lookup that failed.
func (c *Client) bothFamilies(ctx context.Context, host string) (families [2][]netip.Addr, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var errs [2]error
	var lookups sync.WaitGroup
	for i, qtype := range []resolver.Type{resolver.TypeAAAA, resolver.TypeA} {
		lookups.Go(func() {
			defer catchPanic(&errs[i])
			answer, err := c.config.Resolver.Query(ctx, host, qtype)
			if err != nil {
				errs[i] = c.blameClock(err)
			} else if families[i] = answer.Addrs; len(answer.Addrs) > 0 {
				time.AfterFunc(familyGrace, cancel)
			}
		})
	}
	lookups.Wait()
	return families, worst(errs[:])
}

// special lists the addresses no policy host has: a domain that names one in
// the DNS wants the daemon to knock at a door of its own network. More
// specific prefixes stand first.
var special = []struct {
	prefix netip.Prefix
	what   string // for an error: "127.0.0.1 is ..."
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "this network (RFC 1122, 3.2.1.3)"},
	{netip.MustParsePrefix("10.0.0.0/8"), "private (RFC 1918)"},
	{netip.MustParsePrefix("100.64.0.0/10"), "shared by a carrier's NAT (RFC 6598)"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback (RFC 1122, 3.2.1.3)"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local (RFC 3927)"},
	{netip.MustParsePrefix("172.16.0.0/12"), "private (RFC 1918)"},
	{netip.MustParsePrefix("192.0.0.0/24"), "for IETF protocols (RFC 6890)"},
	{netip.MustParsePrefix("192.0.2.0/24"), "for documentation (RFC 5737)"},
	{netip.MustParsePrefix("192.88.99.0/24"), "of the 6to4 relays (RFC 7526)"},
	{netip.MustParsePrefix("192.168.0.0/16"), "private (RFC 1918)"},
	{netip.MustParsePrefix("198.18.0.0/15"), "for benchmarks (RFC 2544)"},
	{netip.MustParsePrefix("198.51.100.0/24"), "for documentation (RFC 5737)"},
	{netip.MustParsePrefix("203.0.113.0/24"), "for documentation (RFC 5737)"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast (RFC 1112)"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved (RFC 1112)"},

	{netip.MustParsePrefix("::/128"), "unspecified (RFC 4291)"},
	{netip.MustParsePrefix("::1/128"), "loopback (RFC 4291)"},
	{netip.MustParsePrefix("2001::/23"), "for IETF protocols, Teredo and benchmarks (RFC 2928)"},
	{netip.MustParsePrefix("2001:db8::/32"), "for documentation (RFC 3849)"},
	{netip.MustParsePrefix("3fff::/20"), "for documentation (RFC 9637)"},
	{netip.MustParsePrefix("fc00::/7"), "private (RFC 4193)"},
	{netip.MustParsePrefix("fe80::/10"), "link-local (RFC 4291)"},
	{netip.MustParsePrefix("ff00::/8"), "multicast (RFC 4291)"},
}

var (
	globalUnicast = netip.MustParsePrefix("2000::/3")     // RFC 4291, 2.4 as assigned by IANA
	nat64         = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052: the IPv4 address is in the last four bytes
	sixToFour     = netip.MustParsePrefix("2002::/16")    // RFC 3056: the IPv4 address follows the prefix
)

// Special says in words what is special about an address, or nothing
// if it is an ordinary one on the internet. An IPv6 address that carries an
// IPv4 address is as special as what it carries.
func Special(addr netip.Addr) string {
	addr = addr.Unmap().WithZone("")
	if !addr.IsValid() {
		return "no address"
	}
	for _, s := range special {
		if s.prefix.Contains(addr) {
			return s.what
		}
	}
	if addr.Is4() {
		return ""
	}
	bytes := addr.As16()
	switch {
	case nat64.Contains(addr):
		return Special(netip.AddrFrom4([4]byte(bytes[12:16])))
	case sixToFour.Contains(addr):
		return Special(netip.AddrFrom4([4]byte(bytes[2:6])))
	case !globalUnicast.Contains(addr):
		return "outside the global unicast addresses (RFC 4291)"
	}
	return ""
}
