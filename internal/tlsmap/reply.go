package tlsmap

import (
	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

// The words of socketmap_table(5). The space after NOTFOUND belongs to it.
const (
	replyNotFound = "NOTFOUND "
	replyTemp     = "TEMP "
	replyPerm     = "PERM "
	replyDANEOnly = "OK dane-only" // bare: Postfix rejects policy attributes with it
)

// The parts of a reply for an applied policy.
const (
	replySecure    = "OK secure match="
	attrServername = " servername=hostname" // RFC 8461, 7.1: SNI is the MX host's name
)

// eximReason opens a reason that Exim's main log shows as it is.
const eximReason = "MTA-STS: "

// The reasons of TEMP replies, and what replaces the domain where there is none.
const (
	reasonUnreadable = "stored MTA-STS policy is damaged and could not be fetched again yet"
	reasonNotReady   = "stored MTA-STS policy was written by another version and is not converted yet"
	reasonUndecided  = "could not find out whether DANE protects the domain"
	reasonFailed     = "MTA-STS lookup broke off"
	reasonNoPattern  = "MTA-STS policy lists no usable MX host name"
	reasonTooLong    = "MTA-STS policy is too long for a reply"

	reasonUnconvertible = "next-hop is an internationalized name that cannot be converted to A-labels"
)

// appendSecure appends the map's reply for an applied policy: the match list,
// SNI, and for the tlsrpt maps the policy's attributes. What cannot be said
// within MaxReply is TEMP, never a shorter list: a host that is left out
// would be one that the domain allows, a list without end one that Postfix
// rejects.
func appendSecure(dst []byte, m *mta.Map, domain []byte, r Ready) []byte {
	if len(r.match) == 0 {
		return appendTemp(dst, m, reasonNoPattern, domain)
	}
	start, most := len(dst), len(dst)+MaxReply
	dst = append(dst, replySecure...)
	dst = append(dst, r.match...)
	if m.Servername {
		dst = append(dst, attrServername...)
	}
	if m.TLSRPT {
		if hostname.Labels(domain, 0) == 0 { // which no lookup's is
			return appendTemp(dst[:start], m, reasonFailed, domain)
		}
		dst = r.appendPatterns(dst, domain, most)
	}
	if len(dst) > most {
		return appendTemp(dst[:start], m, reasonTooLong, domain)
	}
	if m.TLSRPT {
		if whole := r.appendStrings(dst, most); len(whole) <= most {
			return whole
		}
	}
	return dst
}

// appendTemp appends a TEMP reply. The reason ends up in the mail log, so it
// says of which domain it speaks, and to Postfix's administrators, whose log
// names the recipient anyway, where to read on. The domain is in canonical
// form: at most 253 bytes, all of them printable.
func appendTemp(dst []byte, m *mta.Map, reason string, domain []byte) []byte {
	dst = append(dst, replyTemp...)
	if m.Format == mta.FormatExim {
		dst = append(dst, eximReason...)
		dst = append(dst, domain...)
		dst = append(dst, ": "...)
		return append(dst, reason...)
	}
	dst = append(dst, reason...)
	dst = append(dst, "; see: sts-tlsmap -explain "...)
	return append(dst, domain...)
}

// appendUnconvertible appends the reply for a next-hop that has no policy
// domain, and may not be shown.
func appendUnconvertible(dst []byte, m *mta.Map) []byte {
	dst = append(dst, replyTemp...)
	if m.Format == mta.FormatExim {
		dst = append(dst, eximReason...)
	}
	return append(dst, reasonUnconvertible...)
}

// appendUnknownMap appends the reply for a map that is not there.
func (t *Table) appendUnknownMap(dst, name []byte) []byte {
	dst = append(dst, replyPerm...)
	dst = append(dst, "unknown map "...)
	if len(name) > mta.MaxName {
		name = name[:mta.MaxName]
	}
	for _, c := range name {
		if c <= ' ' || c > '~' {
			c = '?'
		}
		dst = append(dst, c)
	}
	return append(dst, t.unknown...)
}
