package dane

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// A Report is a check with all lookups that it made.
type Report struct {
	NextHop NextHop
	Finding Finding
	MX      *Lookup // nil if the next-hop is in brackets
	Hosts   []*Host // the most preferred first
	Beyond  int     // listed hosts that were not looked at, since there are too many

	unsigned bool     // the state rests on an answer that is not authenticated
	barred   []string // as in Finding
	lost     []string // listed hosts that get no mail, because only others have DANE or lookups fail
}

// conclude notes what follows from the lookups.
func (r *Report) conclude(s State, why string) { r.Finding = brief(s, why) }

// A HostState is the result of the lookups at one host.
type HostState uint8

// The states of a host. The zero value means that the check of the host did not end.
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
	Lookups []*Lookup // in the order asked
	Failed  *Lookup   // the lookup that made it HostFailed

	unsigned bool      // State rests on an answer that is not authenticated
	until    time.Time // State holds until then
}

// settled says whether what was found at the host was an answer.
func (h *Host) settled() bool {
	return h.State != HostUnknown && h.State != HostUnlisted && h.State != HostFailed
}

// hop returns the report as it is held.
func (r *Report) hop() *hop {
	held := &hop{finding: r.Finding}
	held.finding.Barred = r.barred
	least := keep(r.MX)
	for _, h := range r.Hosts {
		held.hosts = append(held.hosts, &Host{MXHost: h.MXHost, State: h.State, unsigned: h.unsigned, until: h.until})
		if h.settled() {
			least = min(least, time.Until(h.until))
		}
	}
	switch r.Finding.State {
	case Undecided, LookupFailed, SomeFailed, AddressesFailed:
	default:
		held.finding.Until = time.Now().Add(max(least, minKeep))
	}
	return held
}

