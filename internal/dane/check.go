package dane

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// A Report is a check with all that was seen on the way.
type Report struct {
	NextHop  NextHop
	State    State
	Why      string
	MX       *Lookup  // nil if the next-hop is in brackets
	Hosts    []*Host  // the most preferred first
	Beyond   int      // listed hosts that were not looked at, since there are too many
	Rest     []string // as Finding.Hosts
	Unsigned bool     // the state rests on an answer that is not authenticated
}

// A HostState is what came of the lookups at one host.
type HostState uint8

// The states of a host. The zero value is that of one not looked at to the end.
const (
	HostUnknown   HostState = iota // time ran out
	HostUnlisted                   // the policy does not list it: not looked at
	HostUsable                     // usable TLSA records
	HostUnusable                   // TLSA records, none of them usable
	HostNoTLSA                     // no TLSA records
	HostInsecure                   // its addresses are not authenticated: TLSA is not asked for
	HostNoAddress                  // it has no addresses
	HostFailed                     // a lookup failed
	hostStates
)

var hostStateNames = [hostStates]string{
	"not looked at to the end", "not listed by the policy", "usable TLSA records", "no usable TLSA record", "no TLSA records",
	"addresses not authenticated", "no addresses", "lookup failed",
}

func (s HostState) String() string { return hostStateNames[s] }

// A Host is one host of a next-hop, and the lookups at it.
type Host struct {
	MXHost
	State   HostState
	Address []*Lookup // A, AAAA, in the order asked
	Alias   *Lookup   // the CNAME at the host's name, where it was asked for by itself
	TLSA    []*Lookup // at the final name, at the original name: those that were asked for
	Failed  *Lookup   // the lookup that made it HostFailed

	unsigned bool      // State rests on an answer that is not authenticated
	until    time.Time // State holds until then
}

// Lookups returns the lookups at the host, in the order asked.
func (h *Host) Lookups() []*Lookup {
	lookups := slices.Clone(h.Address)
	if h.Alias != nil {
		lookups = append(lookups, h.Alias)
	}
	return append(lookups, h.TLSA...)
}

// settled says whether what was found at the host was an answer.
func (h *Host) settled() bool {
	return h.State != HostUnknown && h.State != HostUnlisted && h.State != HostFailed
}

// hop returns the report as it is held.
func (r *Report) hop() *hop {
	f := brief(r.State, r.Why)
	f.Hosts = r.Rest
	held := new(hop)
	least := keep(r.MX)
	for _, h := range r.Hosts {
		held.hosts = append(held.hosts, &Host{MXHost: h.MXHost, State: h.State, unsigned: h.unsigned, until: h.until})
		if h.settled() {
			least = min(least, time.Until(h.until))
		}
	}
	switch r.State {
	case Undecided, LookupFailed, SomeFailed, AddressesFailed:
	default:
		f.Until = time.Now().Add(max(least, minKeep))
	}
	held.finding = f
	return held
}

// look makes a check of the hosts that are listed, and of known takes what
// still holds. With all set, it asks for all addresses, and does not break off
// when the state is clear.
func (c *Checker) look(ctx context.Context, n NextHop, listed func(string) bool, known []*Host, all bool) *Report {
	r := &Report{NextHop: n}
	hosts := []MXHost{{Name: n.Host}}
	if !n.Bracketed {
		r.MX = c.lookup(ctx, n.Host, resolver.TypeMX)
		set := r.readMX()
		if set == nil {
			return r
		}
		hosts = set.Hosts
	}
	for i, mx := range hosts {
		h := &Host{MXHost: mx}
		switch same := slices.IndexFunc(known, func(k *Host) bool { return k.Name == mx.Name }); {
		case !listed(mx.Name):
			h.State = HostUnlisted
		case i >= maxHosts:
			r.Beyond++
		case same >= 0 && known[same].settled() && time.Now().Before(known[same].until):
			h = known[same]
		}
		if i < maxHosts {
			r.Hosts = append(r.Hosts, h)
		}
	}
	c.lookAtHosts(ctx, r, all)
	r.conclude()
	return r
}

// readMX reads the MX lookup. It returns nil if that decides already.
func (r *Report) readMX() *MXSet {
	if !r.MX.answered() {
		r.State, r.Why = Undecided, "the MX lookup failed: "+r.MX.Err.Error() // RFC 7672, 2.1.2
		return nil
	}
	set := readMX(r.NextHop.Host, r.MX.Answer)
	r.Unsigned = r.MX.Security != Secure
	switch {
	case set.NXDomain:
		r.State, r.Why = NoMail, "the domain does not exist"
	case set.Null:
		r.State, r.Why = NoMail, "the domain has a null MX"
	case r.Unsigned: // RFC 7672, 2.2.1
		r.State, r.Why = UnsignedMX, "the MX records are not authenticated"
	default:
		return set
	}
	return nil
}

