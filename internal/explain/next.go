package explain

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// nothingToDo opens the words for a domain with which all is well.
const nothingToDo = "Nothing to do: "

// next says what to try next: about the first thing that stands in the way of
// protected mail, in the order in which they must be put right. Without a
// daemon no lookup is answered, whatever is held; and what was changed in the
// file and is not in force may be just what the domain needs.
func (r *Report) next() string {
	next := r.nextOfDomain()
	first := ""
	switch {
	case r.noDaemon():
		first = "The daemon is not running, and mail waits: start it with systemctl start sts-tlsmap. "
	case len(r.Stale) > 0:
		first = fmt.Sprintf("The configuration file is not in force (%s): %s. ", strings.Join(r.Stale, "; "), r.stale)
	default:
		return next
	}
	if rest, well := strings.CutPrefix(next, nothingToDo); well {
		next = "Otherwise there is nothing to do: " + rest
	}
	return first + next
}

// noDaemon says whether no daemon runs. One that was passed no control socket
// does, and has the cache open.
func (r *Report) noDaemon() bool {
	var locked *cache.LockedError
	return errors.Is(r.Cache.notAsked, control.ErrNoDaemon) && !errors.As(r.Cache.err, &locked)
}

// nextOfDomain is next where the daemon runs.
func (r *Report) nextOfDomain() string {
	if len(r.exemptBy) > 0 {
		return r.nextOfExempt()
	}
	if r.Cache.Counts == "held" {
		return r.nextOfHeld()
	}
	if h := r.Cache.Held; h != nil && h.Damaged != "" && r.policy == nil {
		return fmt.Sprintf("The stored policy is damaged, and mail waits until it is fetched again. %sThen: sts-tlsmap -refresh %s",
			r.discoveryHint(), r.Domain)
	}
	switch {
	case r.Record.Result == policy.ResultNoRecord:
		return nothingToDo + "the domain does not publish MTA-STS."
	case r.Record.Result != policy.ResultOK:
		return r.Record.hint
	case r.Fetch.fetched == nil:
		return r.Fetch.hint
	case r.negative() != nil:
		return fmt.Sprintf("The policy can be fetched now, but an earlier failure is still remembered. Try: sts-tlsmap -refresh %s", r.Domain)
	}
	if r.Cache.Err != "" {
		return "The policy can be fetched now. Whether the daemon holds it is not known."
	}
	if r.Cache.From == File && r.cacheHint() != "" {
		return "The policy is not held yet. When the daemon answers again, the next lookup finds it."
	}
	if r.Cache.From == File {
		return r.nextOfMail("The policy is not held yet: the next lookup finds it, keeps it and applies it.")
	}
	return r.nextOfMail("The next lookup finds the policy, keeps it and applies it.")
}

// discoveryHint says what to do about a discovery that failed, with a space
// behind it; nothing if it did not.
func (r *Report) discoveryHint() string {
	hint := r.Record.hint
	if hint == "" && r.Fetch != nil {
		hint = r.Fetch.hint
	}
	if hint == "" {
		return ""
	}
	return hint + " "
}

// cacheHint says what to do about a daemon that could not be asked although
// there may be one; nothing if it was asked, or nobody listens.
func (r *Report) cacheHint() string {
	if r.Cache == nil || errors.Is(r.Cache.notAsked, control.ErrNoDaemon) {
		return ""
	}
	return r.Cache.askHint
}

// nextOfHeld is next for a domain whose held policy counts.
func (r *Report) nextOfHeld() string {
	e := r.Cache.Held.Entry
	switch {
	case r.Record.Result == policy.ResultNoRecord:
		return fmt.Sprintf("The domain's TXT record is gone, or somebody keeps it from us; the policy is in force until %s all the same (RFC 8461, 3.3). "+
			"If you know from the domain itself that it gave up MTA-STS: sts-tlsmap -forget %s", clock(e.Expires), r.Domain)
	case r.Record.Result != policy.ResultOK:
		return "The policy held stays in force. " + r.Record.hint
	case r.Fetch.fetched == nil:
		return "The policy held stays in force. " + r.Fetch.hint
	case r.Fetch.Text != e.Policy || r.Record.ID != e.ID:
		return fmt.Sprintf("The domain publishes another policy than the one held. To follow it now: sts-tlsmap -refresh %s", r.Domain)
	}
	return r.nextOfMail(nothingToDo + "the policy held is the one published.")
}

// nextOfMail looks at what would become of mail, and says well if nothing is
// wrong.
func (r *Report) nextOfMail(well string) string {
	if next := r.nextOfDANE(); next != "" {
		return next
	}
	unlisted, deferred := r.unlisted(), r.deferred()
	switch {
	case !slices.ContainsFunc(r.Maps, func(m Reply) bool { return m.applies }):
		return well
	case r.mxErr != nil:
		return fmt.Sprintf("The MX hosts cannot be looked up, and %s. Try: dig %s MX", r.waits(), r.Domain)
	case len(unlisted) == 0 && deferred == "":
		return well
	case r.protectedByDANE() && len(unlisted) > 0:
		return fmt.Sprintf("DANE protects the domain, and with a map with DANE all is well. Its policy does not list %s%s, so with other maps its mail waits: "+
			"the domain should correct its policy or its MX records.", joinSome(unlisted, maxNamed), r.unusableWord())
	case r.namesNone:
		return fmt.Sprintf("The policy lists no host name that an MTA takes, as mx1.%s would be one: %s. The domain must correct the mx lines of its policy. %s",
			r.Domain, r.waits(), r.meanwhile())
	case r.takesNoMail():
		return fmt.Sprintf("%s, but it has a policy to be applied. Postfix bounces its mail; in map %s it waits, since somebody may have forged that answer. "+
			"If the domain has given up mail, it should publish a policy with mode none. Try: dig %s MX", r.noMailWord(), deferred, r.Domain)
	case len(unlisted) == len(r.MX.Hosts) && len(unlisted) > 0:
		return fmt.Sprintf("No MX host is listed by the policy%s: %s. The domain must correct its policy or its MX records. %s",
			r.unusableWord(), r.waits(), r.meanwhile())
	case len(unlisted) == 0:
		return fmt.Sprintf("Mail to %s waits in map %s: see above why. %s", r.Domain, deferred, r.meanwhile())
	}
	return fmt.Sprintf("Mail goes to the listed hosts only, not to %s%s. The domain should correct its policy or its MX records.",
		joinSome(unlisted, maxNamed), r.unusableWord())
}

