// Package tlsrpt is the outcome of SMTP sessions as TLS reports count them
// (RFC 8460): what one session was, what a day of them was for one policy, and how
// far the delivery of a report is. Normalize brings what an MTA says into the form of
// the report. The package reads no sockets and no files: collect and store do, and
// report and deliver make reports of what is stored.
package tlsrpt

import (
	"net/netip"
	"slices"
	"time"
)

// A PolicyType is the kind of a policy (RFC 8460, 4.4).
type PolicyType string

// The policy types.
const (
	TypeTLSA PolicyType = "tlsa"
	TypeSTS  PolicyType = "sts"
	TypeNone PolicyType = "no-policy-found"
)

// A ResultType is the kind of a failure (RFC 8460, 4.3).
type ResultType string

// The result types, all of RFC 8460, 4.3.
const (
	StartTLSNotSupported    ResultType = "starttls-not-supported"
	CertificateHostMismatch ResultType = "certificate-host-mismatch"
	CertificateNotTrusted   ResultType = "certificate-not-trusted"
	CertificateExpired      ResultType = "certificate-expired"
	ValidationFailure       ResultType = "validation-failure"
	STSPolicyFetchError     ResultType = "sts-policy-fetch-error"
	STSPolicyInvalid        ResultType = "sts-policy-invalid"
	STSWebPKIInvalid        ResultType = "sts-webpki-invalid"
	TLSAInvalid             ResultType = "tlsa-invalid"
	DNSSECInvalid           ResultType = "dnssec-invalid"
	DANERequired            ResultType = "dane-required"
)

// ResultTypes is all result types.
var ResultTypes = [...]ResultType{
	StartTLSNotSupported, CertificateHostMismatch, CertificateNotTrusted, CertificateExpired, ValidationFailure,
	STSPolicyFetchError, STSPolicyInvalid, STSWebPKIInvalid, TLSAInvalid, DNSSECInvalid, DANERequired,
}

// Bounds of what is kept.
const (
	MaxPolicyStrings = 1200 // strings of a policy, and MX patterns
	MaxFailures      = 64   // failures of a session
	MaxText          = 256  // bytes of a policy string, or of a reason
	MaxDetails       = 100  // details of a policy's day

	// maxOwn is how many details have a place of their own. The others are folded into
	// one for each result type, so that there are MaxDetails at most.
	maxOwn = MaxDetails - len(ResultTypes)
)

// A Policy is what a session was judged by. Its JSON is that of a report, as with Failure
// and Detail.
type Policy struct {
	Type    PolicyType `json:"policy-type"`
	Strings []string   `json:"policy-string"`     // RFC 8460, 4.5: at most MaxPolicyStrings, printable, of at most MaxText bytes
	Domain  string     `json:"policy-domain"`     // A-labels; for tlsa the MX host (RFC 8460, 1.1)
	MXHosts []string   `json:"mx-host,omitempty"` // of sts only: at most MaxPolicyStrings host names, or "*." and one
}

// A Failure is what was wrong with a session. It is comparable: failures that are
// equal are one detail of a report. Zero: not known.
type Failure struct {
	Result      ResultType `json:"result-type"`
	SendingIP   netip.Addr `json:"sending-mta-ip,omitzero"` // RFC 5952, as netip writes it; see Address
	MXHost      string     `json:"receiving-mx-hostname,omitzero"`
	HELO        string     `json:"receiving-mx-helo,omitzero"` // one host name
	ReceivingIP netip.Addr `json:"receiving-ip,omitzero"`
	Reason      string     `json:"failure-reason-code,omitzero"` // printable ASCII of at most MaxText bytes
}

// An Event is one session under one policy, or one policy fetch that failed.
type Event struct {
	Domain   string // recipient domain or smart host: A-labels, lower case, no trailing dot
	Policy   Policy
	Failed   bool
	Failures []Failure // of a failed session: at most MaxFailures, perhaps none
}

