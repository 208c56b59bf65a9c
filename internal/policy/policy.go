// Package policy is MTA-STS as RFC 8461 has it for a sender: the TXT record,
// the policy file, the matching of MX hosts, and the discovery of both over
// DNS and HTTPS. It keeps nothing; the keeper does.
package policy

import (
	"errors"
	"time"
)

// A Mode is what a policy demands (RFC 8461, 5).
type Mode uint8

// The modes. The values are stored on disk.
const (
	ModeNone    Mode = 1
	ModeTesting Mode = 2
	ModeEnforce Mode = 3
)

func (m Mode) String() string {
	switch m {
	case ModeNone:
		return "none"
	case ModeTesting:
		return "testing"
	case ModeEnforce:
		return "enforce"
	}
	return "invalid"
}

// MaxMaxAge is the largest max_age (RFC 8461, 3.2); a larger one is capped.
const MaxMaxAge = 31557600 * time.Second

// A Policy is a parsed policy file.
type Policy struct {
	Mode   Mode
	MaxAge time.Duration
	MX     []string // the mx patterns in the order served, lower case, without a trailing dot, repeats left out
	Fields []Field  // the fields the standard names, in the order served, the ones that count
}

// A Field is one line of a policy file.
type Field struct{ Key, Value string }

// A Record is a parsed TXT record at _mta-sts.DOMAIN (RFC 8461, 3.1).
type Record struct {
	ID string // 1 to 32 letters or digits
}

// A Result names how a discovery ended, in the standard's own terms where it
// has one (RFC 8460, 4.3). It is short, and safe as a metric's label.
type Result string

// The results.
const (
	ResultOK            Result = "ok"
	ResultNoRecord      Result = "no-record"              // proven: no TXT record, or none that begins with v=STSv1
	ResultRecordInvalid Result = "record-invalid"         // a broken record, or more than one
	ResultDNS           Result = "dns-failure"            // the TXT lookup failed: nothing is known
	ResultFetch         Result = "sts-policy-fetch-error" // no HTTPS 200 text/plain in time
	ResultInvalid       Result = "sts-policy-invalid"     // a policy file that does not follow the grammar
	ResultWebPKI        Result = "sts-webpki-invalid"     // the policy host's certificate is not valid
	ResultBusy          Result = "busy"                   // not tried: too many at once, at this policy host's address or in all
)

// An Error is a discovery, or a step of one, that found no policy.
type Error struct {
	Domain string        // the policy domain
	Result Result        // never ResultOK
	TTL    time.Duration // how long the DNS says that this stays true; zero if it does not say
	Err    error         // in words
}

func (e *Error) Error() string { return e.Domain + ": " + string(e.Result) + ": " + e.Err.Error() }

// Unwrap returns the underlying error.
func (e *Error) Unwrap() error { return e.Err }

// ResultOf returns the result that err stands for: ResultOK for nil,
// ResultFetch for an error that is no *Error.
func ResultOf(err error) Result {
	if err == nil {
		return ResultOK
	}
	var pe *Error
	if errors.As(err, &pe) {
		return pe.Result
	}
	return ResultFetch
}
