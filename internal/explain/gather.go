package explain

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// Gather asks for everything about a next-hop, as an MTA would name it. It
// ends when ctx does.
func Gather(ctx context.Context, key string, s Sources) *Report {
	r := &Report{Key: key, now: s.Now(), mapsOf: s.MapsOf}
	hop, kind := mta.ParseKey([]byte(key), nil)
	switch kind {
	case mta.KeyPolicyDomain:
	case mta.KeyUnconvertible:
		r.NoKey, r.Next = kind.String(), "The name cannot be written in A-labels (IDNA): see how the MTA came by it."
		r.Maps = []Reply{{Map: "every map", Reply: "TEMP", Why: r.NoKey}}
		return r
	default:
		r.NoKey, r.Next = kind.String(), "Ask for the domain of a recipient, or the name of a smart host."
		r.Maps = []Reply{{Map: "every map", Reply: "NOTFOUND ", Why: r.NoKey}}
		return r
	}
	r.Domain = string(hop.Domain)

	var steps sync.WaitGroup
	steps.Go(func() { r.discover(ctx, s) })
	steps.Go(func() { r.lookUpMX(ctx, hop.Bracketed, s) })
	steps.Go(func() { r.Cache = readCache(ctx, r.Domain, s) })
	steps.Wait()

	r.choosePolicy()
	r.lookUpDANE(ctx, hop, s)
	r.decide(s)
	r.Next = r.next()
	if hold := r.Cache.notStarted(); hold != nil {
		r.Maps = []Reply{{Map: "every map", Reply: "TEMP " + hold.Reason, Why: "the daemon cannot start"}}
	}
	return r
}

// A Policy is what a lookup for a domain is answered from now.
type Policy struct {
	State  tlsmap.PolicyState
	Policy *policy.Policy // nil: none counts
	Ours   bool           // it could not be fetched for a fault of our own
	From   string         // "held" or "live", as Cache.Counts
	Why    string         // why none counts
	Exempt bool           // the domain is exempt: whatever the policy, it is not applied
}

// Policy finds the policy that counts for a domain: the one held, else the one
// published.
func (s Sources) Policy(ctx context.Context, domain string) Policy {
	r := &Report{Domain: domain, now: s.Now(), Cache: readCache(ctx, domain, s)}
	if r.heldPolicy() == nil {
		r.discover(ctx, s)
	}
	r.choosePolicy()
	p := Policy{State: r.state, Policy: r.policy, Ours: r.ours, From: r.Cache.Counts}
	if h := r.Cache.Held; h != nil {
		p.Exempt = len(h.ExemptBy) > 0
	}
	if p.Policy == nil {
		if p.Why = r.Record.Err; r.Fetch != nil {
			p.Why = cmp.Or(r.Fetch.Err, "an earlier failure is still remembered")
		}
	}
	return p
}

// discover asks for the TXT record, to show it beside the verdict, and fetches
// the policy. Without a record there is no policy to fetch (RFC 8461, 3.3).
func (r *Report) discover(ctx context.Context, s Sources) {
	rec := &Record{Name: policy.RecordName(r.Domain)}
	r.Record = rec
	answer, err := s.Resolver.Query(ctx, rec.Name, resolver.TypeTXT)
	rec.Answer = answerWord(answer, err)
	if err == nil {
		rec.Authenticated, rec.CNAMEs, rec.Texts = answer.Authenticated, answer.CNAMEs, answer.Texts
	}
	found, _, err := s.Policies.Record(ctx, r.Domain)
	rec.Result, rec.ID = policy.ResultOf(err), found.ID
	if err != nil {
		rec.Err = r.failed(err)
		return
	}
	f := &Fetch{URL: policy.URL(r.Domain)}
	r.Fetch = f
	fetched, err := s.Policies.Fetch(ctx, r.Domain, nil)
	f.Result = policy.ResultOf(err)
	if err != nil {
		f.Err = r.failed(err)
		return
	}
	p := fetched.Policy
	f.policy, f.Text, f.Mode, f.MaxAge, f.Patterns = p, string(fetched.Text), p.Mode.String(), int64(p.MaxAge/time.Second), p.MX
	f.Address, f.Millis = fetched.Addr.String(), fetched.Duration.Milliseconds()
	if cert := fetched.Certificate; cert != nil {
		f.Issuer, f.NotAfter = cert.Issuer.String(), cert.NotAfter.UTC()
	}
}

