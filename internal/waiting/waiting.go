// Package waiting makes the output of -waiting: which mail in the MTA's queue waits
// because of TLS or of sts-tlsmap, why, and which command helps. It reads the queue of
// Postfix (postqueue -j), Exim (exim -bpru and the message logs) or sendmail (-bp), finds the cause by
// the MTA's message, and compares it with what the daemon holds. It changes nothing.
package waiting

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

// Limits.
const (
	maxGroups  = 10_000           // pairs of domain and cause; later ones are only counted
	maxReason  = 500              // bytes kept of a message
	maxProbed  = 200              // domains that -waiting -probe probes
	askTime    = 30 * time.Second // for all questions what the daemon replies to the MTA
	maxMessage = 64 << 20         // bytes of a message in postqueue's output: half a million recipients
	maxLog     = 256 << 10        // bytes read from the end of a message log of Exim
)

// A Group is the mail to one domain that waits for one cause.
type Group struct {
	MTA      string    `json:"mta"`
	Domain   string    `json:"domain,omitempty"`  // empty: several
	Domains  int       `json:"domains,omitempty"` // if several
	Messages int       `json:"messages"`
	Oldest   time.Time `json:"oldest"`
	ID       string    `json:"queue_id"` // of the oldest message
	Reason   string    `json:"reason"`   // in the MTA's words
	Cause    string    `json:"cause"`
	Words    string    `json:"words"`
	Policy   string    `json:"policy,omitempty"` // what is held
	Probe    string    `json:"probe,omitempty"`  // what a probe found now
	Steps    []Step    `json:"steps"`

	cause *Cause
	last  string // queue id of the last message counted
	named bool   // Domain is a policy domain, and so safe in a command
}

// A Queue is what waits in the queue of one MTA.
type Queue struct {
	MTA    string
	Groups []*Group
	Others int // messages that wait for other reasons
	Left   int // messages for which there was no room

	maps    string // the MTA's map of the daemon; empty: it asks none
	relay   string // Postfix's relayhost, whose policy counts for all mail
	byCause map[groupKey]*Group
}

type groupKey struct {
	domain string
	cause  *Cause
}

// add counts one message. delays are the reasons why it waits, by recipient.
func (q *Queue) add(id string, arrived time.Time, delays map[string]string) {
	found, full := false, false
	for _, recipient := range slices.Sorted(maps.Keys(delays)) {
		reason := delays[recipient]
		cause := causeOf(q.MTA, reason)
		if cause == nil {
			continue
		}
		found = true
		domain, named := policyDomain(cmp.Or(q.relay, recipient[strings.LastIndexByte(recipient, '@')+1:]))
		key := groupKey{domain, cause}
		g := q.byCause[key]
		if g == nil {
			if full = len(q.byCause) >= maxGroups; full {
				continue
			}
			g = &Group{MTA: q.MTA, Domain: domain, named: named, cause: cause, Oldest: arrived, ID: id}
			q.byCause[key] = g
		}
		if g.last != id {
			g.Messages, g.last = g.Messages+1, id
		}
		if g.Reason == "" || !arrived.After(g.Oldest) {
			g.Oldest, g.ID, g.Reason = arrived, id, text.Cut(reason, maxReason)
		}
	}
	switch {
	case full:
		q.Left++
	case !found && len(delays) > 0:
		q.Others++
	}
}

// policyDomain returns the name that policies go by, and whether it is one.
func policyDomain(nextHop string) (string, bool) {
	hop, kind := mta.ParseKey([]byte(nextHop), nil)
	if kind != mta.KeyPolicyDomain {
		return text.Cut(nextHop, maxReason), false
	}
	return string(hop.Domain), true
}

// A Source is the daemon.
type Source struct {
	// Held returns what is held for a domain, or control.ErrNothingHeld.
	Held func(ctx context.Context, domain string) (control.Held, error)
	// Reply returns the daemon's reply to the MTA.
	Reply func(ctx context.Context, mapName, domain string) (string, error)
	Maps  []mta.Map // the daemon's; of no daemon: none
	Err   error     // why the daemon cannot be asked; nil: it answers
	Now   time.Time
}

// Judge compares what waits with what the daemon holds and replies, and sorts it.
func (q *Queue) Judge(ctx context.Context, s Source) {
	q.ask(ctx, s)
	all := make(map[*Cause]*Group)
	for _, g := range q.byCause {
		if first := all[g.cause]; first != nil {
			first.join(g)
			continue
		}
		if !g.compare(ctx, s) {
			q.Others += g.Messages
			continue
		}
		if g.cause.all {
			all[g.cause] = g
		}
		q.Groups = append(q.Groups, g)
	}
	for _, g := range q.Groups {
		g.finish()
	}
	slices.SortFunc(q.Groups, func(a, b *Group) int {
		return cmp.Or(b.Domains-a.Domains, b.Messages-a.Messages, a.Oldest.Compare(b.Oldest), strings.Compare(a.Domain, b.Domain))
	})
}

