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
)

// nothingToDo opens the words for a domain with which all is well.
const nothingToDo = "Nothing to do: "

// next says what to do about the first obstacle to protected mail: a daemon that cannot
// start or does not run, then settings that are not in force yet and may be what the
// domain needs, then the domain itself.
func (r *Report) next() string {
	next, first := r.nextOfDomain(), ""
	// A daemon without a control socket runs and has the cache open.
	var locked *cache.LockedError
	switch hold := r.Cache.notStarted(); {
	case hold != nil:
		first = "The daemon cannot start, and all mail waits: " + text.Printable(hold.Reason) + ". "
	case errors.Is(r.Cache.notAsked, control.ErrNoDaemon) && !errors.As(r.Cache.err, &locked):
		first = "The daemon is not running, and mail waits: start it with systemctl start sts-tlsmap. "
	case len(r.Stale) > 0:
		first = "The daemon is not as the configuration file has it: see above. "
	default:
		return next
	}
	if rest, well := strings.CutPrefix(next, nothingToDo); well {
		next = "Otherwise there is nothing to do: " + rest
	}
	return first + next
}

// nextOfDomain is next where the daemon runs.
func (r *Report) nextOfDomain() string {
	c, held, noRecord := r.Cache, r.Cache.Counts == "held", r.Record.Result == policy.ResultNoRecord
	switch {
	case len(r.exemptBy) > 0:
		return r.nextOfExempt()
	case held && noRecord:
		return fmt.Sprintf("The domain's TXT record is gone, or somebody keeps it from us; the policy is in force until %s all the same (RFC 8461, 3.3). "+
			"If you know from the domain itself that it gave up MTA-STS: sts-tlsmap -forget %s", text.Clock(c.Held.Entry.Expires), r.Domain)
	case held && r.hint != "":
		return "The policy held stays in force. " + r.hint
	case held && (r.Fetch.Text != c.Held.Entry.Policy || r.Record.ID != c.Held.Entry.ID):
		return fmt.Sprintf("The domain publishes another policy than the one held. To follow it now: sts-tlsmap -refresh %s", r.Domain)
	case held:
		return r.nextOfMail(nothingToDo + "the policy held is the one published.")
	case c.Held != nil && c.Held.Damaged != "" && r.policy == nil:
		return strings.ReplaceAll(fmt.Sprintf("The stored policy is damaged, and mail waits until it is fetched again. %s Then: sts-tlsmap -refresh %s", r.hint, r.Domain), "  ", " ")
	case noRecord:
		return nothingToDo + "the domain does not publish MTA-STS."
	case r.hint != "":
		return r.hint
	case r.negative() != nil:
		return fmt.Sprintf("The policy can be fetched now, but an earlier failure is still remembered. Try: sts-tlsmap -refresh %s", r.Domain)
	case c.Err != "":
		return "The policy can be fetched now. Whether the daemon holds it is not known."
	}
	return r.nextOfMail("The policy is not held yet: the next lookup finds it, keeps it and applies it.")
}

// nextOfExempt says how to end the exemption: all entries that cover the domain.
func (r *Report) nextOfExempt() string {
	var steps []string
	for _, e := range r.exemptBy {
		if e.Until.IsZero() {
			steps = append(steps, fmt.Sprintf("take %s out of [exempt] and reload", e.Entry))
		} else {
			steps = append(steps, fmt.Sprintf("sts-tlsmap -exempt %s -for 0", e.Entry))
		}
	}
	return "The domain is exempt: its policy is not applied. To end that: " + strings.Join(steps, "; ")
}

// nextOfMail says why mail would wait and what to do, or returns well if it would
// not wait.
func (r *Report) nextOfMail(well string) string {
	if next := r.nextOfDANE(); next != "" {
		return next
	}
	deferring := r.mapNames(func(m Reply) bool { return m.deferred })
	var unlisted []string
	for _, h := range r.MX.Hosts {
		if h.Listed != nil && !*h.Listed {
			unlisted = append(unlisted, h.Name)
		}
	}
	const correct = "The domain should correct its policy or its MX records."
	meanwhile := fmt.Sprintf("To send without protection meanwhile, sts-tlsmap -exempt %s -for 4h.", r.Domain)
	switch {
	case r.mapNames(func(m Reply) bool { return m.applies }) == "":
		return well
	case r.mxErr != nil:
		return fmt.Sprintf("The MX hosts cannot be looked up, and %s. Try: dig %s MX", r.waits(), r.Domain)
	case len(unlisted) == 0 && deferring == "":
		return well
	case r.DANE.asked && r.DANE.counts.State == dane.Usable && len(unlisted) > 0:
		return fmt.Sprintf("DANE protects the domain, and with a map with DANE all is well. Its policy does not list %s, so with other maps its mail waits. %s",
			joinSome(unlisted), correct)
	case r.mxSet.Null || r.mxSet.NXDomain:
		return fmt.Sprintf("The DNS says: %s. But its policy is applied. Postfix bounces its mail; in map %s it waits, since somebody may have forged that answer. "+
			"If the domain has given up mail, it should publish a policy with mode none. Try: dig %s MX", r.MX.Note, deferring, r.Domain)
	case len(unlisted) == len(r.MX.Hosts) && len(unlisted) > 0:
		return fmt.Sprintf("No MX host is listed by the policy: %s. %s %s", r.waits(), correct, meanwhile)
	case len(unlisted) == 0:
		return fmt.Sprintf("Mail to %s waits in map %s: see above why. %s", r.Domain, deferring, meanwhile)
	}
	return fmt.Sprintf("Mail goes to the listed hosts only, not to %s. %s", joinSome(unlisted), correct)
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
	f, live := d.counts, d.finding.State
	question := text.Printable(cmp.Or(d.failing, r.Domain+" MX"))
	switch {
	case !d.asked:
		return ""
	case d.hop == "":
		return "The next-hop names a service that is not known here, and with a map with DANE its mail waits. Write the port as a number: [host]:587"
	case d.Held != nil && d.Held.Kept:
		return fmt.Sprintf("The domain had DANE, and nothing confirms what the DNS says of it now: with a map with DANE its mail waits, "+
			"if the relay asks the same resolver. Have that validate: %s", d.Resolver)
	case (f.State == dane.Undecided || f.State == dane.LookupFailed || f.State == dane.SomeFailed) && live != f.State:
		return fmt.Sprintf("A DANE lookup failed a moment ago, and works now: with a map with DANE mail goes again in %s at the latest.", text.Span(d.Held.Until.Sub(r.now)))
	case f.State == dane.Undecided:
		return fmt.Sprintf("Whether DANE protects the domain cannot be found out (%s), and with a map with DANE its mail waits. Try: dig %s",
			text.Printable(f.Why), question)
	case f.State == dane.SomeFailed:
		return fmt.Sprintf("A DANE lookup fails at some MX hosts. With a map with DANE mail waits until it succeeds (RFC 7672, 2.2.2); "+
			"with one that has tlsrpt too, mail goes to the other hosts. It is the domain's name servers, or signatures, or our resolver. Try: dig +dnssec %s", question)
	case f.State == dane.AddressesFailed:
		return fmt.Sprintf("Mail goes to the other MX hosts: the addresses of some cannot be looked up. It is the domain's name servers, or signatures, "+
			"or our resolver. Try: dig +dnssec %s", question)
	case f.State == dane.LookupFailed:
		return fmt.Sprintf("A DANE lookup fails, and with a map with DANE mail waits until it succeeds (RFC 7672, 2.2.2). "+
			"It is the domain's name servers, or signatures, or our resolver. Try: dig +dnssec %s", question)
	}
	return ""
}
