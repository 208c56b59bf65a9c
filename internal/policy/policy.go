// Package policy discovers and reads MTA-STS policies as RFC 8461 asks it of a
// sender: the TXT record, the policy file and its fetch over HTTPS, and the
// match of an MX host against a policy. It keeps no policies and no results;
// the keeper does.
package policy

import (
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
)

// A Mode is what a policy asks of senders (RFC 8461, 5).
type Mode uint8

// The modes. The values are stored on disk.
const (
	ModeNone    Mode = 1
	ModeTesting Mode = 2
	ModeEnforce Mode = 3
)

var modeNames = map[Mode]string{ModeNone: "none", ModeTesting: "testing", ModeEnforce: "enforce"}

func (m Mode) String() string {
	if name, ok := modeNames[m]; ok {
		return name
	}
	return "invalid"
}

// MaxMaxAge is the largest max_age (RFC 8461, 3.2). Parse lowers a larger one.
const MaxMaxAge = 31557600 * time.Second

// A Policy is a parsed policy file.
type Policy struct {
	Mode   Mode
	MaxAge time.Duration
	MX     []string // the mx patterns in the order served, lower case, without a trailing dot and repeats
	Fields []Field  // the fields that count, in the order served, without extensions
}

// A Field is one line of a policy file.
type Field struct{ Key, Value string }

// Lists reports whether the policy lists host, the name in an MX record, as a
// mail host of its domain (RFC 8461, 4.1).
func (p *Policy) Lists(host string) bool {
	for _, pattern := range p.MX {
		if Match(pattern, host) {
			return true
		}
	}
	return false
}

// Match reports whether host matches an mx pattern. A leading "*." of the
// pattern stands for exactly one label (RFC 8461, 4.1). ASCII case and a final
// dot are ignored. U-labels match only themselves: DNS has A-labels.
func Match(pattern, host string) bool {
	pattern, host = strings.TrimSuffix(pattern, "."), strings.TrimSuffix(host, ".")
	parent, wild := strings.CutPrefix(pattern, "*.")
	if wild {
		label, rest, _ := strings.Cut(host, ".")
		if label == "" {
			return false
		}
		host = rest
	}
	return parent != "" && hostname.Lower(parent) == hostname.Lower(host)
}
