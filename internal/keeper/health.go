package keeper

import (
	"context"
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
	firstFailure time.Time           // since the last success; zero: none
	domains      map[string]struct{} // that failed since, troubleDomains at most
	last         policy.Result
	trouble      bool
}

func (v *vital) good() { v.firstFailure, v.domains = time.Time{}, nil }

func (v *vital) bad(domain string, result policy.Result, now time.Time) {
	v.last = result
	if v.firstFailure.IsZero() {
		v.firstFailure, v.domains = now, make(map[string]struct{})
	}
	if len(v.domains) < troubleDomains {
		v.domains[domain] = struct{}{}
	}
}

// look returns whether there is trouble, and whether that is news.
func (v *vital) look(now time.Time) (trouble, changed bool) {
	trouble = len(v.domains) >= troubleDomains && now.Sub(v.firstFailure) >= troubleAfter
	changed = trouble != v.trouble
	v.trouble = trouble
	return trouble, changed
}

// noteRecord takes the result of a TXT lookup. A proof that there is no
// record is a success: the DNS works.
func (h *health) noteRecord(domain string, result policy.Result, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if result == policy.ResultDNS {
		h.dns.bad(domain, result, now)
	} else {
		h.dns.good()
	}
}

// noteFetch takes the result of a fetch. A policy that is no good came over a
// connection that was.
func (h *health) noteFetch(domain string, result policy.Result, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch result {
	case policy.ResultOK, policy.ResultInvalid:
		h.https.good()
	case policy.ResultFetch, policy.ResultWebPKI:
		h.https.bad(domain, result, now)
	}
}

// note takes the result of a whole discovery.
func (h *health) note(domain string, result policy.Result, now time.Time) {
	if result != policy.ResultBusy {
		h.noteRecord(domain, result, now)
	}
	h.noteFetch(domain, result, now)
}

// troubles returns which of the two does not work, and whether the HTTPS fails
// since no certificate is trusted.
func (h *health) troubles() (dns, https, untrusted bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.dns.trouble, h.https.trouble, h.https.trouble && h.https.last == policy.ResultWebPKI
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
	late := seconds >= int64(lateWarning/time.Second)
	if late && !was {
		k.o.Log.Error("the refresher is late", "by", time.Duration(seconds)*time.Second,
			"next", "raise [refresh] fetch_rate, check_rate or concurrency if it stays so")
	}
	return late
}
