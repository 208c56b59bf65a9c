package explain

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// next says what becomes of mail to the domain, why, and what to do: about the daemon
// first, then about the mail, then about a policy held that is not the one published.
func (r *Report) next() string {
	steps := []string{r.nextOfDaemon(), r.nextOfMail(), r.nextOfPolicy()}
	return strings.Join(slices.DeleteFunc(steps, func(s string) bool { return s == "" }), " ")
}

func (r *Report) nextOfDaemon() string {
	// A daemon without a control socket runs and has the cache open.
	var locked *cache.LockedError
	switch hold := r.Cache.notStarted(); {
	case hold != nil:
		return "The daemon cannot start, and all mail waits: " + text.Printable(hold.Reason) + ". Once it runs:"
	case errors.Is(r.Cache.notAsked, control.ErrNoDaemon) && !errors.As(r.Cache.err, &locked):
		return "The daemon is not running, and mail waits: start it with systemctl start sts-tlsmap. Once it runs:"
	case r.Cache.Err != "":
		return "Whether the daemon holds a policy is not known. If it holds none:"
	}
	return ""
}

// nextOfMail says what becomes of mail, and how to help it.
func (r *Report) nextOfMail() string {
	damaged := r.Cache.Held != nil && r.Cache.Held.Damaged != ""
	switch {
	case len(r.exemptBy) > 0:
		return r.nextOfExempt()
	case r.state == tlsmap.PolicyUnreadable && damaged:
		return "The stored policy is damaged, and mail waits until it is fetched again: sts-tlsmap -refresh " + r.Domain + "."
	case r.state == tlsmap.PolicyUnreadable:
		return "Mail waits, since the policy could not be looked for."
	case r.policy == nil && r.Record.Result == policy.ResultNoRecord:
		return "Mail goes without MTA-STS: the domain does not publish it." + r.ownDANE()
	case r.policy == nil && r.hint == "":
		return "Mail goes without MTA-STS: the policy can be fetched now, but an earlier failure is still remembered. Try: sts-tlsmap -refresh " + r.Domain + r.ownDANE()
	case r.policy == nil:
		return "Mail goes without MTA-STS: its policy could not be fetched." + r.ownDANE()
	case r.mapNames(func(m Reply) bool { return m.applies }) == "":
		return fmt.Sprintf("Mail goes with TLS or without: no map here enforces a policy with mode %s.", r.policy.Mode) + r.ownDANE()
	}
	if next := r.nextOfDANE(); next != "" {
		return next
	}
	return r.nextOfHosts()
}

// unseen names what -explain cannot see, and the command that can.
func (r *Report) unseen() string {
	return " It does not look at the hosts' certificates, for which mail may still wait: sts-tlsmap -probe " + r.Domain
}

// ownDANE warns that the MTA may refuse hosts by its own DANE.
func (r *Report) ownDANE() string {
	if r.DANE.finding.State != dane.Usable {
		return ""
	}
	return " The domain has DANE: where the MTA does DANE, mail may still wait for the hosts: sts-tlsmap -probe " + r.Domain
}

// nextOfPolicy compares the policy held with the one published.
func (r *Report) nextOfPolicy() string {
	switch held := r.Cache.Counts == "held"; {
	case held && r.Record.Result == policy.ResultNoRecord:
		return fmt.Sprintf("The domain's TXT record is gone, or somebody keeps it from us; the policy is in force until %s all the same (RFC 8461, 3.3). "+
			"If you know from the domain itself that it gave up MTA-STS: sts-tlsmap -forget %s", text.Moment(r.Cache.Held.Entry.Expires, r.now), r.Domain)
	case held && r.hint != "":
		return "The policy held stays in force, since it cannot be fetched now. " + r.hint
	case held && (r.Fetch.Text != r.Cache.Held.Entry.Policy || r.Record.ID != r.Cache.Held.Entry.ID):
		return "The domain publishes another policy than the one held. To follow it now: sts-tlsmap -refresh " + r.Domain
	case r.Cache.Counts == "live" && r.Cache.Err == "":
		return "The policy is not held yet: the next lookup finds it, keeps it and applies it."
	}
	return r.hint
}

// nextOfExempt says how to end the exemption: all entries that cover the domain.
func (r *Report) nextOfExempt() string {
	var steps []string
	for _, e := range r.exemptBy {
		if e.Until.IsZero() {
			steps = append(steps, fmt.Sprintf("take %s out of [exempt] and reload", e.Domain))
		} else {
			steps = append(steps, fmt.Sprintf("sts-tlsmap -exempt %s -for 0", e.Domain))
		}
	}
	return "The domain is exempt: its policy is not applied. To end that: " + strings.Join(steps, "; ") + "." + r.ownDANE()
}

