package tlsmap

import (
	"errors"
	"slices"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

// A MapReply is what a map replies, and why.
type MapReply struct {
	Map   string
	Reply string // as the MTA gets it
	Why   string
	Would string // of a rehearsal: the reply if the map were enforced; else empty

	Applies  bool // the map applies a policy in that state
	Deferred bool // the mail waits, or would if the map were no rehearsal
}

// Known is what the replies for a next-hop follow from.
type Known struct {
	Domain string // the policy domain, in canonical form
	Policy PolicyState
	Ready  []byte // what Prepare made of the policy
	DANE   dane.Finding
	MX     *dane.MXSet // for format exim; nil: MXErr says why
	MXErr  error
}

// Replies returns what each map replies where that much is known. It asks and
// counts nothing. Exemptions are for the caller to look at.
func (t *Table) Replies(k Known) []MapReply {
	replies := make([]MapReply, 0, len(t.maps))
	for i := range t.maps {
		m := &t.maps[i]
		reply, why := explain(m, k)
		r := MapReply{
			Map: m.Name, Reply: reply, Why: why,
			Applies: applies(m, k.Policy), Deferred: strings.HasPrefix(reply, replyTemp),
		}
		if !m.Enforce && reply != replyNotFound {
			r.Would, r.Reply = reply, replyNotFound
			r.Why = "enforce = false makes this map a rehearsal; otherwise: " + why
		}
		replies = append(replies, r)
	}
	return replies
}

// Names reports whether the policy that ready was made of lists the host, which
// is in lower case, by a name that an MTA takes.
func Names(ready []byte, host string) bool {
	r, ok := ParseReady(ready)
	return ok && isUsableHost(r.match, host)
}

// NamesNone reports whether that policy lists no name at all that an MTA takes.
func NamesNone(ready []byte) bool {
	r, ok := ParseReady(ready)
	return ok && len(r.match) == 0
}

// AsksForDANE reports whether any of the maps asks for the DANE of a next-hop
// when the policy is in that state.
func (t *Table) AsksForDANE(p PolicyState) bool {
	return slices.ContainsFunc(t.maps, func(m mta.Map) bool { return m.DANE && applies(&m, p) })
}

// explain returns the map's reply if it is no rehearsal, and why.
func explain(m *mta.Map, k Known) (reply, why string) {
	domain := []byte(k.Domain)
	switch Decide(k.Policy, m, k.DANE.State) {
	case StandAside:
		return replyNotFound, whyAside(m, k.Policy)
	case DANEOnly:
		if k.DANE.State == dane.LookupFailed {
			return replyDANEOnly, because("a DANE lookup fails at an MX host: Postfix looks for itself, and defers (RFC 7672, 2.2.2)", k.DANE.Why)
		}
		return replyDANEOnly, because("DANE protects the domain, and MTA-STS does not override it (RFC 8461, 2)", k.DANE.Why)
	case Secure:
		if m.Format == mta.FormatExim {
			return explainHosts(m, k)
		}
		r, ok := ParseReady(k.Ready)
		if !ok {
			return string(appendTemp(nil, m, reasonNotReady, domain)), reasonNotReady
		}
		reply = string(appendSecure(nil, m, domain, r))
		if reply[0] != replySecure[0] {
			return reply, "the policy is to be applied, and cannot be put in terms that the MTA takes"
		}
		return reply, whySecure(m, k.Policy, k.DANE)
	}
	if applies(m, k.Policy) {
		return string(appendTemp(nil, m, reasonUndecided, domain)), because(reasonUndecided, k.DANE.Why)
	}
	return string(appendTemp(nil, m, reasonUnreadable, domain)), reasonUnreadable
}

// explainHosts is explain for an applied policy in Exim's terms.
func explainHosts(m *mta.Map, k Known) (reply, why string) {
	err := k.MXErr
	if k.MX == nil && err == nil {
		err = errors.New("nobody asked")
	}
	reply = string(appendHosts(nil, m, []byte(k.Domain), k.Ready, k.MX, err))
	switch {
	case strings.HasPrefix(reply, replyHosts):
		return reply, whySecure(m, k.Policy, k.DANE) + ": these are the MX hosts that it lists, equals in any order"
	case err != nil:
		return reply, because(reasonMXFailed, err.Error())
	}
	return reply, "the policy is to be applied, and there is no host that mail may go to"
}

// because adds a reason, if there is one.
func because(what, why string) string {
	if why == "" {
		return what
	}
	return what + ": " + why
}

func whyAside(m *mta.Map, p PolicyState) string {
	switch p {
	case PolicyTesting:
		return "the policy's mode is testing: failures are reported, mail is delivered (RFC 8461, 5)"
	case PolicyNone:
		return "the policy's mode is none"
	}
	return "no MTA-STS policy is known"
}

func whySecure(m *mta.Map, p PolicyState, d dane.Finding) string {
	why := "the policy is enforced"
	if p == PolicyTesting {
		why = "the policy's mode is testing, and this map enforces those"
	}
	if !m.DANE {
		return why
	}
	switch d.State {
	case dane.UnsignedMX:
		return why + "; DANE gives no protection, since the MX records are not authenticated (RFC 7672, 2.2.1)"
	case dane.NotValidating:
		return because(why+"; there is no DANE without a resolver that validates", d.Why)
	case dane.NoMail:
		return because(why+"; the MTA bounces by itself", d.Why)
	}
	return because(why+"; DANE does not protect the domain", d.Why)
}
