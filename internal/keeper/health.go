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
	since, latest time.Time // the first and the last failure after the last success
	failed        []failure // the last ones of failingDomains domains
	failing       bool
	successes     uint64
}

type failure struct {
	domain    string
	result    policy.Result
	untrusted bool // the certificate was from no authority that is trusted
}

// A sign is what an attempt tells about DNS or HTTPS in general.
type sign uint8

const (
	signNone sign = iota // nothing
	signGood             // it works
	signBad              // it may not work
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
	is := func(targets ...error) bool {
		return slices.ContainsFunc(targets, func(target error) bool { return errors.Is(err, target) })
	}
	result := policy.ResultOf(err)
	switch {
	case err == nil, errors.As(err, new(*policy.StatusError)),
		is(policy.ErrInvalid, policy.ErrHTTP, policy.ErrMediaType, policy.ErrTooLarge):
		return signGood
	case is(policy.ErrCertName, policy.ErrCertExpired, policy.ErrHostAbsent, policy.ErrAddressRefused, policy.ErrBusy),
		result != policy.ResultFetch && result != policy.ResultWebPKI:
		return signNone
	}
	return signBad
}

// noteRecord takes the outcome of a TXT question.
func (h *health) noteRecord(domain string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dns.note(recordSign(err), domain, err, time.Now())
}

// fetches returns how many fetches have succeeded, or failed over a verified connection.
func (h *health) fetches() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.https.successes
}

// noteFetch takes the outcome of a fetch.
func (h *health) noteFetch(domain string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.https.note(fetchSign(err), domain, err, time.Now())
}

func (u *upstreamHealth) note(s sign, domain string, err error, now time.Time) {
	switch {
	case s == signGood:
		u.since, u.failed = time.Time{}, nil
		u.successes++
	case s == signBad:
		if u.latest = now; u.since.IsZero() {
			u.since = now
		}
		u.failed = slices.DeleteFunc(u.failed, func(f failure) bool { return f.domain == domain })
		u.failed = append(u.failed, failure{domain, policy.ResultOf(err), errors.Is(err, policy.ErrCertUntrusted)})
		u.failed = u.failed[max(0, len(u.failed)-failingDomains):]
	}
}

// look returns whether the upstream fails, and whether this changed. A failure
// begins when attempts have failed for some minutes and still fail: a few broken
// domains before a quiet hour are not enough. Only a success ends it.
func (u *upstreamHealth) look(now time.Time) (failing, changed bool) {
	failing = !u.since.IsZero() && (u.failing || len(u.failed) >= failingDomains &&
		u.latest.Sub(u.since) >= failingAfter && now.Sub(u.latest) < failingAfter)
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
	h.dns.report(log, now, "TXT lookup", "check the resolver: [dns] servers or /etc/resolv.conf")
	h.https.report(log, now, "policy fetch", "check port 443 to the internet, HTTPS_PROXY and the CA certificates")
}

func (u *upstreamHealth) report(log *slog.Logger, now time.Time, what, next string) {
	switch failing, changed := u.look(now); {
	case changed && failing:
		log.Error("no "+what+" has succeeded for some minutes", "since", u.since.Format(time.RFC3339),
			"last", string(u.failed[len(u.failed)-1].result), "next", next+"; sts-tlsmap -explain DOMAIN shows each step")
	case changed:
		log.Info("a " + what + " has succeeded again")
	}
}
