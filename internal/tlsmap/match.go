package tlsmap

import (
	"bytes"
	"iter"
	"slices"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// matchVersion is the first byte of a stored match list: the version of the rule
// in MatchList. Change it with the rule.
const matchVersion = 3

// MatchList returns the stored match list of a policy: a version byte and the
// value of Postfix's match attribute. That holds the mx patterns in the policy's
// order, lower case, without repeats, joined by ':'; ".example.net" stands for
// "*.example.net", and is any name below example.net to Postfix.
//
// Left out are patterns that would mean something else to Postfix: names of one
// label, of which "hostname", "nexthop" and "dot-nexthop" are keywords, and names
// that end in a number, which are taken for addresses and match no certificate.
func MatchList(p *policy.Policy) []byte {
	list := []byte{matchVersion}
	seen := make(map[string]bool, len(p.MX))
	for _, pattern := range p.MX {
		pattern = hostname.Lower(pattern) // RFC 8461, 4.1: case does not count
		if !isUsable(pattern) || seen[pattern] {
			continue
		}
		seen[pattern] = true
		if len(list) > 1 {
			list = append(list, ':')
		}
		list = append(list, strings.TrimPrefix(pattern, "*")...)
	}
	return list
}

// isUsable reports whether an mx pattern in lower case means itself to Postfix.
func isUsable(pattern string) bool {
	host, wildcard := strings.CutPrefix(pattern, "*.")
	labels := hostname.Labels(host, 0)
	return (labels > 1 || labels == 1 && wildcard) && !hostname.EndsInNumber(host)
}

// LeftOut returns the mx patterns of a policy that its match list leaves out.
func LeftOut(p *policy.Policy) []string {
	return slices.DeleteFunc(slices.Clone(p.MX), func(pattern string) bool { return isUsable(hostname.Lower(pattern)) })
}

// MatchListCurrent reports whether a stored match list follows today's rule.
func MatchListCurrent(list []byte) bool { return len(list) > 0 && list[0] == matchVersion }

// Lists reports whether a stored match list allows the host (RFC 8461, 4.1): by
// its name, or by a wildcard for exactly its left-most label. The host is in
// lower case; a name that is no host name is not allowed, since Exim could take
// it for an option.
func Lists(list []byte, host string) bool {
	return MatchListCurrent(list) && hostname.Labels(host, 0) > 0 && lists(list[1:], host, false)
}

// AcceptedBy returns whether Postfix accepts a host by a stored match list, as
// it reads that.
func AcceptedBy(list []byte) func(host string) bool {
	return func(host string) bool { return MatchListCurrent(list) && lists(list[1:], host, true) }
}

// exactNames returns a match list, without its version byte, of those hosts
// whose names mean themselves to Postfix. A map whose reply has mx_host_pattern
// gets only hosts that the stored match list allows by RFC 8461, 4.1.
func exactNames(m *mta.Map, list []byte, hosts []string) []byte {
	if m.TLSRPT {
		hosts = slices.DeleteFunc(slices.Clone(hosts), func(host string) bool { return !Lists(list, host) })
	}
	return MatchList(&policy.Policy{MX: hosts})[1:]
}

// lists reports whether the match list, without its version byte, has the host:
// by its name, or by a wildcard for its left-most label. With deep, a wildcard
// stands for any number of labels, as Postfix reads ".example.net".
func lists(match []byte, host string, deep bool) bool {
	for entry := range matchEntries(match) {
		below, ok := strings.CutSuffix(host, string(entry))
		if ok && (below == "" || entry[0] == '.' && (deep || !strings.Contains(below, "."))) {
			return true
		}
	}
	return false
}

// matchEntries returns the entries of a match list without its version byte.
func matchEntries(match []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for len(match) > 0 {
			var entry []byte
			entry, match, _ = bytes.Cut(match, []byte{':'})
			if len(entry) > 0 && !yield(entry) {
				return
			}
		}
	}
}
