package dane

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// A Report is a check with all that was seen on the way.
type Report struct {
	NextHop  NextHop
	State    State
	Why      string
	MX       *Lookup // nil if the next-hop is in brackets
	MXSet    *MXSet  // nil if MX is, or has no answer
	Hosts    []*Host // those that were looked at, the most preferred first
	Beyond   int     // hosts that were not, since there are too many
	Unsigned bool    // the state rests on an answer that is not authenticated
}

// A HostState is what came of the lookups at one host.
type HostState uint8

// The states of a host. The zero value is that of one not looked at to the end.
const (
	HostUnknown   HostState = iota // time ran out
	HostUsable                     // usable TLSA records
	HostUnusable                   // TLSA records, none of them usable
	HostNoTLSA                     // no TLSA records
	HostInsecure                   // its addresses are not authenticated: TLSA is not asked for
	HostNoAddress                  // it has no addresses
	HostFailed                     // a lookup failed
)

func (s HostState) String() string {
	switch s {
	case HostUsable:
		return "usable TLSA records"
	case HostUnusable:
		return "no usable TLSA record"
	case HostNoTLSA:
		return "no TLSA records"
	case HostInsecure:
		return "addresses not authenticated"
	case HostNoAddress:
		return "no addresses"
	case HostFailed:
		return "lookup failed"
	}
	return "not looked at to the end"
}

// A Host is one host of a next-hop, and the lookups at it.
type Host struct {
	MXHost
	State   HostState
	Address []*Lookup // A, AAAA, in the order asked
	Alias   *Lookup   // the CNAME at the host's name, where it was asked for by itself
	TLSA    []*Lookup // at the final name, at the original name: those that were asked for
	Failed  *Lookup   // the lookup that made it HostFailed
}

// Addrs returns the addresses that were found.
func (h *Host) Addrs() []netip.Addr {
	var addrs []netip.Addr
	for _, l := range h.Address {
		if l.Answer != nil {
			addrs = append(addrs, l.Answer.Addrs...)
		}
	}
	return addrs
}

// keep returns how long the report may be kept.
func (r *Report) keep() time.Duration {
	if r.State == Undecided || r.State == LookupFailed {
		return failKeep
	}
	least := time.Duration(maxKeep)
	lookups := []*Lookup{r.MX}
	for _, h := range r.Hosts {
		if h.State == HostUnknown || h.State == HostFailed {
			continue // what they are did not count
		}
		lookups = append(append(append(lookups, h.Address...), h.Alias), h.TLSA...)
	}
	for _, l := range lookups {
		if l != nil && l.answered() {
			least = min(least, l.ttl())
		}
	}
	return clampKeep(least)
}

func clampKeep(ttl time.Duration) time.Duration { return min(max(ttl, minKeep), maxKeep) }

// lost returns the names of the hosts that an MTA which insists on DANE skips.
func (r *Report) lost() []string {
	var names []string
	for _, h := range r.Hosts {
		switch h.State {
		case HostNoTLSA, HostUnusable, HostInsecure:
			names = append(names, h.Name)
		}
	}
	return names
}

// look makes a check. With both set, it asks for all addresses, and does not
// break off when the state is clear.
func (c *Checker) look(ctx context.Context, n NextHop, both bool) *Report {
	r := &Report{NextHop: n}
	var hosts []MXHost
	if n.Bracketed {
		hosts = []MXHost{{Name: n.Host}}
	} else {
		r.MX = c.lookup(ctx, n.Host, resolver.TypeMX)
		if !r.readMX() {
			return r
		}
		hosts = r.MXSet.Hosts
	}
	if len(hosts) > maxHosts {
		r.Beyond = len(hosts) - maxHosts
		hosts = hosts[:maxHosts]
	}
	for _, h := range hosts {
		r.Hosts = append(r.Hosts, &Host{MXHost: h})
	}
	c.lookAtHosts(ctx, r, both)
	r.conclude()
	return r
}

// readMX reads the MX lookup, and says whether the hosts are to be looked at.
func (r *Report) readMX() (goOn bool) {
	if !r.MX.answered() {
		r.State, r.Why = Undecided, "the MX lookup failed: "+r.MX.Err.Error() // RFC 7672, 2.1.2
		return false
	}
	r.MXSet = readMX(r.NextHop.Host, r.MX, laxName)
	r.Unsigned = !r.MXSet.Secure
	switch {
	case r.MXSet.NXDomain:
		r.State, r.Why = NoMail, "the domain does not exist"
	case r.MXSet.Null:
		r.State, r.Why = NoMail, "the domain has a null MX: it takes no mail" // RFC 7505
	case !r.MXSet.Secure:
		// RFC 7672, 2.2.1: whoever can forge the MX records can have their
		// own host's TLSA records match.
		r.State, r.Why = UnsignedMX, "the MX records are not authenticated"
	default:
		return true
	}
	return false
}

// lookAtHosts looks at the hosts of r, some at once. When one has usable
// records, the rest gets a little more time.
func (c *Checker) lookAtHosts(ctx context.Context, r *Report, both bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var settle sync.Once
	next := make(chan *Host)
	var working sync.WaitGroup
	for range min(hostsAtOnce, len(r.Hosts)) {
		working.Go(func() {
			for h := range next {
				c.lookAtHostSafely(ctx, h, r.NextHop.Port, both)
				if h.State == HostUsable && !both {
					settle.Do(func() { time.AfterFunc(settleTime, cancel) })
				}
			}
		})
	}
	for _, h := range r.Hosts {
		select {
		case next <- h:
		case <-ctx.Done():
		}
	}
	close(next)
	working.Wait()
}

