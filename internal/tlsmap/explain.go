package tlsmap

import (
	"errors"
	"slices"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
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

// Known is what the replies for a next-hop depend on.
type Known struct {
	Domain string         // the policy domain, in canonical form
	State  PolicyState    // of Policy
	Policy *policy.Policy // nil: there is none, or it cannot be read
	Ours   bool           // State is PolicyUnreadable for a fault of our own
	DANE   dane.Finding
	MX     *dane.MXSet // for format exim; nil: MXErr says why
	MXErr  error
}

// Replies returns the reply of each map for known. It sends no packet, counts
// nothing and ignores exemptions.
func (t *Table) Replies(k Known) []MapReply {
	replies := make([]MapReply, 0, len(t.maps))
	for i := range t.maps {
		m := &t.maps[i]
		reply, why := k.explain(m)
		r := MapReply{
			Map: m.Name, Reply: reply, Why: why,
			Applies: applies(m, k.State), Deferred: strings.HasPrefix(reply, replyTemp),
		}
		if !m.Enforce && reply != replyNotFound {
			r.Would, r.Reply = reply, replyNotFound
			r.Why = "enforce = false makes this map a rehearsal; otherwise: " + why
		}
		replies = append(replies, r)
	}
	return replies
}

// AsksForDANE reports whether any of the maps asks for the DANE of a next-hop
// when the policy is in that state.
func (t *Table) AsksForDANE(p PolicyState) bool {
	return slices.ContainsFunc(t.maps, func(m mta.Map) bool { return m.DANE && applies(&m, p) })
}

// explain returns the map's reply as if it were no rehearsal, and the reason.
func (k *Known) explain(m *mta.Map) (reply, why string) {
	domain := []byte(k.Domain)
	switch Decide(k.State, m, k.DANE.State) {
	case StandAside:
		return replyNotFound, whyAside[k.State]
	case DANEOnly:
		return replyDANEOnly, because(whyDANE[k.DANE.State], k.DANE.Why)
	case Defer:
		if applies(m, k.State) {
			return string(appendTemp(nil, m, reasonUndecided, domain)), because(reasonUndecided, k.DANE.Why)
		}
		reason := reasonUnreadable
		if k.Ours {
			reason = reasonOurFault
		}
		return string(appendTemp(nil, m, reason, domain)), reason
	}
	why = "the policy is enforced"
	if k.State == PolicyTesting {
		why = "the policy's mode is testing, and this map enforces those"
	}
	if namesHosts(m, MatchList(k.Policy)) {
		return k.explainHosts(m, why)
	}
	r := secure{domain: domain, match: MatchList(k.Policy)[1:], fields: k.Policy.Fields}
	if m.DANE {
		why = because(why+"; "+whyDANE[k.DANE.State], k.DANE.Why)
		if k.DANE.Hosts != nil {
			r.match = exactNames(m, MatchList(k.Policy), k.DANE.Hosts)
		}
	}
	b, bare := r.append(nil, m)
	switch {
	case !strings.HasPrefix(string(b), replySecure):
		why = "the policy applies, but its mx patterns do not fit into a reply"
		if len(r.match) == 0 {
			why = "the policy applies, but the MTA can use none of its mx patterns"
		}
	case bare:
		why += "; its attributes do not fit into a reply, so Postfix checks hosts as on a map without tlsrpt"
	}
	return string(b), why
}

// explainHosts is explain for a policy that applies, in hosts.
func (k *Known) explainHosts(m *mta.Map, why string) (string, string) {
	err := k.MXErr
	if k.MX == nil && err == nil {
		err = errors.New("the MX hosts were not looked up")
	}
	reply := string(appendHosts(nil, m, []byte(k.Domain), MatchList(k.Policy), k.MX, err))
	switch {
	case strings.HasPrefix(reply, replyHosts):
		return reply, why + ": these are the MX hosts that it lists, equals in any order"
	case err != nil:
		return reply, because(reasonMXFailed, err.Error())
	}
	return reply, "the policy applies, and there is no host that mail may go to"
}

// because adds a reason, if there is one.
func because(what, why string) string {
	if why == "" {
		return what
	}
	return what + ": " + why
}

var whyAside = map[PolicyState]string{
	PolicyAbsent:  "no MTA-STS policy is known",
	PolicyNone:    "the policy's mode is none",
	PolicyTesting: "the policy's mode is testing: failures are reported, mail is delivered (RFC 8461, 5)",
}

// whyDANE says what the state of DANE means for the reply.
var whyDANE = map[dane.State]string{
	dane.Usable:          "DANE protects the domain, and MTA-STS does not override it (RFC 8461, 2)",
	dane.LookupFailed:    "a DANE lookup fails at each listed MX host: Postfix looks for itself, and defers (RFC 7672, 2.2.2)",
	dane.SomeFailed:      "DANE lookups fail at some MX hosts, which cannot be used without their result (RFC 7672, 2.2.2)",
	dane.AddressesFailed: "the addresses of some MX hosts cannot be looked up",
	dane.Absent:          "DANE does not protect the domain",
	dane.UnsignedMX:      "DANE does not protect the domain (RFC 7672, 2.2.1)",
	dane.NotValidating:   "there is no DANE without a resolver that validates",
	dane.NoMail:          "the MTA bounces or defers by itself",
}
