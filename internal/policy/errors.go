package policy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

// A Result names how a discovery ended, in the terms of RFC 8460, 4.3 where it
// has one. It is a metric's label.
type Result string

// The results.
const (
	ResultOK            Result = "ok"
	ResultNoRecord      Result = "no-record"              // no TXT record, or none that begins with v=STSv1;
	ResultRecordInvalid Result = "record-invalid"         // a broken record, or more than one
	ResultDNS           Result = "dns-failure"            // the TXT lookup failed: nothing is known
	ResultFetch         Result = "sts-policy-fetch-error" // no HTTPS 200 text/plain in time
	ResultInvalid       Result = "sts-policy-invalid"     // a policy file that does not follow the grammar
	ResultWebPKI        Result = "sts-webpki-invalid"     // the policy host's certificate is not valid
	ResultBusy          Result = "busy"                   // rejected by a concurrency limit: not tried
)

// An Error is a discovery, or a step of one, that found no policy.
type Error struct {
	Domain string        // the policy domain
	Result Result        // never ResultOK
	TTL    time.Duration // how long the DNS says that this stays true; zero if it does not say
	Err    error         // what went wrong
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
	if pe, ok := errors.AsType[*Error](err); ok {
		return pe.Result
	}
	return ResultFetch
}

// ErrRecordLookup is a lookup of the TXT record that failed.
var ErrRecordLookup = errors.New("the TXT record could not be looked up")

// Why a policy could not be fetched. An *Error from Fetch wraps one of these, a
// *StatusError, or ErrInvalid.
var (
	ErrHostLookup     = errors.New("the policy host's addresses could not be looked up")
	ErrHostAbsent     = errors.New("the policy host has no address in the DNS")
	ErrAddressRefused = errors.New("the policy host's address is not a public one")
	ErrConnect        = errors.New("no connection to the policy host")
	ErrProxy          = errors.New("the HTTPS proxy cannot be used")
	ErrTLS            = errors.New("the TLS handshake with the policy host failed")
	ErrCertName       = errors.New("the policy host's certificate is for another name")
	ErrCertExpired    = errors.New("the policy host's certificate is expired or not yet valid")
	ErrCertUntrusted  = errors.New("the policy host's certificate is not from a trusted authority")
	ErrHTTP           = errors.New("the policy host's answer is not usable HTTP")
	ErrMediaType      = errors.New("the policy host's answer is not text/plain")
	ErrTooLarge       = errors.New("the policy host's answer is too large")
	ErrTimeout        = errors.New("the policy host did not answer in time")
	ErrBusy           = errors.New("too many fetches at once")
	ErrNoRoots        = errors.New("no certificate authorities to trust")
	ErrClock          = errors.New("the clock of this machine has moved, and may be wrong") // see blameClock
)

// A StatusError is an HTTP status other than 200 from the policy host.
type StatusError struct {
	Code     int
	Location string // where a redirect points, shortened and quoted; may be empty
}

func (e *StatusError) Error() string {
	s := fmt.Sprintf("the policy host answered with HTTP status %d", e.Code)
	if e.Code/100 == 3 {
		s += ", a redirect, which must not be followed"
		if e.Location != "" {
			s += " (to " + e.Location + ")"
		}
	}
	return s
}

func isAny(err error, targets ...error) bool {
	return slices.ContainsFunc(targets, func(target error) bool { return errors.Is(err, target) })
}

// resultOf is the result of an error without one.
func resultOf(err error) Result {
	switch {
	case isAny(err, ErrNoRecord):
		return ResultNoRecord
	case isAny(err, ErrManyRecords, ErrRecordInvalid):
		return ResultRecordInvalid
	case isAny(err, ErrRecordLookup):
		return ResultDNS
	case isAny(err, ErrBusy):
		return ResultBusy
	case isAny(err, ErrInvalid):
		return ResultInvalid
	case isAny(err, ErrCertName, ErrCertExpired, ErrCertUntrusted):
		return ResultWebPKI
	}
	return ResultFetch
}

// OurFault reports whether a discovery failed for a reason on this side, so that
// the failure says nothing about the domain: no place was free in time, no
// descriptor or buffer was left, the caller cancelled the discovery (the daemon
// is shutting down), no DNS server could be reached, the proxy could not be
// used, there are no certificate authorities, or the clock is in doubt and may be the
// cause.
func OurFault(err error) bool {
	dns, ok := errors.AsType[*resolver.Error](err)
	return ok && dns.Kind == resolver.KindUnreachable ||
		isAny(err, ErrBusy, ErrProxy, ErrNoRoots, ErrClock, errPanic, context.Canceled, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS)
}

// blameClock adds ErrClock to an error that this machine's clock may have caused: the
// dates of a certificate, or SERVFAIL, with which a resolver on this machine answers
// when DNSSEC signatures seem to have expired.
func (c *Client) blameClock(err error) error {
	dns, ok := errors.AsType[*resolver.Error](err)
	dated := isAny(err, ErrCertExpired) || ok && dns.Kind == resolver.KindServFail
	if dated && c.config.ClockInDoubt != nil && c.config.ClockInDoubt() {
		return fmt.Errorf("%w; %w", err, ErrClock)
	}
	return err
}

