package tlsmap

import (
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// A PolicyState is what is known of a domain's MTA-STS policy.
type PolicyState uint8

// The states of a policy. The zero value is the one that makes no promise.
const (
	PolicyUnreadable PolicyState = iota // a policy is held but cannot be read, or the lookup was cut short
	PolicyAbsent                        // no policy is held and none could be discovered
	PolicyNone                          // mode none
	PolicyTesting                       // mode testing
	PolicyEnforced                      // mode enforce
)

// StateOf returns the state of a policy that is held, by its mode.
func StateOf(mode policy.Mode) PolicyState {
	switch mode {
	case policy.ModeEnforce:
		return PolicyEnforced
	case policy.ModeTesting:
		return PolicyTesting
	case policy.ModeNone:
		return PolicyNone
	}
	return PolicyUnreadable
}

// A Verdict is the kind of reply.
type Verdict uint8

// The verdicts.
const (
	Defer      Verdict = iota // TEMP: the mail waits
	StandAside                // NOTFOUND: no policy applied
	Secure                    // the policy's hosts, with verified certificates
	DANEOnly                  // the MTA validates with DANE, or defers
)

// applies reports whether the map applies a policy in that state (RFC 8461, 5).
func applies(m *mta.Map, p PolicyState) bool {
	return p == PolicyEnforced || p == PolicyTesting && m.Testing
}

// Decide returns the map's verdict for a domain whose policy is in state p and whose
// DANE is in state d. The DANE state matters only on maps with DANE and under a
// policy that applies. Decide ignores rehearsals. Unknown states defer. A test
// compares Decide with the table in docs/decision.md.
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
	case dane.SomeFailed:
		if m.TLSRPT {
			return Secure // mx_host_pattern keeps the MTA from the hosts that may have DANE
		}
		return DANEOnly
	case dane.AddressesFailed, dane.Absent, dane.UnsignedMX, dane.NoMail, dane.NotValidating:
		return Secure // RFC 7672, 2.2.1: an unsigned MX RRset protects nothing
	}
	return Defer
}
