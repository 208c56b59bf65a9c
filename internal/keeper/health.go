package keeper

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// health notices that nothing succeeds any more: a dead resolver, port 443
// blocked, no roots. That is one error, not one for each domain. The DNS and
// HTTPS are watched apart, since each may fail alone.
type health struct {
	mu         sync.Mutex
	dns, https vital
}

// A vital is one of the things that must work.
type vital struct {
	firstFailure time.Time // since the last success; zero: none
	lastFailure  time.Time
	failed       []failed // the domains that failed last, troubleDomains at most, the latest at the end
	last         policy.Result
	trouble      bool
}

// failed is a domain that failed.
type failed struct {
	domain    string
	untrusted bool // its certificate was from no authority that is trusted
}

func (v *vital) good() { v.firstFailure, v.failed = time.Time{}, nil }

func (v *vital) bad(f failed, result policy.Result, now time.Time) {
	v.last, v.lastFailure = result, now
	if v.firstFailure.IsZero() {
		v.firstFailure = now
	}
	v.failed = slices.DeleteFunc(v.failed, func(o failed) bool { return o.domain == f.domain })
	if len(v.failed) == troubleDomains {
		v.failed = slices.Delete(v.failed, 0, 1)
	}
	v.failed = append(v.failed, f)
}

// look returns whether there is trouble, and whether that is news. It begins
// when failures have gone on for a while and go on now: a few domains that are
// broken, tried once before a quiet hour, are no sign. It ends with a success,
// and not because nothing is tried any more.
func (v *vital) look(now time.Time) (trouble, changed bool) {
	switch {
	case v.firstFailure.IsZero():
		trouble = false
	case v.trouble:
		trouble = true
	default:
		trouble = len(v.failed) >= troubleDomains &&
			v.lastFailure.Sub(v.firstFailure) >= troubleAfter && now.Sub(v.lastFailure) < troubleAfter
	}
	changed = trouble != v.trouble
	v.trouble = trouble
	return trouble, changed
}

// mostUntrusted says whether it is certificates that fail, for most domains.
func (v *vital) mostUntrusted() bool {
	n := 0
	for _, f := range v.failed {
		if f.untrusted {
			n++
		}
	}
	return 2*n > len(v.failed)
}

// A sign is what an attempt says of the thing that was needed for it.
type sign uint8

const (
	signNone      sign = iota // nothing
	signGood                  // it works
	signBad                   // it may not work
	signUntrusted             // likewise, and an authority is missing here, or something intercepts TLS
)

// recordSign is what a TXT lookup says of the DNS. A proof that there is no
// record is a success, and so is a record that is no good.
func recordSign(err error) sign {
	if policy.ResultOf(err) == policy.ResultDNS {
		return signBad
	}
	return signGood
}

// fetchSign is what a fetch says of the way to policy hosts. An answer that is
// no good came over a connection that was: its certificate was verified before.
// A certificate for another name, or an old one, is the host's own mistake, as
// an address is that nobody may connect to: nothing follows from it.
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

func (v *vital) take(s sign, domain string, result policy.Result, now time.Time) {
	switch s {
	case signGood:
		v.good()
	case signBad, signUntrusted:
		v.bad(failed{domain, s == signUntrusted}, result, now)
	}
}

// noteRecord takes what came of a TXT lookup.
func (h *health) noteRecord(domain string, err error, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dns.take(recordSign(err), domain, policy.ResultOf(err), now)
}

// noteFetch takes what came of a fetch.
func (h *health) noteFetch(domain string, err error, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.https.take(fetchSign(err), domain, policy.ResultOf(err), now)
}

// note takes what came of a whole discovery.
func (h *health) note(domain string, err error, now time.Time) {
	if policy.ResultOf(err) != policy.ResultBusy {
		h.noteRecord(domain, err, now)
	}
	h.noteFetch(domain, err, now)
}

// troubles returns which of the two does not work, and whether the HTTPS fails
// since no certificate is trusted.
func (h *health) troubles() (dns, https, untrusted bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.dns.trouble, h.https.trouble, h.https.trouble && h.https.mostUntrusted()
}

// upkeep does what is to be done now and then.
func (k *Keeper) upkeep(ctx context.Context) {
	tick := time.NewTicker(upkeepEvery)
	defer tick.Stop()
	deletion := newDeletion(time.Now())
	late := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		k.used.rotate(now)
		k.reportHealth(now)
		late = k.reportLateness(late)
		if deletion.due(now, now.Round(0)) {
			k.purge(ctx, now)
		}
	}
}

// dead says whether nothing succeeds any more, in the DNS or over HTTPS.
func (h *health) dead() bool {
	dns, https, _ := h.troubles()
	return dns || https
}

func (k *Keeper) reportHealth(now time.Time) {
	h := &k.health
	h.mu.Lock()
	defer h.mu.Unlock()
	k.reportVital(&h.dns, now, "no TXT lookup has succeeded for some minutes", "check the resolver: [dns] servers or /etc/resolv.conf")
	k.reportVital(&h.https, now, "no policy fetch has succeeded for some minutes", "check port 443 to the internet, HTTPS_PROXY and the CA certificates")
}

func (k *Keeper) reportVital(v *vital, now time.Time, words, next string) {
	switch trouble, changed := v.look(now); {
	case changed && trouble:
		k.o.Log.Error(words, "since", v.firstFailure.Format(time.RFC3339), "last", string(v.last),
			"next", next+"; sts-tlsmap -explain DOMAIN shows each step")
	case changed:
		k.o.Log.Info("it works again", "after", words)
	}
}

func (k *Keeper) reportLateness(was bool) bool {
	seconds := max(k.check.late.Load(), k.fetch.late.Load())
	late := seconds >= int64(LateAfter/time.Second)
	if late && !was {
		k.o.Log.Error("the refresher is late", "by", time.Duration(seconds)*time.Second,
			"next", "raise [refresh] fetch_rate, check_rate or concurrency if it stays so")
	}
	return late
}
