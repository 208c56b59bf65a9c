package resolver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/miekg/dns"
)

// ErrNoAddress is a host that has no address: the DNS says so.
var ErrNoAddress = errors.New("no address")

// Addresses returns the addresses of host: IPv6 and IPv4 in turns, in the
// order of the answers, at most 32. IPv4-mapped addresses are returned as the
// IPv4 addresses that they are. If one family cannot be asked for, the other
// one is enough. The error wraps ErrNoAddress if there is none, and is an
// *Error if that cannot be known.
func (r *Resolver) Addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	type result struct {
		answer *Answer
		err    error
	}
	other := make(chan result, 1)
	go func() {
		a, err := r.Query(ctx, host, dns.TypeAAAA)
		other <- result{a, err}
	}()
	four, err4 := r.Query(ctx, host, dns.TypeA)
	six := <-other
	addrs := interleave(six.answer.Addrs(), four.Addrs())
	if len(addrs) > 0 {
		return addrs[:min(len(addrs), maxAddresses)], nil
	}
	for _, err := range []error{err4, six.err} {
		if err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%s: %w", host, ErrNoAddress)
}

// Addrs returns the addresses in the A and AAAA records of a, which may be nil.
func (a *Answer) Addrs() []netip.Addr {
	if a == nil {
		return nil
	}
	var addrs []netip.Addr
	for _, rr := range a.Records {
		var ip []byte
		switch rr := rr.(type) {
		case *dns.A:
			ip = rr.A
		case *dns.AAAA:
			ip = rr.AAAA
		}
		if addr, ok := netip.AddrFromSlice(ip); ok && !slices.Contains(addrs, addr.Unmap()) {
			addrs = append(addrs, addr.Unmap())
		}
		if len(addrs) == maxAddresses {
			break
		}
	}
	return addrs
}

// interleave takes from a and b in turns, a first.
func interleave(a, b []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for i := range max(len(a), len(b)) {
		for _, side := range [][]netip.Addr{a, b} {
			if i < len(side) && !slices.Contains(out, side[i]) {
				out = append(out, side[i])
			}
		}
	}
	return out
}