// failed notes what to do about a discovery that failed, and returns the reason.
func (r *Report) failed(err error) string {
	r.ours = policy.OurFault(err)
	if policy.ResultOf(err) != policy.ResultNoRecord {
		r.hint = cmp.Or(strings.ReplaceAll(policy.Hint(err), "DOMAIN", r.Domain), "See the error below.")
	}
	return policy.Reason(err)
}

func answerWord(a *resolver.Answer, err error) string {
	switch {
	case err != nil:
		return err.Error()
	case a.NXDomain:
		return "NXDOMAIN"
	}
	return "NOERROR"
}

// lookUpMX finds where mail goes. Whether a policy lists the hosts is added later.
func (r *Report) lookUpMX(ctx context.Context, bracketed bool, s Sources) {
	m := &MX{Answer: "NOERROR"}
	r.MX = m
	if bracketed {
		r.mxSet = &dane.MXSet{Hosts: []dane.MXHost{{Name: r.Domain}}}
		m.Answer, m.Note = "not asked", "in brackets, the name is the host"
	} else if r.mxSet, r.mxErr = s.NextHops.MX(ctx, r.Domain); r.mxErr != nil {
		m.Answer = r.mxErr.Error()
		return
	}
	switch {
	case r.mxSet.Null:
		m.Note = "the domain takes no mail (null MX, RFC 7505)"
	case r.mxSet.NXDomain:
		m.Answer, m.Note = "NXDOMAIN", "the domain does not exist"
	}
	for _, h := range r.mxSet.Hosts {
		m.Hosts = append(m.Hosts, Host{Name: h.Name, Preference: h.Preference})
	}
}

func readCache(ctx context.Context, domain string, s Sources) *Cache {
	h, from, err := s.Held(ctx, domain)
	c := &Cache{From: from, notAsked: s.NotAsked}
	if !errors.Is(s.NotAsked, control.ErrNoDaemon) {
		c.askHint = s.AskHint
	}
	switch {
	case err == nil:
		c.Held = &h
	case !errors.Is(err, control.ErrNothingHeld):
		c.err, c.Err = err, err.Error()
	}
	return c
}

// lookUpDANE asks all about the next-hop's DANE, after the resolver was probed.
func (r *Report) lookUpDANE(ctx context.Context, hop mta.NextHop, s Sources) {
	probe := s.NextHops.Probe(ctx)
	d := &DANE{Resolver: probe.Verdict.String()}
	r.DANE = d
	if v := probe.Verdict; v != dane.NoVerdict {
		d.Validates = new(v == dane.Validates)
	}
	listed := func(string) bool { return true }
	if r.policy != nil {
		listed = tlsmap.AcceptedBy(tlsmap.MatchList(r.policy))
	}
	if n, ok := tlsmap.DANENextHop(hop); ok {
		d.hop = n.String()
		r.report(s.NextHops.Look(ctx, n, listed))
	} else {
		d.finding.Why = tlsmap.UnknownPort
	}
	d.State, d.Why = d.finding.State.String(), d.finding.Why
}

// report takes over what a check saw.
func (r *Report) report(seen *dane.Report) {
	d := r.DANE
	d.finding, d.Beyond = seen.Finding, seen.Beyond
	if mx := seen.MX; mx != nil && mx.Answer != nil {
		r.MX.Authenticated = mx.Security == dane.Secure
		if !mx.Answer.NXDomain && len(mx.Answer.Data()) == 0 {
			r.MX.Note = "no MX records: the domain is its own mail host"
		}
	}
	for _, h := range seen.Hosts {
		host := DANEHost{Name: h.Name, Preference: h.Preference, State: h.State.String()}
		if l := h.Failed; l != nil {
			host.Failed = l.Name + " " + l.Type.String()
		}
		d.Hosts = append(d.Hosts, host)
	}
}