// ask finds out why the MTA got no policy from the daemon, as long as there is time.
func (q *Queue) ask(ctx context.Context, s Source) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	var down *Cause // what is wrong for all domains
	for _, g := range q.byCause {
		switch {
		case g.cause != noReply || q.maps == "" || !g.named:
		case down != nil:
			g.cause = down
		case ctx.Err() == nil:
			if g.ask(ctx, s, q.maps); g.cause.all && g.cause != nowReplies {
				down = g.cause
			}
		}
	}
}

// join adds the mail of another domain for the same cause.
func (g *Group) join(other *Group) {
	g.Domains, g.Messages = max(g.Domains, 1)+1, g.Messages+other.Messages
	if other.Oldest.Before(g.Oldest) {
		g.Oldest, g.ID, g.Reason = other.Oldest, other.ID, other.Reason
	}
}

func (g *Group) ask(ctx context.Context, s Source, mapName string) {
	var held *control.NotStartedError
	reply, err := s.Reply(ctx, mapName, g.Domain)
	switch word, rest, _ := strings.Cut(reply, " "); {
	case ctx.Err() != nil:
	case err != nil:
		g.cause = noAnswer
	case errors.As(s.Err, &held):
		g.cause, g.Reason = notStarted, g.Reason+"; sts-tlsmap says: "+text.Cut(held.Reason, maxReason)
	case word == "OK" || word == "NOTFOUND":
		g.cause = nowReplies
	default:
		g.Reason += "; sts-tlsmap replies: " + text.Cut(rest, maxReason)
		g.cause = cmp.Or(causeOf(Daemon, rest), g.cause)
	}
}

// compare compares the cause with the policy held. It reports false if neither TLS nor
// sts-tlsmap is the cause after all.
func (g *Group) compare(ctx context.Context, s Source) bool {
	g.Words, g.Steps = g.cause.Words, slices.Clone(g.cause.Steps)
	if !g.cause.tls || !g.named {
		return true
	}
	h, err := s.Held(ctx, g.Domain)
	usable := func(d control.DANE) bool { return d.State == dane.Usable }
	e := h.Entry
	switch {
	case err != nil && !errors.Is(err, control.ErrNothingHeld):
		g.Policy = "not known: " + err.Error()
	case h.Exempt:
		g.Policy = "ignored: the domain is exempt"
		if !h.ExemptUntil.IsZero() {
			g.Policy += " until " + text.Moment(h.ExemptUntil, s.Now)
		}
		g.Steps = []Step{again}
	case g.cause == byDANE || slices.ContainsFunc(h.DANE, usable):
		g.Policy = "DANE protects the domain; sts-tlsmap does not override DANE, and -exempt does not end it"
		g.Steps = slices.DeleteFunc(g.Steps, func(s Step) bool { return s == exempt })
	case e != nil && s.enforced(e.Mode) && e.Expires.After(s.Now):
		listed := ""
		if p, err := policy.Parse([]byte(e.Policy)); err == nil {
			listed = ", for " + text.Cut(strings.Join(p.MX, ", "), maxReason)
		}
		g.Policy = fmt.Sprintf("%s, until %s%s", e.Mode, text.Moment(e.Expires, s.Now), listed)
	case g.cause == unlisted && g.MTA == Postfix:
		return false // Postfix says this of any host that it could not use
	default:
		g.Policy = "none enforced by sts-tlsmap: DANE or the MTA's own settings require TLS"
		g.Steps = []Step{probe, explain}
	}
	return true
}

// ToProbe returns the domains whose hosts failed a check, those with the most mail first.
func (q *Queue) ToProbe() (domains []string) {
	for _, g := range q.Groups {
		if g.cause.tls && g.named && !slices.Contains(domains, g.Domain) && len(domains) < maxProbed {
			domains = append(domains, g.Domain)
		}
	}
	return domains
}

// Probed notes what a probe of a domain found.
func (q *Queue) Probed(domain, found string) {
	for _, g := range q.Groups {
		if g.cause.tls && g.Domain == domain {
			g.Probe = found
			g.Steps = slices.DeleteFunc(g.Steps, func(s Step) bool { return s.For == probe.For })
		}
	}
}

// enforced reports whether a policy of that mode is enforced by a map of the daemon.
func (s *Source) enforced(mode string) bool {
	return mode == "enforce" || mode == "testing" && slices.ContainsFunc(s.Maps, func(m mta.Map) bool { return m.Testing })
}

// finish fills in the commands. After an exemption the mail goes out at the MTA's next
// try, or at once by one more command.
func (g *Group) finish() {
	g.Cause = g.cause.Name
	if g.Domains > 0 {
		g.Domain = ""
	}
	if slices.Contains(g.Steps, exempt) {
		g.Steps = append(g.Steps, again)
	}
	retry := map[string]string{Postfix: "postqueue -i ID", Exim: "exim -M ID", Sendmail: "sendmail -v -qIID"}[g.MTA]
	g.Steps = slices.DeleteFunc(g.Steps, func(s Step) bool { return !g.named && strings.Contains(s.Command, "DOMAIN") })
	for i := range g.Steps {
		command := cmp.Or(g.Steps[i].Command, retry)
		g.Steps[i].Command = strings.NewReplacer("DOMAIN", g.Domain, "ID", g.ID, "MTA", strings.ToLower(g.MTA)).Replace(command)
	}
}