// lookAtHostSafely is lookAtHost, and leaves a host of which nothing is known
// when that panics.
func (c *Checker) lookAtHostSafely(ctx context.Context, h *Host, port uint16, both bool) {
	defer func() {
		if v := recover(); v != nil {
			c.survived("host", v)
			h.State, h.Failed = HostUnknown, nil
		}
	}()
	c.lookAtHost(ctx, h, port, both)
}

// lookAtHost follows RFC 7672, 2.2.2: addresses first; TLSA at the name that
// its CNAMEs lead to, if all of them are authenticated, then at its own name,
// if that one's CNAME is.
func (c *Checker) lookAtHost(ctx context.Context, h *Host, port uint16, both bool) {
	addresses := c.addresses(ctx, h, both)
	if addresses == nil {
		return
	}
	alias := len(addresses.Answer.CNAMEs) > 0
	if addresses.Security == Secure {
		if c.tlsa(ctx, h, addresses.Answer.Name, port) || !alias {
			return
		}
		c.tlsa(ctx, h, h.Name, port)
		return
	}
	// Name servers of unsigned zones often fail on TLSA: not asked for.
	h.State = HostInsecure
	if !alias {
		return
	}
	h.Alias = c.lookup(ctx, h.Name, resolver.TypeCNAME)
	switch {
	case !h.Alias.answered():
		h.fail(ctx, h.Alias)
	case h.Alias.Security == Secure && h.Alias.found():
		c.tlsa(ctx, h, h.Name, port)
	}
}

// addresses asks for the addresses of h. It returns an answer that has some,
// an authenticated one if there is; or nil if there is none, and says so in
// the state of h. One family is enough: Postfix goes on with it, too.
func (c *Checker) addresses(ctx context.Context, h *Host, both bool) *Lookup {
	var best, failed *Lookup
	for _, qtype := range []resolver.Type{resolver.TypeA, resolver.TypeAAAA} {
		l := c.lookup(ctx, h.Name, qtype)
		h.Address = append(h.Address, l)
		switch {
		case !l.answered():
			failed = l
		case l.found() && (best == nil || l.Security > best.Security):
			best = l
		}
		if best != nil && best.Security == Secure && !both {
			break
		}
	}
	switch {
	case best != nil:
	case failed != nil:
		h.fail(ctx, failed) // RFC 7672, 2.2.2: delivery waits
	default:
		h.State = HostNoAddress
	}
	return best
}

// tlsa asks for the TLSA records of h at name. It returns false if there are
// none there, so that another name may be asked for.
func (c *Checker) tlsa(ctx context.Context, h *Host, name string, port uint16) bool {
	l := c.lookup(ctx, tlsaName(name, port), resolver.TypeTLSA)
	h.TLSA = append(h.TLSA, l)
	switch {
	case !l.answered():
		h.fail(ctx, l)
	case l.Security != Secure || !l.found():
		// Records that are not authenticated are none (RFC 7672, 2.2.3).
		h.State = HostNoTLSA
		return false
	case slices.ContainsFunc(l.Answer.TLSA, UsableRecord):
		h.State = HostUsable
	default:
		h.State = HostUnusable
	}
	return true
}

// fail notes a lookup that failed. One that was broken off because ctx ended
// says nothing of the host.
func (h *Host) fail(ctx context.Context, l *Lookup) {
	h.State, h.Failed = HostFailed, l
	if ctx.Err() != nil {
		h.State = HostUnknown
	}
}

// conclude makes the state of a next-hop from those of its hosts, whose names
// are authenticated or came from the configuration.
func (r *Report) conclude() {
	count := make(map[HostState]int)
	for _, h := range r.Hosts {
		count[h.State]++
		r.Unsigned = r.Unsigned || h.unsigned()
	}
	switch {
	case count[HostUsable] > 0:
		r.State = Usable
		r.Why = fmt.Sprintf("%d of %d hosts have usable TLSA records", count[HostUsable], len(r.Hosts)+r.Beyond)
	case count[HostFailed] > 0:
		// RFC 7672, 2.2.2: an error in any of the lookups delays delivery.
		failed := r.Hosts[slices.IndexFunc(r.Hosts, func(h *Host) bool { return h.State == HostFailed })]
		r.State, r.Why = LookupFailed, fmt.Sprintf("a lookup at host %s failed: %v", failed.Name, failed.Failed.Err)
	case count[HostUnknown] > 0:
		r.State, r.Why = Undecided, "the lookups at its hosts took too long"
	case r.Beyond > 0:
		r.State, r.Why = Undecided, fmt.Sprintf("more than %d MX hosts, and no usable TLSA records at those", maxHosts)
	case len(r.Hosts) == 0:
		r.State, r.Why = Absent, "none of its MX records has a host name"
	default:
		r.State, r.Why = Absent, "no host has usable TLSA records: "+r.reasons(count)
	}
}

// reasons counts the hosts by their states.
func (r *Report) reasons(count map[HostState]int) string {
	var s string
	for _, state := range []HostState{HostNoTLSA, HostUnusable, HostInsecure, HostNoAddress} {
		if n := count[state]; n > 0 {
			if s != "" {
				s += ", "
			}
			s += fmt.Sprintf("%s at %d", state, n)
		}
	}
	return s
}

// unsigned says whether what was found at the host rests on an answer that is
// not authenticated.
func (h *Host) unsigned() bool {
	insecure := func(l *Lookup) bool { return l != nil && l.Security == Insecure }
	return slices.ContainsFunc(h.Address, insecure) || insecure(h.Alias) || slices.ContainsFunc(h.TLSA, insecure)
}

var _ Resolver = (*resolver.Resolver)(nil)
