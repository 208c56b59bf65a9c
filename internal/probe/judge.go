package probe

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/explain"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

// A domain is a domain under probe.
type domain struct {
	p      *Prober
	name   string // the policy domain
	known  tlsmap.Known
	mx     Outcome // the MX lookup
	hosts  []*host // the most preferred first
	more   int     // hosts that were not looked at
	spared bool    // no host was probed
}

// gather looks up and probes what is needed of a domain.
func (d *domain) gather(ctx context.Context, hop mta.NextHop, pol explain.Policy) {
	p := d.p
	p.validate.Do(func() { p.NextHops.Probe(ctx) })
	d.known = tlsmap.Known{Domain: d.name, State: pol.State, Policy: pol.Policy, Ours: pol.Ours}
	set := &dane.MXSet{Hosts: []dane.MXHost{{Name: d.name}}}
	if !hop.Bracketed {
		set, d.known.MXErr = p.NextHops.MX(ctx, d.name)
	}
	asks := pol.State == tlsmap.PolicyEnforced || pol.State == tlsmap.PolicyTesting
	if n, ok := tlsmap.DANENextHop(hop); asks && ok {
		d.known.DANE = p.NextHops.Look(ctx, n, tlsmap.AcceptedBy(tlsmap.MatchList(pol.Policy))).Finding
	}
	d.known.MX, d.mx = set, passes("")
	switch {
	case hop.Port == 0:
		d.mx = unknown(tlsmap.UnknownPort)
	case d.known.MXErr != nil:
		d.mx = notLookedUp("the MX lookup fails", d.known.MXErr)
	case set.NXDomain:
		d.mx = unknown("the domain does not exist: the MTA returns the mail")
	case set.Null:
		d.mx = unknown("the domain takes no mail (null MX): the MTA returns it")
	case len(set.Hosts) == 0:
		d.mx = fails("", "none of its MX records has a host name")
	}
	if d.mx.State != Passes {
		return
	}
	d.more = max(len(set.Hosts)-maxHosts, 0)
	for _, mx := range set.Hosts[:len(set.Hosts)-d.more] {
		h := p.host(mx.Name, hop.Port)
		p.look(ctx, h)
		d.hosts = append(d.hosts, h)
	}
	if d.spared = p.Sparing && !asks && pol.State != tlsmap.PolicyUnreadable && !d.hasDANE(); d.spared {
		return
	}
	for _, h := range d.hosts {
		p.connect(ctx, h)
	}
}

// hasDANE says whether the MTA may have to do DANE at a host.
func (d *domain) hasDANE() bool {
	return slices.ContainsFunc(d.hosts, func(h *host) bool {
		return h.dane == dane.HostUsable || h.dane == dane.HostUnusable || h.dane == dane.HostFailed
	})
}

// under says what becomes of mail by the reply of a map for a policy in that state.
func (d *domain) under(m mta.Map, state tlsmap.PolicyState, doesDANE bool) Outcome {
	table, err := tlsmap.NewTable([]mta.Map{m})
	if err != nil {
		return unknown(err.Error())
	}
	known := d.known
	known.State = state
	r := table.Replies(known)[0]
	switch {
	case d.known.MXErr != nil:
		return d.mx
	case r.Deferred && (known.Ours || m.DANE && known.Policy != nil && known.DANE.State == dane.Undecided):
		return unknown(r.Why) // says nothing about the domain
	case r.Deferred:
		return fails("", "%s", r.Why)
	case d.mx.State != Passes:
		return d.mx
	case d.spared:
		return passes("no policy is enforced, and there is no DANE: its hosts were not probed")
	}
	o := read(r.Reply)
	if m.Format == mta.FormatSendmail {
		for _, name := range o.match {
			if name[0] == '.' {
				name = "*" + name
			}
			o.patterns = append(o.patterns, name)
		}
	}
	return d.obey(o, doesDANE)
}