// meanwhile says how mail goes until the domain is put right.
func (r *Report) meanwhile() string {
	return fmt.Sprintf("To send without protection meanwhile, sts-tlsmap -exempt %s -for 4h.", r.Domain)
}

// waits says whose mail waits. The maps are named where not all apply the
// policy, or where those that do are rehearsals.
func (r *Report) waits() string {
	var in, rehearsed []string
	for _, m := range r.Maps {
		switch {
		case m.applies && m.Would != "":
			rehearsed = append(rehearsed, m.Map)
		case m.applies:
			in = append(in, m.Map)
		}
	}
	switch {
	case len(in) == 0:
		return fmt.Sprintf("mail to %s would wait in map %s if that were no rehearsal", r.Domain, joinSome(rehearsed, maxNamed))
	case r.policy.Mode != policy.ModeEnforce:
		return fmt.Sprintf("mail to %s waits in map %s, which enforces policies with mode testing", r.Domain, joinSome(in, maxNamed))
	}
	return fmt.Sprintf("mail to %s waits", r.Domain)
}

// deferred names the maps in which mail waits, or would but for a rehearsal;
// empty: there is none.
func (r *Report) deferred() string {
	var names []string
	for _, m := range r.Maps {
		if m.deferred {
			names = append(names, m.Map)
		}
	}
	return joinSome(names, maxNamed)
}

// takesNoMail says whether there is nowhere to send mail to.
func (r *Report) takesNoMail() bool { return r.mxSet != nil && (r.mxSet.Null || r.mxSet.NXDomain) }

func (r *Report) noMailWord() string {
	if r.mxSet.NXDomain {
		return "The DNS says that the domain does not exist"
	}
	return "The DNS says that the domain takes no mail (null MX, RFC 7505)"
}

// unusableWord says of the hosts that are not listed that some are, by names
// that no MTA takes; nothing if there are none.
func (r *Report) unusableWord() string {
	var names []string
	for _, h := range r.MX.Hosts {
		if h.Unusable {
			names = append(names, h.Name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return fmt.Sprintf(" (%s is there, but is no host name that an MTA takes)", joinSome(names, maxNamed))
}

// protectedByDANE says whether the maps with DANE leave the next-hop to it, and
// mail can be delivered.
func (r *Report) protectedByDANE() bool { return r.DANE.asked && r.DANE.counts().State == dane.Usable }

// nextOfDANE says what to do where the maps with DANE let mail wait; nothing if
// they do not.
func (r *Report) nextOfDANE() string {
	d := r.DANE
	if !d.asked {
		return ""
	}
	f := d.counts()
	switch {
	case d.hop == "":
		return "The next-hop names a service that is not known here, and with a map with DANE its mail waits. Write the port as a number: [host]:587"
	case d.Held != nil && d.Held.Kept:
		return fmt.Sprintf("The domain had DANE, and nothing vouches for what the DNS says of it now: with a map with DANE its mail waits, "+
			"if the relay asks the same resolver. Have that validate: %s", d.Resolver)
	case f.State == dane.Undecided && d.finding.State != dane.Undecided, f.State == dane.LookupFailed && d.finding.State != dane.LookupFailed:
		return fmt.Sprintf("A DANE lookup failed a moment ago, and works now: with a map with DANE mail goes again in %s at the latest.", span(d.Held.Until.Sub(r.now)))
	case f.State == dane.Undecided:
		return fmt.Sprintf("Whether DANE protects the domain cannot be found out (%s), and with a map with DANE its mail waits. Try: dig %s", printable(f.Why), d.question(r.Domain))
	case f.State == dane.LookupFailed, f.State == dane.SomeFailed:
		return fmt.Sprintf("A DANE lookup fails, and with a map with DANE mail waits until it succeeds (RFC 7672, 2.2.2). "+
			"It is the domain's name servers, or signatures, or our resolver. Try: dig +dnssec %s", d.question(r.Domain))
	}
	return ""
}

// question returns the first question that got no answer, as dig takes it.
func (d *DANE) question(domain string) string {
	if d.MX != nil && d.MX.failed() {
		return domain + " MX"
	}
	for _, h := range d.Hosts {
		for _, l := range h.Lookups {
			if l.failed() {
				return printable(l.Name) + " " + l.Type
			}
		}
	}
	return domain + " MX"
}

// failed says whether there was no answer.
func (l *Lookup) failed() bool {
	return l.Security == dane.Bogus.String() || l.Security == dane.Indeterminate.String()
}
