package explain

import (
	"errors"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// minLife is how long a policy counts after its fetch, whatever its max_age, as
// the keeper has it.
const minLife = time.Minute

// choosePolicy finds which policy counts for a lookup now.
func (r *Report) choosePolicy() {
	r.state = tlsmap.PolicyAbsent
	if p := r.heldPolicy(); p != nil {
		r.policy, r.Cache.Counts = p, "held"
	} else if r.negative() == nil && r.Fetch != nil && r.Fetch.policy != nil {
		r.policy, r.Cache.Counts = r.Fetch.policy, "live"
	} else if h := r.Cache.Held; h != nil && h.Damaged != "" || r.ours && r.negative() == nil {
		r.state = tlsmap.PolicyUnreadable
	}
	if r.policy != nil {
		r.state = tlsmap.StateOf(r.policy.Mode)
	}
}

// decide finds what the maps reply under the policy that counts.
func (r *Report) decide(s Sources) {
	if r.policy != nil {
		list := tlsmap.MatchList(r.policy)
		for i := range r.MX.Hosts {
			h := &r.MX.Hosts[i]
			h.Listed = new(tlsmap.Lists(list, h.Name))
		}
	}
	r.DANE.asked = s.Table.AsksForDANE(r.state)
	r.DANE.take(r.Cache.Held, r.now)
	if h := r.Cache.Held; h != nil {
		r.exemptBy = h.ExemptBy
	}
	var exempt []string
	for _, e := range r.exemptBy {
		exempt = append(exempt, exemptWord(e, r.Domain, r.now))
	}
	for _, m := range s.Table.Replies(tlsmap.Known{
		Domain: r.Domain, State: r.state, Policy: r.policy, Ours: r.ours, DANE: r.DANE.counts, MX: r.mxSet, MXErr: r.mxErr,
	}) {
		reply := Reply{Map: m.Map, Reply: m.Reply, Why: m.Why, Would: m.Would, applies: m.Applies, deferred: m.Deferred}
		if len(r.exemptBy) > 0 {
			reply = Reply{Map: m.Map, Reply: "NOTFOUND ", Why: "the domain is exempt " + strings.Join(exempt, ", and ")}
		}
		r.Maps = append(r.Maps, reply)
	}
}

// heldPolicy returns the policy that is held and still counts; nil: none does.
func (r *Report) heldPolicy() *policy.Policy {
	if r.Cache.Held == nil || r.Cache.Held.Entry == nil {
		return nil
	}
	e := r.Cache.Held.Entry
	p, err := policy.Parse([]byte(e.Policy))
	if err != nil || !r.now.Before(e.Expires) && !r.now.Before(e.Fetched.Add(minLife)) {
		return nil
	}
	return p
}

// negative returns the failure that keeps a lookup from discovering anew.
func (r *Report) negative() *keeper.Negative {
	if h := r.Cache.Held; h != nil && h.Negative != nil && r.now.Before(h.Negative.Until) {
		return h.Negative
	}
	return nil
}

// take takes over what is held of the next-hop, if it still counts.
func (d *DANE) take(h *control.Held, now time.Time) {
	d.counts = d.finding
	if h == nil || d.hop == "" {
		return
	}
	for i := range h.DANE {
		if x := &h.DANE[i]; x.NextHop == d.hop && now.Before(x.Until) {
			d.Held, d.counts = x, dane.Finding{State: x.State, Why: x.Why, Hosts: x.Hosts, Until: x.Until}
		}
	}
}

// asked says whether the daemon was asked and answered.
func (c *Cache) asked() bool { return c.From == Daemon && c.notAsked == nil && c.Err == "" }

// notStarted is the refusal of a daemon that cannot start; nil of any other.
func (c *Cache) notStarted() (refused *control.NotStartedError) {
	errors.As(c.notAsked, &refused)
	return refused
}

// exemptWord names the exemption of a domain and its end.
func exemptWord(e exempt.Exemption, domain string, now time.Time) string {
	words := "by [exempt] in the configuration"
	if !e.Until.IsZero() {
		words = "until " + text.Moment(e.Until, now) + " by -exempt"
	}
	if e.Domain == domain {
		return words
	}
	return "by " + e.Domain + " " + strings.Replace(words, "by [exempt]", "of [exempt]", 1)
}
