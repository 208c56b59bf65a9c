package tlsmap

import (
	"fmt"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

// MaxReply is the longest reply that Postfix reads (SOCKETMAP_MAX_REPLY), in
// bytes, the status word included.
const MaxReply = 100_000

// The words of socketmap_table(5). The space after NOTFOUND belongs to it.
const (
	replyNotFound  = "NOTFOUND "
	replyTemp      = "TEMP "
	replyPerm      = "PERM "
	replySecure    = "OK secure match="
	replyDANEOnly  = "OK dane-only" // bare: Postfix rejects policy attributes with it
	attrServername = " servername=hostname"
)

// The reasons of TEMP replies.
const (
	reasonUnreadable = "stored MTA-STS policy is damaged and could not be fetched again yet"
	reasonUndecided  = "could not find out whether DANE protects the domain"
	reasonOurFault   = "this relay could not look for an MTA-STS policy"
	reasonFailed     = "MTA-STS lookup broke off"
	reasonNoPattern  = "MTA-STS policy lists no usable MX host name"
	reasonTooLong    = "MTA-STS policy is too long for a reply"

	reasonUnconvertible = "next-hop is an internationalized name that cannot be converted to A-labels"
)

// A secure is what the reply for an applied policy is rendered from.
type secure struct {
	domain []byte         // the policy domain, in canonical form
	match  []byte         // match list without its version byte; or exact host names, where only some of the policy's may be used
	fields []policy.Field // the policy's, for maps with TLSRPT
}

// append appends the map's reply: the match list, SNI, and for the tlsrpt maps the
// policy's attributes. A reply over MaxReply loses all policy_string attributes,
// then all other policy attributes; bare reports the second case. The match list is
// never shortened, because that would forbid a host that the policy allows.
func (r *secure) append(dst []byte, m *mta.Map) (reply []byte, bare bool) {
	if len(r.match) == 0 {
		return appendTemp(dst, m, reasonNoPattern, r.domain), false
	}
	start, most := len(dst), len(dst)+MaxReply
	dst = append(dst, replySecure...)
	dst = append(dst, r.match...) // RFC 8461, 4.1 and 4.2
	if m.Servername {
		dst = append(dst, attrServername...) // RFC 8461, 7.1: SNI is the MX host's name
	}
	plain := len(dst)
	if plain > most {
		return appendTemp(dst[:start], m, reasonTooLong, r.domain), false
	}
	if !m.TLSRPT {
		return dst, false
	}
	// For TLSRPT in Postfix 3.10 and later, which since 3.10.5 also chooses among
	// the MX hosts by mx_host_pattern.
	dst = append(dst, " policy_type=sts policy_domain="...)
	dst = append(dst, r.domain...)
	for entry := range matchEntries(r.match) {
		dst = append(dst, " mx_host_pattern="...)
		if entry[0] == '.' {
			dst = append(dst, '*')
		}
		dst = append(dst, entry...)
	}
	withPatterns := len(dst)
	for _, f := range r.fields {
		if isReportable(f) { // the braces let a value have spaces
			dst = fmt.Appendf(dst, " { policy_string = %s: %s }", f.Key, f.Value)
		}
	}
	switch {
	case withPatterns > most:
		return dst[:plain], true
	case len(dst) > most:
		return dst[:withPatterns], false
	}
	return dst, false
}

// Reported returns an enforced policy as the attributes of a tlsrpt map have it, for
// reports (RFC 8460, 4.5): so that sessions count under the same policy, whoever tells
// of them.
func Reported(domain string, text []byte) tlsrpt.Policy {
	r := tlsrpt.Policy{Type: tlsrpt.TypeSTS, Domain: domain}
	p, err := policy.Parse(text)
	if err != nil {
		return r
	}
	for _, f := range p.Fields {
		if s := f.Key + ": " + f.Value; isReportable(f) && tlsrpt.PolicyString(s) && len(r.Strings) < tlsrpt.MaxPolicyStrings {
			r.Strings = append(r.Strings, s)
		}
	}
	for entry := range matchEntries(MatchList(p)[1:]) {
		if entry[0] == '.' {
			entry = append([]byte("*"), entry...)
		}
		r.MXHosts = append(r.MXHosts, string(entry))
	}
	return r
}

// isReportable reports whether the standard names the field (RFC 8461, 3.2) and
// nothing in its value can close a brace or start an attribute.
func isReportable(f policy.Field) bool {
	switch f.Key {
	case "version", "mode", "max_age":
		return hostname.Labels(f.Value, hostname.Upper) == 1
	case "mx":
		return hostname.Labels(strings.TrimPrefix(strings.TrimSuffix(f.Value, "."), "*."), hostname.Upper) > 0
	}
	return false
}

// appendTemp appends a TEMP reply. The MTA logs the reason, so it names the
// domain, if there is one, and to Postfix's administrators the command that tells
// more. The domain is in canonical form: at most 253 bytes, all of them printable.
func appendTemp(dst []byte, m *mta.Map, reason string, domain []byte) []byte {
	dst = append(dst, replyTemp...)
	if m.Format == mta.FormatExim {
		dst = append(dst, "MTA-STS: "...) // Exim's main log shows the reason as it is
		if domain != nil {
			dst = append(append(dst, domain...), ": "...)
		}
		return append(dst, reason...)
	}
	dst = append(dst, reason...)
	if domain != nil {
		dst = append(append(dst, "; see: sts-tlsmap -explain "...), domain...)
	}
	return dst
}

// appendUnknownMap appends the reply for a map that does not exist.
func (t *Table) appendUnknownMap(dst, name []byte) []byte {
	dst = append(dst, replyPerm...)
	dst = append(dst, "unknown map "...)
	for _, c := range name[:min(len(name), mta.MaxName)] {
		if c <= ' ' || c > '~' {
			c = '?'
		}
		dst = append(dst, c)
	}
	return append(dst, t.known...)
}
