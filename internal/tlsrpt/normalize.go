package tlsrpt

import (
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
)

// Reasons that stand in reports for what an MTA does not say.
const (
	ReasonDANENoMatch = "dane-no-match" // no TLSA record matches the certificate
	ReasonMXMismatch  = "mx-mismatch"   // the policy does not list the MX host
)

// untrusted is the reasons of OpenSSL that say that a chain leads to no trusted root.
var untrusted = map[string]bool{
	"self-signed_certificate":                      true,
	"self-signed_certificate_in_certificate_chain": true,
	"unable_to_get_issuer_certificate":             true,
	"unable_to_get_local_issuer_certificate":       true,
	"unable_to_verify_the_first_certificate":       true,
}

// Normalize brings an event into the form of a report. It reports whether the event
// counts: false if Domain or Policy.Domain is no name of a mail domain.
//
//	from the MTA                                     in the report
//	domain "GOOD.Test.", or with U-labels            lower-case A-labels without the trailing dot
//	no policy-domain                                 the recipient domain
//	a success with failures (f:0, t:1)               a success; its failures are dropped
//	validation-failure, the reason an untrusted one  certificate-not-trusted, the same reason
//	certificate-not-trusted under tlsa, no reason    the same, reason dane-no-match
//	a result type that is not in RFC 8460, 4.3       validation-failure (4.3: what fits nowhere)
//	mx-host of another policy than sts               dropped (RFC 8460, 4.4)
//
// What has a type of its own is converted before, where it is read:
//
//	the EHLO reply "250-mx.x.test at your service…"  HELO: the first word, if it is a host name
//	an address as text                               Address: parsed; neither zoned nor unspecified
//	an MX host, an MX pattern                        Host, Pattern: as a domain; dropped if it is none
//	a reason                                         Reason: printable ASCII of at most 256 bytes, or dropped
//	a policy string                                  PolicyString: printable text of at most 256 bytes, or dropped
func (e *Event) Normalize() bool {
	var ok bool
	if e.Domain, ok = Domain(e.Domain); !ok {
		return false
	}
	p := &e.Policy
	if p.Domain == "" {
		p.Domain = e.Domain
	} else if p.Domain, ok = Domain(p.Domain); !ok {
		return false
	}
	if p.Type != TypeSTS {
		p.MXHosts = nil
	}
	if !e.Failed {
		e.Failures = nil
	}
	for i := range e.Failures {
		f := &e.Failures[i]
		switch {
		case f.Result == ValidationFailure && untrusted[f.Reason]:
			f.Result = CertificateNotTrusted
		case f.Result == CertificateNotTrusted && p.Type == TypeTLSA && f.Reason == "":
			f.Reason = ReasonDANENoMatch
		case ResultIndex(f.Result) < 0:
			f.Result = ValidationFailure
		}
	}
	return true
}

// ResultIndex returns the place of r in ResultTypes, -1 if it has none.
func ResultIndex(r ResultType) int {
	for i, known := range ResultTypes {
		if r == known {
			return i
		}
	}
	return -1
}

// Domain returns the name of a mail domain in lower-case A-labels without a trailing
// dot. It has two labels or more and is no address.
func Domain(s string) (string, bool) {
	host, ok := Host(s)
	return host, ok && strings.IndexByte(host, '.') > 0
}

// Host is Domain for an MX host, which may have one label.
func Host(s string) (string, bool) {
	if hostname.Labels(s, hostname.Underscore) == 0 { // most names are written as they have to be
		var scratch [hostname.MaxName]byte
		name, err := hostname.Canonical([]byte(s), scratch[:])
		if err != nil {
			return "", false
		}
		if s = string(name); hostname.Labels(s, hostname.Underscore) == 0 {
			return "", false
		}
	}
	if hostname.EndsInNumber(s) {
		return "", false
	}
	return s, true
}

// Pattern is Host for an MX pattern, which may begin with "*." (RFC 8461, 4.1).
func Pattern(s string) (string, bool) {
	rest, wild := strings.CutPrefix(s, "*.")
	host, ok := Host(rest)
	if wild && ok {
		host = "*." + host
	}
	return host, ok
}

// HELO returns the host name in an EHLO reply: its first word (RFC 5321, 4.1.1.1),
// after "250-" or "250 ". "": the word is no host name.
func HELO(reply string) string {
	if rest, ok := strings.CutPrefix(reply, "250"); ok && rest != "" && (rest[0] == '-' || rest[0] == ' ') {
		reply = rest[1:]
	}
	word := reply
	if end := strings.IndexAny(reply, " \t\r\n"); end >= 0 {
		word = reply[:end]
	}
	host, ok := Host(word)
	if !ok {
		return ""
	}
	return host
}

// Address parses an IP address, IPv4 in IPv6 as IPv4. The zero Addr: it is none, has a
// zone, or is unspecified.
func Address(s string) netip.Addr {
	a, err := netip.ParseAddr(s)
	if a = a.Unmap(); err != nil || a.Zone() != "" || a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

// Reason reports whether s can be a failure-reason-code: printable ASCII of at most
// MaxText bytes.
func Reason(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return len(s) <= MaxText
}

// PolicyString reports whether s can be a policy-string: at most MaxText bytes of
// UTF-8 without control characters.
func PolicyString(s string) bool {
	if Reason(s) {
		return true
	}
	return len(s) <= MaxText && !strings.ContainsFunc(s, func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) })
}
