package probe

import (
	"context"
	"crypto/x509"
	"errors"
	"hash/maphash"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

// A host is what was seen of an MX host. Domains share it.
type host struct {
	dane.NextHop
	looked, probed sync.Once

	// From the DNS.
	dane  dane.HostState
	tlsa  []resolver.TLSA // usable records
	base  string          // where they are: the TLSA base domain (RFC 7672, 2.2.2)
	addrs []netip.Addr

	session                   // the one that got farthest
	leaf    *x509.Certificate // nil: no TLS
	trust   Outcome           // the chain and its dates
	tlsaOK  Outcome           // the chain by the TLSA records
	listed  Outcome           // by a policy, see Listed
}

// host returns the host of that name, new or seen before.
func (p *Prober) host(name string, port uint16) *host {
	h := &host{NextHop: dane.NextHop{Host: name, Port: port, Bracketed: true}}
	if seen, ok, _ := p.hosts.PeekOrAdd(h.NextHop, h); ok {
		return seen
	}
	return h
}

// look asks the DNS about a host, once.
func (p *Prober) look(ctx context.Context, h *host) {
	h.looked.Do(func() {
		r := p.NextHops.Look(ctx, h.NextHop, func(string) bool { return true })
		seen := r.Hosts[0]
		h.dane = seen.State
		if r.Finding.State == dane.NotValidating {
			h.dane = dane.HostInsecure
		}
		for _, l := range seen.Lookups {
			if l.Type == resolver.TypeTLSA && l.Answer != nil && h.dane == dane.HostUsable {
				h.tlsa = slices.DeleteFunc(slices.Clone(l.Answer.TLSA), func(t resolver.TLSA) bool { return !dane.UsableRecord(t) })
				_, h.base, _ = strings.Cut(l.Name, "._tcp.")
			}
		}
		p.resolve(ctx, h)
	})
}

// resolve looks up a host's addresses.
func (p *Prober) resolve(ctx context.Context, h *host) {
	var failed error
	for _, qtype := range []resolver.Type{resolver.TypeA, resolver.TypeAAAA} { // package dane needs one of them only
		if a, err := p.Resolver.Query(ctx, h.Host, qtype); err != nil {
			failed = err
		} else {
			h.addrs = append(h.addrs, a.Addrs...)
		}
	}
	switch {
	case len(h.addrs) > 0:
		h.reach = unknown("not probed")
	case failed != nil:
		h.reach = notLookedUp("its addresses cannot be looked up", failed)
	default:
		h.reach = fails("", "it has no address")
	}
	h.tls = h.reach
}

// Listed has a session with an MX host that a policy lists, once, and returns what a TLS
// report says of it (RFC 8461, 4.2): a Failure without a Result if the session succeeded.
// Nil: a report says nothing. There was no session, perhaps by a fault of ours, or RFC
// 8460 has no name for what happened.
func (p *Prober) Listed(ctx context.Context, name string) *tlsrpt.Failure {
	h := p.host(name, 25)
	h.looked.Do(func() {
		p.resolve(ctx, h)
		p.connect(ctx, h)
		h.listed = h.by(order{hosts: []string{name}}, false)
		h.leaf, h.addrs = nil, nil
	})
	switch o := h.listed; {
	case o.State == Passes:
		return &tlsrpt.Failure{}
	case o.State == Fails && o.Result != "":
		return &tlsrpt.Failure{Result: o.Result, MXHost: name, ReceivingIP: h.addr, Reason: o.Reason}
	}
	return nil
}

// notLookedUp is the Outcome of a lookup that failed. No answer in time is no word of
// the domain's.
func notLookedUp(what string, err error) Outcome {
	var e *resolver.Error
	if errors.As(err, &e) && (e.Kind == resolver.KindServFail || e.Kind == resolver.KindRefused || e.Kind == resolver.KindMalformed) {
		return fails("", "%s: %s", what, e.Kind)
	}
	return unknown(what + ": " + printable(err))
}

// connect has a session with a host, once.
func (p *Prober) connect(ctx context.Context, h *host) {
	h.probed.Do(func() {
		serverName := h.Host
		if h.dane == dane.HostUsable {
			serverName = h.base
		}
		left := hostTime
		for _, addr := range h.addrs[:min(len(h.addrs), maxAddresses)] {
			var s session
			s, left = p.at(ctx, netip.AddrPortFrom(addr, h.Port), serverName, left)
			if !h.addr.IsValid() || s.chain != nil || s.reach.State == Passes && h.reach.State != Passes {
				h.session = s
			}
			if s.chain != nil || left <= 0 {
				break
			}
		}
		if h.chain == nil {
			return
		}
		h.leaf, h.trust = h.chain[0], trusted(h.chain, p.Roots)
		if h.dane == dane.HostUsable {
			h.tlsaOK = authenticated(h.chain, h.tlsa, h.base, h.Host)
		}
		h.chain = nil
	})
}

// at has a session with one address when it is its turn. It returns what is left of
// the host's time, in which the wait does not count.
func (p *Prober) at(ctx context.Context, addr netip.AddrPort, serverName string, left time.Duration) (session, time.Duration) {
	turn := p.turns[maphash.Comparable(p.seed, addr.Addr())%uint64(len(p.turns))]
	turn <- struct{}{} // sessions end with ctx
	defer func() { <-turn }()
	s := session{addr: addr.Addr(), reach: unknown("given up"), tls: unknown("given up")}
	if p.PublicOnly && policy.Special(addr.Addr()) != "" {
		return s, left
	}
	if p.pace.Wait(ctx) != nil {
		return s, 0
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	s = p.talk(ctx, addr, serverName)
	return s, left - time.Since(began)
}