// worst picks the error to report of several attempts, nil if none failed. A
// failure that is our fault comes first: the attempt might have succeeded. Then
// comes a bad certificate, which the domain can correct and the standard has a
// name for (sts-webpki-invalid, RFC 8460, 4.3).
func worst(errs []error) error {
	weight := func(err error) int {
		switch {
		case err == nil:
			return 0
		case OurFault(err):
			return 3
		case resultOf(err) == ResultWebPKI:
			return 2
		}
		return 1
	}
	return slices.MaxFunc(errs, func(a, b error) int { return cmp.Compare(weight(a), weight(b)) })
}

// failed returns the error of a step of a fetch: the cause if the caller
// cancelled ctx, ErrTimeout if time ran out, else kind.
func failed(ctx context.Context, kind error, doing string, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("%s: given up: %w", doing, context.Cause(ctx))
	case ctx.Err() != nil, isAny(err, os.ErrDeadlineExceeded, context.DeadlineExceeded):
		return fmt.Errorf("%w: %s", ErrTimeout, doing)
	}
	return fmt.Errorf("%w: %s: %w", kind, doing, printable{err})
}

// hints are tried in order.
var hints = []struct {
	err  error
	hint string
}{
	{ErrClock, "See whether the clock of this machine is right: sts-tlsmap -check. Mail to new domains like this one waits, for a day at most."},
	{ErrRecordLookup, "See whether the resolver answers: dig _mta-sts.DOMAIN TXT. If only this domain fails, its DNS or its DNSSEC is broken."},
	{ErrManyRecords, "The domain must publish exactly one TXT record that begins with v=STSv1; at _mta-sts."},
	{ErrRecordInvalid, "The domain must correct its TXT record at _mta-sts, for example: v=STSv1; id=20260101T000000."},
	{ErrInvalid, "The domain must correct its policy file."},
	{ErrBusy, "It is tried again soon. If it stays like this, one address or network serves very many policies, slowly, or [lookup] concurrency is too low."},
	{ErrHostLookup, "See whether the resolver answers: dig mta-sts.DOMAIN A. If only this domain fails, its DNS or its DNSSEC is broken."},
	{ErrHostAbsent, "The domain publishes the TXT record but no host mta-sts.DOMAIN."},
	{ErrAddressRefused, "Policy hosts on private and other special addresses are refused. If this one is your own, set allow_private in [fetch]."},
	{ErrProxy, "See HTTPS_PROXY and NO_PROXY in the daemon's environment, and whether the proxy runs."},
	{ErrCertName, "The domain must install a certificate for mta-sts.DOMAIN. If all domains fail like this, something on the way intercepts TLS."},
	{ErrCertExpired, "The domain must renew the certificate. If all domains fail like this, see whether the clock of this machine is right."},
	{ErrCertUntrusted, "The domain must use a public authority and send its intermediate certificates. If all domains fail like this, install ca-certificates, or set ca_file in [fetch] to the roots of a proxy that intercepts TLS."},
	{ErrTLS, "The policy host must offer TLS 1.2 or later for the name mta-sts.DOMAIN. Try: openssl s_client -connect mta-sts.DOMAIN:443 -servername mta-sts.DOMAIN"},
	{ErrTimeout, "Try: curl -v https://mta-sts.DOMAIN/.well-known/mta-sts.txt. If all domains fail like this, see whether a firewall blocks port 443."},
	{ErrConnect, "Try: curl -v https://mta-sts.DOMAIN/.well-known/mta-sts.txt. If all domains fail like this, see whether a firewall blocks port 443, " +
		"or the proxy refuses CONNECT to addresses."},
}

// Hint says what an administrator can do about an error of a discovery, or
// nothing. It has DOMAIN for the policy domain.
func Hint(err error) string {
	for _, h := range hints {
		if errors.Is(err, h.err) {
			return h.hint
		}
	}
	if ResultOf(err) == ResultFetch {
		return "The domain must serve https://mta-sts.DOMAIN/.well-known/mta-sts.txt itself, as text/plain and without a redirect."
	}
	return ""
}

// How much of a text from the network is kept, in bytes.
const (
	MaxReason = 400 // of a reason, which is stored for many domains
	maxQuoted = 80  // in quotes in an error
	maxWords  = 300 // of the text of another package's error
)

// Reason is what went wrong, for those who know the domain and the result.
func Reason(err error) string {
	if pe, ok := errors.AsType[*Error](err); ok && pe.Err != nil {
		err = pe.Err
	}
	return text.Cut(err.Error(), MaxReason)
}

// A printable is an error whose text may hold a stranger's: its own text is
// short and printable.
type printable struct{ err error }

func (p printable) Error() string { return text.Printable(text.Cut(p.err.Error(), maxWords)) }
func (p printable) Unwrap() error { return p.err }
