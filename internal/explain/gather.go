package explain

import (
	"context"
	"errors"
	"slices"
	"sort"
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

const (
	maxHosts = 50 // MX hosts that are shown
	maxTexts = 20 // TXT records that are shown

	maxPatterns = 20 // mx patterns of a policy that are listed beside its text
	maxNamed    = 5  // hosts named in a sentence

	// minLife is how long a policy counts after its fetch, whatever its
	// max_age, as the keeper has it.
	minLife = time.Minute
)

// Gather asks for everything about a next-hop, as an MTA would name it. It
// ends when ctx does.
func Gather(ctx context.Context, key string, s Sources) *Report {
	r := &Report{Key: key, now: s.Now()}
	hop, kind := mta.ParseKey([]byte(key), nil)
	if kind != mta.KeyPolicyDomain {
		r.NoKey = kind.String()
		r.noPolicyDomain(kind)
		return r
	}
	r.Domain = string(hop.Domain)

	var steps sync.WaitGroup
	steps.Go(func() {
		r.Record = record(ctx, r.Domain, s)
		if r.Record.Result == policy.ResultOK {
			r.Fetch = fetch(ctx, r.Domain, s)
		}
	})
	steps.Go(func() { r.MX = mx(ctx, r.Domain, hop.Bracketed, s) })
	steps.Go(func() { r.mxSet, r.mxErr = mxHosts(ctx, hop, s) })
	steps.Go(func() { r.Cache = held(ctx, r.Domain, s) })
	steps.Wait()

	r.choosePolicy()
	r.DANE = lookAtDANE(ctx, hop, r.listed(), s)
	r.decide(s)
	r.compareExemptions(s)
	r.compareMaps(s)
	r.Next = r.next()
	return r
}

// noPolicyDomain fills in what is left to say of a key that is no domain.
func (r *Report) noPolicyDomain(kind mta.KeyKind) {
	r.Maps = []Reply{{Map: "every map", Reply: "NOTFOUND ", Why: kind.String()}}
	r.Next = "Ask for the domain of a recipient, or the name of a smart host."
	if kind == mta.KeyUnconvertible {
		r.Maps[0].Reply = "TEMP"
		r.Next = "The name cannot be written in A-labels (IDNA): see how the MTA came by it."
	}
}

// record asks for the TXT record, and shows what was found beside the verdict.
func record(ctx context.Context, domain string, s Sources) *Record {
	rec := &Record{Name: policy.RecordName(domain)}
	answer, err := s.Resolver.Query(ctx, rec.Name, resolver.TypeTXT)
	rec.Answer = answerWord(answer, err)
	if err == nil {
		rec.Authenticated = answer.Authenticated
		rec.CNAMEs = answer.CNAMEs
		rec.Texts = answer.Texts[:min(len(answer.Texts), maxTexts)]
	}
	found, _, err := s.Policies.Record(ctx, domain)
	rec.Result, rec.ID = policy.ResultOf(err), found.ID
	if err != nil {
		rec.Err, rec.hint = reason(err), hintFor(err, domain)
	}
	return rec
}

func fetch(ctx context.Context, domain string, s Sources) *Fetch {
	f := &Fetch{URL: policy.URL(domain)}
	fetched, err := s.Policies.Fetch(ctx, domain, nil)
	f.Result = policy.ResultOf(err)
	if err != nil {
		f.Err, f.hint = reason(err), hintFor(err, domain)
		return f
	}
	f.fetched = fetched
	f.Address, f.Millis = fetched.Addr.String(), fetched.Duration.Milliseconds()
	if cert := fetched.Certificate; cert != nil {
		f.Issuer, f.NotAfter = cert.Issuer.String(), cert.NotAfter.UTC()
	}
	f.Text = string(fetched.Text)
	f.Mode, f.MaxAge, f.Patterns = fetched.Policy.Mode.String(), int64(fetched.Policy.MaxAge/time.Second), fetched.Policy.MX
	return f
}

// reason is an error without the domain and the result in front, which are
// said beside it.
func reason(err error) string {
	var pe *policy.Error
	if errors.As(err, &pe) && pe.Err != nil {
		return pe.Err.Error()
	}
	return err.Error()
}

func hintFor(err error, domain string) string {
	return strings.ReplaceAll(policy.Hint(err), "DOMAIN", domain)
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

// mx finds where mail goes. Whether a policy lists the hosts is added later.
func mx(ctx context.Context, domain string, bracketed bool, s Sources) *MX {
	if bracketed {
		return &MX{Answer: "not asked", Hosts: []Host{{Name: domain}}, Note: "in brackets, the name is the host"}
	}
	answer, err := s.Resolver.Query(ctx, domain, resolver.TypeMX)
	m := &MX{Answer: answerWord(answer, err)}
	if err != nil {
		return m
	}
	m.Authenticated = answer.Authenticated
	for _, mx := range answer.MX {
		m.Hosts = append(m.Hosts, Host{Name: mx.Host, Preference: mx.Preference})
	}
	switch {
	case len(m.Hosts) == 1 && m.Hosts[0].Name == ".":
		m.Hosts, m.Note = nil, "the domain takes no mail (null MX, RFC 7505)"
	case len(m.Hosts) == 0 && answer.NXDomain:
		m.Note = "the domain does not exist"
	case len(m.Hosts) == 0:
		m.Hosts, m.Note = []Host{{Name: domain}}, "no MX records: the domain is its own mail host"
	}
	sort.SliceStable(m.Hosts, func(i, j int) bool { return m.Hosts[i].Preference < m.Hosts[j].Preference })
	if n := len(m.Hosts); n > maxHosts {
		m.Hosts, m.More = m.Hosts[:maxHosts], n-maxHosts
	}
	return m
}

// mxHosts returns the hosts as map exim has them.
func mxHosts(ctx context.Context, hop mta.NextHop, s Sources) (*dane.MXSet, error) {
	domain := string(hop.Domain)
	if hop.Bracketed {
		return &dane.MXSet{Hosts: []dane.MXHost{{Name: domain}}}, nil
	}
	return s.NextHops.MX(ctx, domain)
}

func held(ctx context.Context, domain string, s Sources) *Cache {
	h, from, err := s.Held(ctx, domain)
	c := &Cache{From: from, notAsked: s.NotAsked, askHint: s.AskHint}
	switch {
	case err == nil:
		c.Held = &h
	case !errors.Is(err, control.ErrNothingHeld):
		c.err, c.Err = err, err.Error()
	}
	return c
}

// choosePolicy finds which policy counts for a lookup now.
func (r *Report) choosePolicy() {
	r.policyState = tlsmap.PolicyAbsent
	if p, ok := r.heldPolicy(); ok {
		r.policy, r.Cache.Counts = p, "held"
	} else if neg := r.negative(); neg == nil && r.Fetch != nil && r.Fetch.fetched != nil {
		r.policy, r.Cache.Counts = r.Fetch.fetched.Policy, "live"
	} else if h := r.Cache.Held; h != nil && h.Damaged != "" {
		r.policyState = tlsmap.PolicyUnreadable
	}
	if r.policy != nil {
		r.policyState = tlsmap.StateOf(r.policy.Mode)
	}
}

// listed tells which MX hosts the policy that counts lists: all, without one.
func (r *Report) listed() func(host string) bool {
	if r.policy == nil {
		return func(string) bool { return true }
	}
	return tlsmap.AcceptedBy(tlsmap.MatchList(r.policy))
}

// decide finds what the maps reply.
func (r *Report) decide(s Sources) {
	r.choosePolicy()
	if r.policy != nil {
		list := tlsmap.MatchList(r.policy)
		r.namesNone = tlsmap.ListsNone(list)
		for i := range r.MX.Hosts {
			h := &r.MX.Hosts[i]
			listed := tlsmap.Lists(list, h.Name)
			h.Listed, h.Unusable = &listed, !listed && r.policy.Lists(h.Name)
		}
	}
	table := r.tableInForce(s)
	r.DANE.asked = table.AsksForDANE(r.policyState)
	r.DANE.take(r.Cache.Held, r.now)
	r.exemptBy = r.exemptions(s)
	known := tlsmap.Known{Domain: r.Domain, State: r.policyState, Policy: r.policy, DANE: r.DANE.counts(), MX: r.mxSet, MXErr: r.mxErr}
	for _, m := range table.Replies(known) {
		reply := Reply{Map: m.Map, Reply: m.Reply, Why: m.Why, Would: m.Would, applies: m.Applies, deferred: m.Deferred}
		if len(r.exemptBy) > 0 {
			reply = Reply{Map: m.Map, Reply: "NOTFOUND ", Why: r.exemptWord()}
		}
		r.Maps = append(r.Maps, reply)
	}
}

// heldPolicy returns the policy that is held and still counts.
func (r *Report) heldPolicy() (*policy.Policy, bool) {
	if r.Cache.Held == nil || r.Cache.Held.Entry == nil {
		return nil, false
	}
	e := r.Cache.Held.Entry
	if !r.now.Before(e.Expires) && !r.now.Before(e.Fetched.Add(minLife)) {
		return nil, false
	}
	p, err := policy.Parse([]byte(e.Policy))
	return p, err == nil
}

// negative returns the failure that keeps a lookup from discovering anew.
func (r *Report) negative() *control.Negative {
	if h := r.Cache.Held; h != nil && h.Negative != nil && r.now.Before(h.Negative.Until) {
		return h.Negative
	}
	return nil
}

// unlisted returns the MX hosts that the policy that counts does not list.
func (r *Report) unlisted() []string {
	var names []string
	for _, h := range r.MX.Hosts {
		if h.Listed != nil && !*h.Listed {
			names = append(names, h.Name)
		}
	}
	return names
}

func joinSome(names []string, most int) string {
	if len(names) > most {
		names = append(slices.Clone(names[:most]), "...")
	}
	return strings.Join(names, ", ")
}
