package policy

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// ErrRecordLookup is a lookup of the TXT record that got no answer.
var ErrRecordLookup = errors.New("the TXT record could not be looked up")

// Why a policy could not be fetched. An *Error from Fetch is one of these, or
// a *StatusError, or ErrInvalid, with more in words.
var (
	ErrHostLookup     = errors.New("the policy host's addresses could not be looked up")
	ErrHostAbsent     = errors.New("the policy host has no address in the DNS")
	ErrAddressRefused = errors.New("the policy host's address is not a public one")
	ErrConnect        = errors.New("no connection to the policy host")
	ErrProxy          = errors.New("no way through the HTTPS proxy")
	ErrTLS            = errors.New("the TLS handshake with the policy host failed")
	ErrCertName       = errors.New("the policy host's certificate is for another name")
	ErrCertExpired    = errors.New("the policy host's certificate is expired or not yet valid")
	ErrCertUntrusted  = errors.New("the policy host's certificate is not from a trusted authority")
	ErrHTTP           = errors.New("the policy host's answer is not usable HTTP")
	ErrMediaType      = errors.New("the policy host's answer is not text/plain")
	ErrTooLarge       = errors.New("the policy host's answer is too large")
	ErrTimeout        = errors.New("the policy host did not answer in time")
	ErrBusy           = errors.New("too many fetches at once")
	ErrNoRoots        = errors.New("there are no certificate authorities to trust")
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

// resultOfFetch is the standard's term for an error of a fetch.
func resultOfFetch(err error) Result {
	for _, kind := range []struct {
		err    error
		result Result
	}{
		{ErrBusy, ResultBusy},
		{ErrInvalid, ResultInvalid},
		{ErrCertName, ResultWebPKI},
		{ErrCertExpired, ResultWebPKI},
		{ErrCertUntrusted, ResultWebPKI},
	} {
		if errors.Is(err, kind.err) {
			return kind.result
		}
	}
	return ResultFetch
}

// OurFault reports whether a discovery failed for a reason on this side, so that
// the failure says nothing about the domain: no place was free in time, no
// descriptor or buffer was left, the caller cancelled the discovery (the daemon
// is shutting down), no DNS server could be reached, the proxy could not be
// used, or there are no certificate authorities.
func OurFault(err error) bool {
	for _, ours := range []error{
		ErrBusy, ErrProxy, ErrNoRoots, context.Canceled,
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS,
	} {
		if errors.Is(err, ours) {
			return true
		}
	}
	var dns *resolver.Error
	return errors.As(err, &dns) && dns.Kind == resolver.KindUnreachable
}

// hints says what to do about an error; the first that fits counts.
var hints = []struct {
	err  error
	hint string
}{
	{ErrRecordLookup, "See whether the resolver answers: dig _mta-sts.DOMAIN TXT. If only this domain fails, its DNS or its DNSSEC is broken."},
	{ErrManyRecords, "The domain must publish exactly one TXT record that begins with v=STSv1; at _mta-sts. Nothing to do here."},
	{ErrRecordInvalid, "The domain must correct its TXT record at _mta-sts, for example: v=STSv1; id=20260101T000000. Nothing to do here."},
	{ErrInvalid, "The domain must correct its policy file. Nothing to do here."},
	{ErrBusy, "It is tried again soon. If it stays like this, one address or network serves very many policies, slowly, or [lookup] concurrency is too low."},
	{ErrHostLookup, "See whether the resolver answers: dig mta-sts.DOMAIN A. If only this domain fails, its DNS or its DNSSEC is broken."},
	{ErrHostAbsent, "The domain publishes the TXT record but no host mta-sts.DOMAIN. Nothing to do here."},
	{ErrAddressRefused, "Policy hosts on private and other special addresses are refused. If this one is your own, set allow_private in [fetch]."},
	{ErrProxy, "See HTTPS_PROXY and NO_PROXY in the daemon's environment, and whether the proxy allows CONNECT to addresses at port 443."},
	{ErrCertName, "The domain must install a certificate for mta-sts.DOMAIN. If all domains fail like this, something on the way intercepts TLS."},
	{ErrCertExpired, "The domain must renew the certificate. If all domains fail like this, see whether the clock of this machine is right."},
	{ErrCertUntrusted, "The domain must use a public authority. If all domains fail like this, install ca-certificates, or set ca_file in [fetch] to the roots of a proxy that intercepts TLS."},
	{ErrTLS, "The policy host must offer TLS 1.2 or later for the name mta-sts.DOMAIN. Try: openssl s_client -connect mta-sts.DOMAIN:443 -servername mta-sts.DOMAIN"},
	{ErrTimeout, "Try: curl -v https://mta-sts.DOMAIN/.well-known/mta-sts.txt. If all domains fail like this, see whether a firewall blocks port 443."},
	{ErrConnect, "Try: curl -v https://mta-sts.DOMAIN/.well-known/mta-sts.txt. If all domains fail like this, see whether a firewall blocks port 443."},
	{ErrMediaType, "The policy host must send Content-Type: text/plain. Nothing to do here."},
	{ErrTooLarge, "Try: curl -v https://mta-sts.DOMAIN/.well-known/mta-sts.txt. Nothing to do here."},
	{ErrHTTP, "Try: curl -v https://mta-sts.DOMAIN/.well-known/mta-sts.txt. Nothing to do here."},
}

// Hint says in words what an administrator can do about an error of a
// discovery. It is empty if there is nothing to say.
func Hint(err error) string {
	for _, h := range hints {
		if errors.Is(err, h.err) {
			return h.hint
		}
	}
	var status *StatusError
	switch {
	case !errors.As(err, &status):
		return ""
	case status.Code/100 == 3:
		return "The domain must serve the policy at mta-sts.DOMAIN itself, without a redirect. Nothing to do here."
	}
	return "The domain must serve https://mta-sts.DOMAIN/.well-known/mta-sts.txt. Nothing to do here."
}

// MaxReason bounds a reason, in bytes: it is remembered of many domains.
const MaxReason = 400

// Reason is what went wrong, for those who know the domain and the result:
// these are left out.
func Reason(err error) string {
	var pe *Error
	if errors.As(err, &pe) && pe.Err != nil {
		err = pe.Err
	}
	s := err.Error()
	if len(s) > MaxReason {
		s = strings.ToValidUTF8(s[:MaxReason], "") + "..."
	}
	return s
}

// How much of a stranger's text goes into an error, in bytes.
const (
	maxQuoted = 80
	maxWords  = 300
)

// quote makes a stranger's text fit for an error: short, printable ASCII.
func quote(s string) string {
	if len(s) > maxQuoted {
		return strconv.QuoteToASCII(s[:maxQuoted]) + "..."
	}
	return strconv.QuoteToASCII(s)
}

// A printable is an error whose text may hold a stranger's: its own text is
// short and on one line.
type printable struct{ err error }

func (p printable) Error() string { return words(p.err) }
func (p printable) Unwrap() error { return p.err }

// words is the text of an error that may hold a stranger's: short, printable
// ASCII, on one line.
func words(err error) string {
	s := err.Error()
	if len(s) > maxWords {
		s = s[:maxWords] + "..."
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}
