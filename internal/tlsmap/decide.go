package tlsmap

import (
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

// A PolicyState is what is known of a domain's MTA-STS policy.
type PolicyState uint8

// The states of a policy. The zero value is the one that makes no promise.
const (
	PolicyUnreadable PolicyState = iota // one was held and cannot be read, or the lookup broke off
	PolicyAbsent                        // none is held and none could be discovered
	PolicyNone                          // mode none
	PolicyTesting                       // mode testing
	PolicyEnforced                      // mode enforce
)

func (p PolicyState) String() string {
	switch p {
	case PolicyUnreadable:
		return "unreadable"
	case PolicyAbsent:
		return "absent"
	case PolicyNone:
		return "none"
	case PolicyTesting:
		return "testing"
	case PolicyEnforced:
		return "enforce"
	}
	return "invalid"
}

// A Verdict is the kind of reply that is called for.
type Verdict uint8

// The verdicts.
const (
	Defer      Verdict = iota // TEMP: the mail waits
	StandAside                // NOTFOUND: the MTA does as it would without us
	Secure                    // the policy's hosts, with verified certificates
	DANEOnly                  // the MTA validates with DANE, or defers
)

func (v Verdict) String() string {
	switch v {
	case Defer:
		return "TEMP"
	case StandAside:
		return "NOTFOUND"
	case Secure:
		return "OK secure"
	case DANEOnly:
		return "OK dane-only"
	}
	return "invalid"
}

// applies reports whether a policy in that state is applied by the map
// (RFC 8461, 5).
func applies(m *mta.Map, p PolicyState) bool {
	return p == PolicyEnforced || p == PolicyTesting && m.Testing
}

// Decide returns what the map has to say of a domain whose policy is in that
// state. What DANE has to say of the next-hop matters on maps with DANE and
// under a policy that is applied; nobody needs to ask before. Whether the map
// is a rehearsal plays no part. What Decide does not know it defers. The table
// is in docs/decision.md, and a test compares the two.
func Decide(p PolicyState, m *mta.Map, d dane.State) Verdict {
	switch p {
	case PolicyAbsent, PolicyNone:
		return StandAside // RFC 8461, 3.3 and 5
	case PolicyTesting, PolicyEnforced:
		if !applies(m, p) {
			return StandAside // RFC 8461, 5
		}
	default:
		return Defer
	}
	if !m.DANE {
		return Secure
	}
	switch d {
	case dane.Usable, dane.LookupFailed:
		return DANEOnly // RFC 8461, 2: DANE is not overridden
	case dane.Absent, dane.UnsignedMX, dane.NoMail, dane.NotValidating:
		return Secure // RFC 7672, 2.2.1: an unsigned MX RRset protects nothing
	}
	return Defer
}
