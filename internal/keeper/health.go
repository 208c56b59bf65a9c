package keeper

import (
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// health notices that nothing succeeds any more: a dead resolver, port 443
// blocked, no roots. That is one error, not one for each domain. DNS and HTTPS are
// watched apart, since each may fail alone.
type health struct {
	mu         sync.Mutex
	dns, https upstreamHealth
}

type upstreamHealth struct {
	firstFailure time.Time // since the last success; zero: none
	lastFailure  time.Time
	failed       []failedDomain // the last failingDomains that failed, the latest at the end
	last         policy.Result
	failing      bool
}

type failedDomain struct {
	domain    string
	untrusted bool // no trusted authority signed its certificate
}

// A sign is what an attempt tells about DNS or HTTPS in general.
type sign uint8

const (
	signNone      sign = iota // nothing
	signGood                  // it works
	signBad                   // it may not work
	signUntrusted             // as signBad: an authority is missing here, or something intercepts TLS
)

// recordSign returns the sign of a TXT question. A denial is a success, and so is
// a broken record.
func recordSign(err error) sign {
	switch policy.ResultOf(err) {
	case policy.ResultDNS:
		return signBad
	case policy.ResultBusy:
		return signNone
	}
	return signGood
}

// fetchSign returns the sign of a policy fetch. A bad answer is a good sign: it came
// over a verified connection. A certificate with another name or wrong dates, and a
// refused address, are the host's own mistakes: no sign.
func fetchSign(err error) sign {
	var status *policy.StatusError
	is := func(targets ...error) bool {
		return slices.ContainsFunc(targets, func(target error) bool { return errors.Is(err, target) })
	}
	switch {
	case err == nil, errors.As(err, &status),
		is(policy.ErrInvalid, policy.ErrHTTP, policy.ErrMediaType, policy.ErrTooLarge):
		return signGood
	case is(policy.ErrCertName, policy.ErrCertExpired, policy.ErrHostAbsent, policy.ErrAddressRefused, policy.ErrBusy):
		return signNone
	case is(policy.ErrCertUntrusted):
		return signUntrusted
	}
	switch policy.ResultOf(err) {
	case policy.ResultFetch, policy.ResultWebPKI:
		return signBad
	}
	return signNone
}

// noteRecord takes the outcome of a TXT question.
func (h *health) noteRecord(domain string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dns.note(recordSign(err), domain, policy.ResultOf(err), time.Now())
}

// noteFetch takes the outcome of a fetch.
func (h *health) noteFetch(domain string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.https.note(fetchSign(err), domain, policy.ResultOf(err), time.Now())
}

func (u *upstreamHealth) note(s sign, domain string, result policy.Result, now time.Time) {
	switch s {
	case signGood:
		u.firstFailure, u.failed = time.Time{}, nil
	case signBad, signUntrusted:
		u.last, u.lastFailure = result, now
		if u.firstFailure.IsZero() {
			u.firstFailure = now
		}
		u.failed = slices.DeleteFunc(u.failed, func(f failedDomain) bool { return f.domain == domain })
		u.failed = append(u.failed, failedDomain{domain, s == signUntrusted})
		u.failed = u.failed[max(0, len(u.failed)-failingDomains):]
	}
}

// look returns whether the upstream fails, and whether this changed. A failure
// begins when attempts have failed for some minutes and still fail: a few broken
// domains before a quiet hour are not enough. Only a success ends it.
func (u *upstreamHealth) look(now time.Time) (failing, changed bool) {
	failing = !u.firstFailure.IsZero() && (u.failing || len(u.failed) >= failingDomains &&
		u.lastFailure.Sub(u.firstFailure) >= failingAfter && now.Sub(u.lastFailure) < failingAfter)
	changed = failing != u.failing
	u.failing = failing
	return failing, changed
}

// failing returns whether DNS and HTTPS fail, and whether HTTPS fails because most
// certificates are not trusted.
func (h *health) failing() (dns, https, untrusted bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, f := range h.https.failed {
		if f.untrusted {
			n++
		}
	}
	return h.dns.failing, h.https.failing, h.https.failing && 2*n > len(h.https.failed)
}

// report logs when DNS or HTTPS begins to fail or works again.
func (h *health) report(log *slog.Logger, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range []struct {
		*upstreamHealth
		what, next string
	}{
		{&h.dns, "TXT lookup", "check the resolver: [dns] servers or /etc/resolv.conf"},
		{&h.https, "policy fetch", "check port 443 to the internet, HTTPS_PROXY and the CA certificates"},
	} {
		switch failing, changed := r.look(now); {
		case changed && failing:
			log.Error("no "+r.what+" has succeeded for some minutes", "since", r.firstFailure.Format(time.RFC3339),
				"last", string(r.last), "next", r.next+"; sts-tlsmap -explain DOMAIN shows each step")
		case changed:
			log.Info("a " + r.what + " has succeeded again")
		}
	}
}