// A Day is a day of UTC, as "2006-01-02".
type Day string

// DayOf returns the day of a moment.
func DayOf(t time.Time) Day { return Day(t.UTC().Format(time.DateOnly)) }

// Begin returns the first moment of the day; the zero time if d is no day.
func (d Day) Begin() time.Time {
	t, err := time.Parse(time.DateOnly, string(d))
	if err != nil {
		return time.Time{}
	}
	return t
}

// End returns the first moment after the day.
func (d Day) End() time.Time { return d.Begin().AddDate(0, 0, 1) }

// A Detail is a failure and how many sessions had it.
type Detail struct {
	Failure
	Sessions uint64 `json:"failed-session-count"`
}

// Count adds sessions with a failure to the details of a policy's day. full: no new failure
// gets a place of its own.
func Count(details []Detail, f Failure, sessions uint64, full bool) []Detail {
	place := func() int {
		return slices.IndexFunc(details, func(d Detail) bool { return d.Failure == f })
	}
	i := place()
	if i < 0 && (full || len(details) >= maxOwn) {
		f = Failure{Result: f.Result}
		i = place()
	}
	if i < 0 {
		i = len(details)
		details = append(details, Detail{Failure: f})
	}
	details[i].Sessions += sessions
	return details
}

// A Summary is one policy's day. Failure types are not exclusive (RFC 8460, 4): the
// sessions of the details may be more than Failed, or fewer.
type Summary struct {
	Policy     Policy   `json:"-"` // is stored once for many domains
	Successful uint64   `json:"ok,omitzero"`
	Failed     uint64   `json:"failed,omitzero"`
	Details    []Detail `json:"details,omitzero"` // at most MaxDetails; the rest is folded into details with a Result and nothing else
}

// A DomainDay is what is known of a recipient domain's day.
type DomainDay struct {
	Domain   string
	Day      Day
	Policies []Summary
}

// A Stage is how far a day is.
type Stage string

// The stages of a day.
const (
	StageOpen    Stage = ""        // its sessions are counted
	StageClosed  Stage = "closed"  // nothing more is counted for it
	StagePlanned Stage = "planned" // its domains have Deliveries
	StageDone    Stage = "done"    // and none of them is open
)

// A StateKind is how far a report is on its way to a receiver.
type StateKind string

// The kinds of states.
const (
	Planned    StateKind = "planned"
	Attempting StateKind = "attempting" // on disk before the attempt
	Accepted   StateKind = "accepted"
	Refused    StateKind = "refused"
	Expired    StateKind = "expired"
	Suppressed StateKind = "suppressed"
)

// Open reports whether a report is still to be delivered.
func (k StateKind) Open() bool { return k == Planned || k == Attempting }

// A Delivery is how far the report of a domain's day is.
type Delivery struct {
	Day      Day        `json:"day"`
	Domain   string     `json:"domain"`
	ReportID string     `json:"id,omitzero"` // stored before the first attempt; empty: there is no report
	Next     time.Time  `json:"next"`        // the next attempt, if a receiver is open
	Attempts int        `json:"attempts,omitzero"`
	To       []Receiver `json:"to"` // one or more

	// In a fleet: whether the engine has this relay's sessions, and whether this relay
	// reports them by itself. Both: they may be reported twice.
	Shared bool `json:"shared,omitzero"`
	Alone  bool `json:"alone,omitzero"`
}

// Open returns how many receivers are still to get the report.
func (v *Delivery) Open() (n int) {
	for _, r := range v.To {
		if r.Kind.Open() {
			n++
		}
	}
	return n
}

// A Receiver is where a report goes.
type Receiver struct {
	URI     string    `json:"uri,omitzero"` // of the record, normalized; empty: the record is not known, or there is no report
	Kind    StateKind `json:"kind"`
	Reason  string    `json:"reason,omitzero"` // of the last failure, printable, bounded
	Changed time.Time `json:"changed"`
}