// obey says what becomes of mail when the MTA does as it was told. One host suffices.
func (d *domain) obey(o order, doesDANE bool) Outcome {
	for _, h := range d.hosts { // Exim's router looks all of them up before it uses one
		if slices.Contains(o.hosts, h.Host) && len(h.addrs) == 0 && h.dane == dane.HostFailed {
			return fails("", "%s: %s", h.Host, h.reach.Reason)
		}
	}
	var open, failed []Outcome
	for _, h := range d.hosts {
		out := h.by(o, doesDANE)
		if out.Result != "" {
			out.Reason = string(out.Result) + ": " + out.Reason
		}
		out.Reason = h.Host + ": " + out.Reason
		switch out.State {
		case Passes:
			return out
		case Unknown:
			open = append(open, out)
		default:
			failed = append(failed, out)
		}
	}
	switch {
	case len(open) > 0:
		return open[0]
	case d.more > 0:
		return unknown(fmt.Sprintf("none of the first %d MX hosts will do; %d more were not looked at", maxHosts, d.more))
	case len(failed) > 1:
		failed[0].Reason += fmt.Sprintf(" (and %d more hosts fail)", len(failed)-1)
	}
	return failed[0]
}

// An order is what the reply of a map has the MTA do.
type order struct {
	alone    bool     // no policy: opportunistic TLS, and DANE
	daneOnly bool     // hosts with TLSA records only
	hosts    []string // format exim: the hosts to use, with certificates for their names
	match    []string // Postfix: the names that a certificate may have
	patterns []string // Postfix 3.10.5 and later, sendmail: the hosts to use; then the names are the hosts'
}

// read reads the reply of a map.
func read(reply string) (o order) {
	reply, ok := strings.CutPrefix(reply, "OK ")
	secure, isSecure := strings.CutPrefix(reply, "secure ")
	switch {
	case !ok:
		o.alone = true
	case reply == "dane-only":
		o.daneOnly = true
	case !isSecure:
		o.hosts = strings.Split(reply, ":")
	}
	for field := range strings.FieldsSeq(secure) {
		if list, ok := strings.CutPrefix(field, "match="); ok {
			o.match = strings.Split(list, ":")
		} else if pattern, ok := strings.CutPrefix(field, "mx_host_pattern="); ok {
			o.patterns = append(o.patterns, pattern)
		}
	}
	return o
}

// lists says whether mail may go to a host by its name.
func (o order) lists(host string) bool {
	if o.patterns != nil {
		return slices.ContainsFunc(o.patterns, func(p string) bool { return policy.Match(p, host) })
	}
	return o.hosts == nil || slices.Contains(o.hosts, host)
}

// by judges a host by an order.
func (h *host) by(o order, doesDANE bool) Outcome {
	doesDANE = o.daneOnly || doesDANE && (o.alone || o.hosts != nil) // not under "secure"
	switch {
	case !o.lists(h.Host):
		return fails("", "the policy does not list it")
	case h.dane == dane.HostNoAddress:
		return h.reach
	case doesDANE && h.dane == dane.HostUsable:
		return first(h.tls, h.tlsaOK, passes("its certificate matches its TLSA records"))
	case doesDANE && h.dane == dane.HostFailed:
		return fails(tlsrpt.DNSSECInvalid, "the lookup of its addresses or TLSA records fails")
	case doesDANE && h.dane == dane.HostUnknown:
		return unknown("the lookup of its TLSA records took too long")
	case o.daneOnly:
		return fails(tlsrpt.DANERequired, "DANE protects the domain, but this host has no usable TLSA records")
	case doesDANE && h.dane == dane.HostUnusable && o.alone: // RFC 7672, 2.2
		return first(h.tls, passes("it does TLS; its TLSA records are not usable"))
	case o.alone:
		return first(h.reach, passes("it takes mail, by TLS or without"))
	case h.tls.State != Passes:
		return h.tls
	}
	named := h.leaf.VerifyHostname(h.Host) == nil // RFC 8461, 4.2
	if o.patterns == nil && o.hosts == nil {
		named = matches(h.leaf, o.match)
	}
	out := first(h.trust, passes("its certificate is valid until "+text.Clock(h.leaf.NotAfter)))
	switch other := mismatch(h.leaf); {
	case !named && h.trust.State == Passes:
		return other
	case !named:
		out.Reason += "; " + other.Reason
	}
	return out
}

// first returns the first Outcome that does not pass, else the last.
func first(outcomes ...Outcome) (o Outcome) {
	for _, o = range outcomes {
		if o.State != Passes {
			break
		}
	}
	return o
}
