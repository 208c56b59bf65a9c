package tlsmap

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// Exim cannot be told which host names are good, only which hosts to use. So the
// MX lookup is made here, hosts that the policy does not list are left out
// (RFC 8461, 4.1), and Exim verifies the certificate of each host against its name
// (4.2). Exim tries no hosts but those of the reply: whoever forges the MX records
// can only stop the mail.

// replyHosts opens a reply with hosts.
const replyHosts = "OK "

// maxSendmailList is how much of a match list sendmail reads, in bytes (MAXNAME). What
// follows is lost without an error, and the last name becomes another one. So a longer
// list gives way to the MX hosts that it allows.
const maxSendmailList = 255

// namesHosts reports whether the map's reply under that stored match list names hosts,
// not the patterns.
func namesHosts(m *mta.Map, list []byte) bool {
	return m.Format == mta.FormatExim || m.Format == mta.FormatSendmail && len(list) > 1+maxSendmailList
}

// The reasons of TEMP replies to Exim. An attacker can forge a null MX or
// NXDOMAIN: were the reply NOTFOUND, Exim would look the MX records up by itself,
// and may get others.
const (
	reasonUnlisted = "none of its MX hosts is listed in its policy"
	reasonNoHost   = "none of its MX records names a host"
	reasonNullMX   = "the DNS says that it takes no mail (null MX), but its policy is enforced"
	reasonNXDomain = "the DNS says that it does not exist, but its policy is enforced"
	reasonMXFailed = "its MX hosts could not be looked up"
)

// answerHosts appends the reply for an applied policy whose MX hosts are named.
func (s *Server) answerHosts(ctx context.Context, dst []byte, m *mta.Map, hop mta.NextHop, began time.Time, l *lookup) []byte {
	l.held.Since = cmp.Or(l.held.Since, began)
	set, err := &dane.MXSet{Hosts: []dane.MXHost{{Name: string(hop.Domain)}}}, error(nil)
	if !hop.Bracketed { // in brackets, the name is the host
		ctx, cancel := context.WithDeadline(ctx, began.Add(s.timeout))
		defer cancel()
		if set, err = s.hops.MX(ctx, string(hop.Domain)); err != nil {
			l.why = err.Error()
		} else if l.mail {
			s.noteBarred(l, dane.Barred(set.Hosts, func(host string) bool { return Lists(l.held.Match, host) }))
		}
	}
	return appendHosts(dst, m, hop.Domain, l.held.Match, set, err)
}

// appendHosts appends the hosts of the set that the stored match list allows, the
// most preferred first, equals in random order (RFC 5321, 5.1).
func appendHosts(dst []byte, m *mta.Map, domain, list []byte, set *dane.MXSet, err error) []byte {
	reason, hosts := "", []string(nil)
	switch {
	case len(list) <= 1:
		reason = reasonNoPattern
	case err != nil:
		reason = reasonMXFailed + ": " + failureOf(err)
	case set.Null:
		reason = reasonNullMX
	case set.NXDomain:
		reason = reasonNXDomain
	case len(set.Hosts) == 0:
		reason = reasonNoHost
	default:
		if hosts = listedHosts(list, set); len(hosts) == 0 {
			reason = reasonUnlisted
		}
	}
	if reason != "" {
		return appendTemp(dst, m, reason, domain)
	}
	joined, end := hosts[0], ""
	if m.Format == mta.FormatSendmail {
		dst, end = append(dst, replySecure...), attrServername
	} else {
		dst = append(dst, replyHosts...)
	}
	for _, h := range hosts[1:] {
		if end == "" || len(joined)+1+len(h) <= maxSendmailList {
			joined += ":" + h
		}
	}
	return append(append(dst, joined...), end...)
}

// listedHosts returns the hosts of the set that a stored match list allows, in
// order.
func listedHosts(list []byte, set *dane.MXSet) []string {
	hosts := make([]string, 0, len(set.Hosts))
	equals := 0 // index of the first host of the same preference
	shuffle := func() {
		group := hosts[equals:]
		rand.Shuffle(len(group), func(i, j int) { group[i], group[j] = group[j], group[i] })
		equals = len(hosts)
	}
	for i, h := range set.Hosts {
		if i > 0 && h.Preference != set.Hosts[i-1].Preference {
			shuffle()
		}
		if Lists(list, h.Name) {
			hosts = append(hosts, h.Name)
		}
	}
	shuffle()
	return hosts
}

// failureOf says in our words why a lookup failed. The error's own words may come
// from the network; they are for the log only.
func failureOf(err error) string {
	if e, ok := errors.AsType[*resolver.Error](err); ok {
		return e.Kind.String()
	}
	return "no answer"
}
