package tlsmap

import (
	"encoding/binary"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// readyVersion is the first byte of what Prepare makes. Change it with the
// format: records of another version are prepared again from their text.
const readyVersion = 1

// MaxReply is the longest reply that Postfix reads (SOCKETMAP_MAX_REPLY), in
// bytes, the status word included.
const MaxReply = 100_000

// A Ready is what a reply needs of a policy, as it stands in the store: after
// the version three texts, each behind its length as a uvarint, and nothing
// behind them.
type Ready struct {
	// match is the match list: names joined by ':'. An entry that begins with
	// a dot stands for the pattern with a "*" before it, so that the list
	// holds all there is to know of the mx patterns. Empty: none can be used.
	match []byte

	// attrs are the attributes of the tlsrpt maps but for the policy strings,
	// each with a space before it. Empty: they are too long for any reply.
	attrs []byte

	// strings are the policy_string attributes, likewise. Empty: they are too
	// long, or there are none.
	strings []byte
}

// Prepare returns what the replies for the domain need of its policy, to be
// kept beside it. It is never empty, and no longer than about three times
// the policy's text and MaxReply.
func Prepare(domain string, p *policy.Policy) []byte {
	patterns := usablePatterns(p.MX)
	match := matchList(patterns)
	attrs := policyAttributes(domain, patterns)
	fields := policyStrings(p.Fields)
	if len(attrs) > MaxReply {
		attrs = nil
	}
	if len(attrs)+len(fields) > MaxReply {
		fields = nil
	}
	b := make([]byte, 0, 1+3*binary.MaxVarintLen32+len(match)+len(attrs)+len(fields))
	b = append(b, readyVersion)
	for _, text := range [][]byte{match, attrs, fields} {
		b = binary.AppendUvarint(b, uint64(len(text)))
		b = append(b, text...)
	}
	return b
}

// ParseReady returns a view of what Prepare made. It is false for another
// version of the format, and for what is damaged so that lengths do not fit.
func ParseReady(b []byte) (r Ready, ok bool) {
	if len(b) == 0 || b[0] != readyVersion {
		return Ready{}, false
	}
	b = b[1:]
	if r.match, b, ok = cutText(b); !ok {
		return Ready{}, false
	}
	if r.attrs, b, ok = cutText(b); !ok {
		return Ready{}, false
	}
	if r.strings, b, ok = cutText(b); !ok || len(b) != 0 {
		return Ready{}, false
	}
	return r, true
}

// cutText takes a text off the start of b.
func cutText(b []byte) (text, rest []byte, ok bool) {
	n, width := binary.Uvarint(b)
	if width <= 0 || n > uint64(len(b)-width) {
		return nil, nil, false
	}
	end := width + int(n)
	return b[width:end:end], b[end:], true
}

// usablePatterns returns the mx patterns that may be shown to an MTA, in lower
// case and without repeats. What is no host name, with or without "*.", is
// left out: whatever it was meant to be, it matches nothing. So is a pattern of
// one label: "hostname", "nexthop" and "dot-nexthop" are keywords to Postfix.
func usablePatterns(mx []string) []string {
	usable := make([]string, 0, len(mx))
	seen := make(map[string]bool, len(mx))
	for _, pattern := range mx {
		if len(pattern) > maxPattern {
			continue
		}
		pattern = lowerASCII(pattern) // RFC 8461, 4.1: case does not count
		labels := 2
		host := pattern
		if rest, wildcard := strings.CutPrefix(pattern, "*."); wildcard {
			host, labels = rest, 1
		}
		if !isHostName(host, labels) || seen[pattern] {
			continue
		}
		seen[pattern] = true
		usable = append(usable, pattern)
	}
	return usable
}

// matchList renders patterns for Postfix's match attribute, in which
// ".example.net" is any name below example.net.
func matchList(patterns []string) []byte {
	var b []byte
	for i, pattern := range patterns {
		if i > 0 {
			b = append(b, ':')
		}
		b = append(b, strings.TrimPrefix(pattern, "*")...)
	}
	return b
}

// policyAttributes renders the attributes that Postfix 3.10 and later use for
// TLSRPT, and 3.10.5 and later to choose among the MX hosts. It is empty for
// what is no domain.
func policyAttributes(domain string, patterns []string) []byte {
	if !isHostName(domain, 1) {
		return nil
	}
	b := append([]byte(" policy_type=sts policy_domain="), domain...)
	for _, pattern := range patterns {
		b = append(b, " mx_host_pattern="...)
		b = append(b, pattern...)
	}
	return b
}

// policyStrings renders the fields that the standard names, as served. The
// braces let a value have spaces; nothing else that could end one gets through.
func policyStrings(fields []policy.Field) []byte {
	var b []byte
	for _, f := range fields {
		if !isStandardField(f) {
			continue
		}
		b = append(b, " { policy_string = "...)
		b = append(b, f.Key...)
		b = append(b, ": "...)
		b = append(b, f.Value...)
		b = append(b, " }"...)
	}
	return b
}

// maxPattern is the longest mx pattern: a host name behind "*.".
const maxPattern = maxName + len("*.")

// maxAgeDigits is the length of a max_age (RFC 8461, 3.2).
const maxAgeDigits = 10

// isStandardField reports whether the field is one that the standard names,
// with a value that it allows (RFC 8461, 3.2).
func isStandardField(f policy.Field) bool {
	switch f.Key {
	case "version":
		return f.Value == "STSv1"
	case "mode":
		return f.Value == "enforce" || f.Value == "testing" || f.Value == "none"
	case "max_age":
		return len(f.Value) >= 1 && len(f.Value) <= maxAgeDigits && strings.Trim(f.Value, "0123456789") == ""
	case "mx":
		// As served: in capitals perhaps, and with a dot at the end.
		host := strings.TrimPrefix(strings.TrimSuffix(f.Value, "."), "*.")
		return len(host) <= maxName && isHostName(lowerASCII(host), 1)
	}
	return false
}

// lowerASCII folds the case of ASCII letters and of nothing else:
// strings.ToLower would make a letter of the Kelvin sign.
func lowerASCII(s string) string {
	return string(appendLower(nil, []byte(s), 0))
}