// look checks the listed hosts. It reuses findings in known that are still valid.
func (c *Checker) look(ctx context.Context, n NextHop, listed func(string) bool, known []*Host) *Report {
	r := &Report{NextHop: n}
	hosts := []MXHost{{Name: n.Host}}
	if !n.Bracketed {
		r.MX = c.lookup(ctx, n.Host, resolver.TypeMX)
		set := r.readMX(listed)
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
	c.lookAtHosts(ctx, r)
	r.concludeFromHosts()
	return r
}

// readMX reads the MX lookup. It returns nil if that decides already.
func (r *Report) readMX(listed func(string) bool) *MXSet {
	if !r.MX.answered() {
		r.conclude(Undecided, "the MX lookup failed: "+r.MX.Err.Error()) // RFC 7672, 2.1.2
		return nil
	}
	set := readMX(r.NextHop.Host, r.MX.Answer)
	r.barred = Barred(set.Hosts, listed)
	r.unsigned = r.MX.Security != Secure
	switch {
	case set.NXDomain:
		r.conclude(NoMail, "the domain does not exist")
	case set.Null:
		r.conclude(NoMail, "the domain has a null MX")
	case r.unsigned: // RFC 7672, 2.2.1
		r.conclude(UnsignedMX, "the MX records are not authenticated")
	default:
		return set
	}
	return nil
}

// lookAtHosts looks at the hosts of r. One with usable records decides.
func (c *Checker) lookAtHosts(ctx context.Context, r *Report) {
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
			defer func() {
				if v := recover(); v != nil { // in this goroutine it would end the daemon
					c.recovered("host", v)
					h.State = HostUnknown
				}
			}()
			c.lookAtHost(ctx, h, r.NextHop.Port)
			h.unsigned = slices.ContainsFunc(h.Lookups, func(l *Lookup) bool { return l.Security == Insecure })
			h.until = time.Now().Add(keep(h.Lookups...))
			if h.State == HostUsable {
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
func (c *Checker) lookAtHost(ctx context.Context, h *Host, port uint16) {
	addresses := c.addresses(ctx, h)
	if addresses == nil {
		return
	}
	alias := len(addresses.Answer.CNAMEs) > 0
	if addresses.Security == Secure {
		if !c.tlsa(ctx, h, addresses.Answer.Name, port) && alias {
			c.tlsa(ctx, h, h.Name, port)
		}
		return
	}
	// Name servers of unsigned zones often fail on TLSA: not asked for.
	if h.State = HostInsecure; !alias {
		return
	}
	switch l := c.lookupAt(ctx, h, h.Name, resolver.TypeCNAME); {
	case !l.answered():
		h.fail(ctx, l)
	case l.Security == Secure && l.found():
		c.tlsa(ctx, h, h.Name, port)
	}
}

// lookupAt asks a question about h.
func (c *Checker) lookupAt(ctx context.Context, h *Host, name string, qtype resolver.Type) *Lookup {
	l := c.lookup(ctx, name, qtype)
	h.Lookups = append(h.Lookups, l)
	return l
}

// addresses returns an answer with addresses of h, an authenticated one if possible,
// or sets the state of h and returns nil. One family is enough, as for Postfix. If
// no server answers for one family, the other is not asked for.
func (c *Checker) addresses(ctx context.Context, h *Host) *Lookup {
	var best, failed *Lookup
	for _, qtype := range []resolver.Type{resolver.TypeA, resolver.TypeAAAA} {
		l := c.lookupAt(ctx, h, h.Name, qtype)
		switch {
		case !l.answered():
			failed = l
		case l.found() && (best == nil || l.Security > best.Security):
			best = l
		}
		if l.timedOut() || best != nil && best.Security == Secure {
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

// tlsa asks for the TLSA records of h at name. It is false if there are none.
func (c *Checker) tlsa(ctx context.Context, h *Host, name string, port uint16) bool {
	l := c.lookupAt(ctx, h, tlsaName(name, port), resolver.TypeTLSA)
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

// fail notes a failed lookup. A cancelled lookup tells nothing about the host.
func (h *Host) fail(ctx context.Context, l *Lookup) {
	h.State, h.Failed = HostFailed, l
	if ctx.Err() != nil || l.Err == errPanic {
		h.State = HostUnknown
	}
}

// concludeFromHosts derives the state of a next-hop from the states of its hosts.
func (r *Report) concludeFromHosts() {
	count := make(map[HostState]int)
	var first *Host // the first host where a lookup failed
	var failed, without []string
	onlyAddresses := true
	for _, h := range r.Hosts {
		count[h.State]++
		r.unsigned = r.unsigned || h.unsigned
		switch h.State {
		case HostNoTLSA, HostUnusable, HostInsecure:
			without = append(without, h.Name)
		case HostFailed:
			first = cmp.Or(first, h)
			failed = append(failed, h.Name)
			onlyAddresses = onlyAddresses && (h.Failed.Type == resolver.TypeA || h.Failed.Type == resolver.TypeAAAA)
		}
	}
	switch {
	case count[HostUsable] > 0:
		r.conclude(Usable, fmt.Sprintf("%d of %d hosts have usable TLSA records", count[HostUsable], len(r.Hosts)+r.Beyond-count[HostUnlisted]))
		r.lost = without
	case count[HostUnknown] > 0:
		r.conclude(Undecided, "the lookups at its hosts took too long")
	case r.Beyond > 0:
		r.conclude(Undecided, fmt.Sprintf("more than %d MX hosts, and no usable TLSA records at those", maxHosts))
	case first != nil && without == nil:
		r.conclude(LookupFailed, fmt.Sprintf("a lookup at host %s failed: %v", first.Name, first.Failed.Err))
	case first != nil:
		r.conclude(SomeFailed, fmt.Sprintf("a lookup at host %s failed, and other hosts are without DANE: %v", first.Name, first.Failed.Err))
		if onlyAddresses {
			r.Finding.State = AddressesFailed
		}
		r.Finding.Hosts, r.lost = without, failed
	case len(r.Hosts) == 0:
		r.conclude(Absent, "none of its MX records has a host name")
	case count[HostUnlisted] == len(r.Hosts):
		r.conclude(NoMail, "the policy lists none of its MX hosts")
	default:
		r.conclude(Absent, "no host has usable TLSA records: "+reasons(count))
	}
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
