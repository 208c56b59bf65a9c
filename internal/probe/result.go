package probe

import (
	"context"
	"crypto/tls"

	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// A Result is what a probe says of a domain.
type Result struct {
	Domain  string  `json:"domain"` // as asked for
	Verdict Verdict `json:"verdict"`
	// By the policy alone, by DANE alone (RFC 7672), and if a testing policy were enforced.
	UnderPolicy Verdict `json:"under_policy"`
	UnderDANE   Verdict `json:"under_dane"`
	IfEnforced  Verdict `json:"if_enforced"`
	Reason      string  `json:"reason"` // for Verdict, in one line; text from the network in it is printable
	// OlderPostfix is what Postfix before 3.10.5 does, if that differs.
	OlderPostfix Verdict  `json:"older_postfix,omitempty"`
	Policy       string   `json:"policy"` // enforce, testing or none; empty: none counts
	PolicyFrom   string   `json:"policy_from,omitempty"`
	NoPolicy     string   `json:"no_policy,omitempty"` // why
	Exempt       bool     `json:"exempt,omitempty"`
	Hosts        []string `json:"hosts"`

	ifEnforced string // the reason
	hosts      []*Host
}

// A Host is what a probe says of an MX host of a domain.
type Host struct {
	Domain      string       `json:"domain"`
	Host        string       `json:"host"`
	Address     string       `json:"address,omitempty"`
	TLS         string       `json:"tls,omitempty"`
	Certificate *Certificate `json:"certificate,omitempty"`
	DANE        string       `json:"dane"`         // the state of its TLSA records
	UnderPolicy *Outcome     `json:"under_policy"` // null: there is no policy to be enforced
	UnderDANE   *Outcome     `json:"under_dane"`   // null: it has no usable TLSA records
	STARTTLS    Outcome      `json:"starttls"`     // all up to the end of the TLS handshake
}

// Domain probes a domain, or another next-hop as an MTA names it.
func (p *Prober) Domain(ctx context.Context, nextHop string) *Result {
	r := &Result{Domain: nextHop, Verdict: NotKnown, UnderPolicy: DoesNotApply, UnderDANE: DoesNotApply, IfEnforced: DoesNotApply, Hosts: []string{}}
	hop, kind := mta.ParseKey([]byte(nextHop), nil)
	if kind != mta.KeyPolicyDomain {
		r.Reason = kind.String()
		return r
	}
	d := &domain{p: p, name: string(hop.Domain)}
	pol := p.Policy(ctx, d.name)
	r.PolicyFrom, r.NoPolicy, r.Exempt = pol.From, pol.Why, pol.Exempt
	if pol.Policy != nil {
		r.Policy = pol.Policy.Mode.String()
	}
	d.gather(ctx, hop, pol)
	d.conclude(r, pol.State)
	for _, h := range d.hosts {
		r.Hosts = append(r.Hosts, h.Host)
		r.hosts = append(r.hosts, d.describe(h))
	}
	return r
}

// conclude draws the verdicts.
func (d *domain) conclude(r *Result, state tlsmap.PolicyState) {
	m := d.p.Map
	m.Enforce = true
	exim := m.Format == mta.FormatExim
	doesDANE := m.DANE || exim
	applied := state
	if r.Exempt {
		applied = tlsmap.PolicyAbsent
	}
	out := d.under(m, applied, doesDANE)
	r.Verdict, r.Reason = verdicts[out.State], out.Reason
	plain, testing, older := m, m, m
	plain.DANE, testing.Testing, older.TLSRPT = false, true, false
	switch state {
	case tlsmap.PolicyEnforced, tlsmap.PolicyUnreadable:
		r.UnderPolicy = verdicts[d.under(plain, state, false).State]
	case tlsmap.PolicyTesting:
		out := d.under(testing, state, doesDANE)
		r.IfEnforced, r.ifEnforced = verdicts[out.State], out.Reason
	}
	if d.hasDANE() {
		r.UnderDANE = verdicts[d.under(m, tlsmap.PolicyAbsent, true).State]
	}
	if v := verdicts[d.under(older, applied, doesDANE).State]; m.Format == mta.FormatPostfix && v != r.Verdict {
		r.OlderPostfix = v
	}
}

var verdicts = map[State]Verdict{Passes: Delivered, Fails: Waits, Unknown: NotKnown}

// describe says what was seen of a host.
func (d *domain) describe(h *host) *Host {
	x := &Host{Domain: d.name, Host: h.Host, DANE: h.dane.String(), STARTTLS: h.tls}
	if h.addr.IsValid() {
		x.Address = h.addr.String()
	}
	if h.leaf != nil {
		x.TLS, x.Certificate = tls.VersionName(h.version), describe(h.leaf)
	}
	if p := d.known.Policy; p != nil && len(p.MX) > 0 {
		x.UnderPolicy = new(h.by(order{patterns: p.MX}, false))
	}
	if h.dane == dane.HostUsable || h.dane == dane.HostFailed {
		x.UnderDANE = new(h.by(order{daneOnly: true}, true))
	}
	return x
}
