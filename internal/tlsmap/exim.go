package tlsmap

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// Exim has no way to be told which host names are good: it is told which hosts
// to use. So the MX lookup is ours here, and what is not listed by the policy
// is left out (RFC 8461, 4.1); Exim verifies the certificate of each host
// against its name (4.2). Since nothing but the hosts of the reply are tried,
// whoever forges the MX records can only stop the mail.

// replyHosts opens the reply that names hosts.
const replyHosts = "OK "

// The reasons of TEMP replies to Exim. A null MX, or NXDOMAIN, of a domain
// with an enforced policy is a contradiction that an attacker can make: were
// it NOTFOUND, Exim would ask for the MX records by itself, and may get others.
const (
	reasonUnlisted = "none of its MX hosts is listed in its policy"
	reasonNoHost   = "none of its MX records names a host"
	reasonNullMX   = "the DNS says that it takes no mail (null MX), but its policy is enforced"
	reasonNXDomain = "the DNS says that it does not exist, but its policy is enforced"
	reasonMXFailed = "its MX hosts could not be looked up"
)

// answerHosts appends the reply for an applied policy in Exim's terms.
func (s *Server) answerHosts(ctx context.Context, dst []byte, m *mta.Map, hop mta.NextHop, began time.Time, l *lookup) ([]byte, outcome) {
	l.notFromMemory(began) // MX hosts may be held, but that is not told
	set, err := s.findMX(ctx, hop, began)
	if err != nil {
		l.why = err.Error()
	}
	start := len(dst)
	dst = appendHosts(dst, m, hop.Domain, l.held.Ready, set, err)
	if !bytes.HasPrefix(dst[start:], []byte(replyHosts)) {
		return dst, outcomeTemp
	}
	return dst, outcomeOK
}

// findMX returns the MX hosts of a next-hop; in brackets, the name is the host.
func (s *Server) findMX(ctx context.Context, hop mta.NextHop, began time.Time) (*dane.MXSet, error) {
	if hop.Bracketed {
		return &dane.MXSet{Hosts: []dane.MXHost{{Name: string(hop.Domain)}}}, nil
	}
	if s.hops == nil {
		return nil, errors.New("nothing here can look them up")
	}
	ctx, cancel := s.within(ctx, began)
	defer cancel()
	return s.hops.MX(ctx, string(hop.Domain))
}

// appendHosts appends the hosts of the set that the policy lists, the most
// preferred first, equals in an order that changes from one call to the next
// (RFC 5321, 5.1). Names in a set are host names: nothing in them means
// anything to Exim.
func appendHosts(dst []byte, m *mta.Map, domain, ready []byte, set *dane.MXSet, err error) []byte {
	r, ok := ParseReady(ready)
	switch {
	case !ok:
		return appendTemp(dst, m, reasonNotReady, domain)
	case len(r.match) == 0:
		return appendTemp(dst, m, reasonNoPattern, domain)
	case err != nil:
		return appendTemp(dst, m, reasonMXFailed+": "+failureOf(err), domain)
	case set.Null:
		return appendTemp(dst, m, reasonNullMX, domain)
	case set.NXDomain:
		return appendTemp(dst, m, reasonNXDomain, domain)
	case len(set.Hosts) == 0:
		return appendTemp(dst, m, reasonNoHost, domain)
	}
	hosts := listedHosts(r.match, set)
	if len(hosts) == 0 {
		return appendTemp(dst, m, reasonUnlisted, domain)
	}
	start := len(dst)
	dst = append(dst, replyHosts...)
	for i, h := range hosts {
		if i > 0 {
			dst = append(dst, ':')
		}
		dst = append(dst, h...)
	}
	if len(dst)-start > MaxReply {
		return appendTemp(dst[:start], m, reasonTooLong, domain)
	}
	return dst
}

// listedHosts returns the hosts of the set that a match list has, in order.
func listedHosts(match []byte, set *dane.MXSet) []string {
	hosts := make([]string, 0, len(set.Hosts))
	equals := 0 // index of the first host of the same preference
	for i, h := range set.Hosts {
		if i > 0 && h.Preference != set.Hosts[i-1].Preference {
			shuffle(hosts[equals:])
			equals = len(hosts)
		}
		if isUsableHost(match, h.Name) {
			hosts = append(hosts, h.Name)
		}
	}
	shuffle(hosts[equals:])
	return hosts
}

// isUsableHost reports whether a match list has the host, and it may be said to
// Exim: what is no host name may be an option there, and what ends in a number
// an address.
func isUsableHost(match []byte, host string) bool {
	return isListed(match, host) && hostname.Labels(host, 0) > 0 && !hostname.EndsInNumber(host)
}

func shuffle(s []string) {
	for i := len(s) - 1; i > 0; i-- {
		j := rand.IntN(i + 1)
		s[i], s[j] = s[j], s[i]
	}
}

// isListed reports whether a match list has the host (RFC 8461, 4.1): by its
// name, or by a wildcard for exactly its left-most label. The host is in lower
// case.
func isListed(match []byte, host string) bool {
	parent := ""
	if dot := strings.IndexByte(host, '.'); dot > 0 {
		parent = host[dot:]
	}
	for len(match) > 0 {
		var entry []byte
		entry, match, _ = bytes.Cut(match, []byte{':'})
		name := host
		if len(entry) > 0 && entry[0] == '.' {
			name = parent
		}
		if string(entry) == name {
			return name != ""
		}
	}
	return false
}

// failureOf says in our words why a lookup failed. What else an error says may
// come from the network; it is for the log only.
func failureOf(err error) string {
	var e *resolver.Error
	switch {
	case errors.As(err, &e):
		return e.Kind.String()
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return "no answer in time"
	}
	return "the lookup failed"
}