// nextOfHosts says whether a policy that is applied lists the MX hosts.
func (r *Report) nextOfHosts() string {
	deferring := r.mapNames(func(m Reply) bool { return m.deferred })
	var unlisted []string
	for _, h := range r.MX.Hosts {
		if h.Listed != nil && !*h.Listed {
			unlisted = append(unlisted, h.Name)
		}
	}
	const correct = "The domain should correct its policy or its MX records."
	meanwhile := fmt.Sprintf("To send without protection meanwhile: sts-tlsmap -exempt %s -for 4h.", r.Domain)
	switch {
	case r.mxErr != nil:
		return fmt.Sprintf("The MX hosts cannot be looked up, and %s. Try: dig %s MX.", r.waits(), r.Domain)
	case len(unlisted) == 0 && deferring == "" && r.mapNames(func(m Reply) bool { return m.applies && m.Would == "" }) == "":
		return "Mail goes with TLS or without, since each map that applies the policy is a rehearsal. Without it, mail would go to the hosts that the policy lists." + r.unseen() + "."
	case len(unlisted) == 0 && deferring == "":
		return "All is well that -explain can see: mail goes only over verified TLS to hosts that the policy lists." + r.unseen() + "."
	case r.DANE.asked && r.DANE.counts.State == dane.Usable && len(unlisted) > 0:
		return fmt.Sprintf("DANE protects the domain: with a map with DANE, mail goes to the hosts with TLSA records. Its policy does not list %s, so with other maps its mail waits. %s%s.",
			joinSome(unlisted), correct, r.unseen())
	case r.mxSet.Null || r.mxSet.NXDomain:
		next := fmt.Sprintf("The DNS says: %s. But its policy is applied, and Postfix bounces its mail.", r.MX.Note)
		if deferring != "" {
			next = fmt.Sprintf("The DNS says: %s. But its policy is applied: in map %s its mail waits, since somebody may have forged that answer.", r.MX.Note, deferring)
		}
		return next + fmt.Sprintf(" If the domain has given up mail, it should publish a policy with mode none. Try: dig %s MX.", r.Domain)
	case len(unlisted) == len(r.MX.Hosts) && len(unlisted) > 0:
		return fmt.Sprintf("No MX host is listed by the policy: %s. %s %s", r.waits(), correct, meanwhile)
	case len(unlisted) == 0:
		return fmt.Sprintf("Mail to %s waits in map %s: see below why. %s", r.Domain, deferring, meanwhile)
	}
	return fmt.Sprintf("Mail goes to the listed hosts only, not to %s. %s%s.", joinSome(unlisted), correct, r.unseen())
}

// waits says which mail waits. It names the maps if not all of them apply the policy,
// or if those that do are rehearsals.
func (r *Report) waits() string {
	in := r.mapNames(func(m Reply) bool { return m.applies && m.Would == "" })
	switch {
	case in == "":
		return fmt.Sprintf("mail to %s would wait in map %s if that were no rehearsal", r.Domain, r.mapNames(func(m Reply) bool { return m.applies }))
	case r.policy.Mode != policy.ModeEnforce:
		return fmt.Sprintf("mail to %s waits in map %s, which enforces policies with mode testing", r.Domain, in)
	}
	return fmt.Sprintf("mail to %s waits", r.Domain)
}

// mapNames names the maps for which f holds.
func (r *Report) mapNames(is func(Reply) bool) string {
	var names []string
	for _, m := range r.Maps {
		if is(m) {
			names = append(names, m.Map)
		}
	}
	return joinSome(names)
}

func joinSome(names []string) string {
	const most = 5
	if len(names) > most {
		names = append(slices.Clone(names[:most]), "...")
	}
	return strings.Join(names, ", ")
}

// nextOfDANE says what to do if mail waits on the maps with DANE, or if lookups fail at
// some MX hosts; otherwise it is empty.
func (r *Report) nextOfDANE() string {
	d := r.DANE
	f, question := d.counts, r.Domain+" MX"
	for _, h := range slices.Backward(d.Hosts) { // the first one that failed
		question = cmp.Or(h.Failed, question)
	}
	const whose = "It is the domain's name servers, or signatures, or our resolver. Try: dig +dnssec "
	switch {
	case !d.asked:
		return ""
	case d.hop == "":
		return "The next-hop names a service that is not known here, and with a map with DANE its mail waits. Write the port as a number: [host]:587."
	case d.Held != nil && d.Held.Kept:
		return fmt.Sprintf("The domain had DANE, and nothing confirms what the DNS says of it now: with a map with DANE its mail waits, "+
			"if the relay asks the same resolver. Have that validate: %s.", d.Resolver)
	case (f.State == dane.Undecided || f.State == dane.LookupFailed || f.State == dane.SomeFailed) && d.finding.State != f.State:
		return fmt.Sprintf("A DANE lookup failed a moment ago, and works now: with a map with DANE mail goes again in %s at the latest.", text.Span(d.Held.Until.Sub(r.now)))
	case f.State == dane.Undecided:
		return fmt.Sprintf("Whether DANE protects the domain cannot be found out (%s), and with a map with DANE its mail waits. Try: dig %s.",
			text.Printable(f.Why), text.Printable(question))
	case f.State == dane.AddressesFailed:
		return "Mail goes to the other MX hosts: the addresses of some cannot be looked up. " + whose + text.Printable(question) + "." + r.unseen() + "."
	case f.State == dane.SomeFailed, f.State == dane.LookupFailed:
		next := "A DANE lookup fails, and with a map with DANE mail waits until it succeeds (RFC 7672, 2.2.2)"
		if f.State == dane.SomeFailed {
			next += "; with one that has tlsrpt too, mail goes to the other hosts"
		}
		return next + ". " + whose + text.Printable(question) + "."
	}
	return ""
}