// lookAtHosts looks at the hosts of r, some at once. When one has usable
// records, the others get a little more time.
func (c *Checker) lookAtHosts(ctx context.Context, r *Report, all bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var settle sync.Once
	var working errgroup.Group
	working.SetLimit(hostsAtOnce)
	for _, h := range r.Hosts {
		if h.State != HostUnknown {
			continue
		}
		working.Go(func() error {
			c.lookAtHost(ctx, h, r.NextHop.Port, all)
			h.unsigned = slices.ContainsFunc(h.Lookups(), func(l *Lookup) bool { return l.Security == Insecure })
			h.until = time.Now().Add(keep(h.Lookups()...))
			if h.State == HostUsable && !all {
				settle.Do(func() { time.AfterFunc(settleTime, cancel) })
			}
			return nil
		})
	}
	working.Wait()
}

// lookAtHost follows RFC 7672, 2.2.2: addresses first; TLSA at the name that
// its CNAMEs lead to, if all of them are authenticated, then at its own name,
// if that one's CNAME is.
func (c *Checker) lookAtHost(ctx context.Context, h *Host, port uint16, all bool) {
	addresses := c.addresses(ctx, h, all)
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
// the state of h. One family is enough: Postfix goes on with it, too. Where
// nobody answers for one family, the other is not asked for.
func (c *Checker) addresses(ctx context.Context, h *Host, all bool) *Lookup {
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
		if l.timedOut() || best != nil && best.Security == Secure && !all {
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

// fail notes a lookup that failed. One that was broken off says nothing of the
// host.
func (h *Host) fail(ctx context.Context, l *Lookup) {
	h.State, h.Failed = HostFailed, l
	if ctx.Err() != nil || l.Err == errPanic {
		h.State = HostUnknown
	}
}

// conclude makes the state of a next-hop from those of its listed hosts, whose
// names are authenticated or came from the configuration.
func (r *Report) conclude() {
	count := make(map[HostState]int)
	var failed *Host
	onlyAddresses := true
	for _, h := range r.Hosts {
		count[h.State]++
		r.Unsigned = r.Unsigned || h.unsigned
		switch h.State {
		case HostNoTLSA, HostUnusable, HostInsecure:
			r.Rest = append(r.Rest, h.Name)
		case HostFailed:
			failed = h
			onlyAddresses = onlyAddresses && (h.Failed.Type == resolver.TypeA || h.Failed.Type == resolver.TypeAAAA)
		}
	}
	switch {
	case count[HostUsable] > 0:
		r.State, r.Why = Usable, fmt.Sprintf("%d of %d hosts have usable TLSA records", count[HostUsable], len(r.Hosts)+r.Beyond-count[HostUnlisted])
	case count[HostUnknown] > 0:
		r.State, r.Why = Undecided, "the lookups at its hosts took too long"
	case r.Beyond > 0:
		r.State, r.Why = Undecided, fmt.Sprintf("more than %d MX hosts, and no usable TLSA records at those", maxHosts)
	case failed != nil && len(r.Rest) > 0:
		r.State = SomeFailed
		if onlyAddresses {
			r.State = AddressesFailed
		}
		r.Why = fmt.Sprintf("a lookup at host %s failed, and other hosts are without DANE: %v", failed.Name, failed.Failed.Err)
		return
	case failed != nil:
		r.State, r.Why = LookupFailed, fmt.Sprintf("a lookup at host %s failed: %v", failed.Name, failed.Failed.Err)
	case len(r.Hosts) == 0:
		r.State, r.Why = Absent, "none of its MX records has a host name"
	case count[HostUnlisted] == len(r.Hosts):
		r.State, r.Why = NoMail, "the policy lists none of its MX hosts"
	default:
		r.State, r.Why = Absent, "no host has usable TLSA records: "+reasons(count)
	}
	r.Rest = nil
}

// reasons counts the hosts without DANE by their states.
func reasons(count map[HostState]int) string {
	var s []string
	for _, state := range []HostState{HostNoTLSA, HostUnusable, HostInsecure, HostNoAddress} {
		if n := count[state]; n > 0 {
			s = append(s, fmt.Sprintf("%s at %d", state, n))
		}
	}
	return strings.Join(s, ", ")
}
