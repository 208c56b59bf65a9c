package keeper

import (
	"context"
	"errors"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// await starts do, the discovery of a domain, and waits for it, at most for the lookup
// time-out; the discovery then goes on. unreadable means that a policy may be
// stored but cannot be read: mail waits until a fetch succeeds.
func (k *Keeper) await(ctx context.Context, domain string, unreadable bool, h *Held, do func(*flight)) error {
	waiting, cancel := context.WithTimeout(ctx, k.o.LookupTimeout)
	defer cancel()
	fl, err := k.runOrJoin(waiting, domain, do)
	switch {
	case err == nil && fl.entry != nil:
		h.set(&fl.entry.hit, fl.entry)
		return nil
	case err == nil:
		err = fl.err
	case errors.Is(err, ErrBrokenOff), ctx.Err() != nil:
		err = ErrBrokenOff
	default:
		k.counters.add(&k.counters.DiscoveryTimeouts, 1)
		err = ErrNoPolicy // the domain's DNS or policy host is slow (RFC 8461, 3.3)
		if fl.waited.Load() {
			err = ErrOurFault
		}
	}
	if unreadable {
		return ErrUnreadable
	}
	return err
}

// current reads the newest record of a domain, with a match list of today's rule.
// A text that this version does not understand counts as damaged.
func (k *Keeper) current(domain string) (*cache.Record, error) {
	r, err := k.newest(domain)
	if err == nil && !k.o.MatchListCurrent(r.Match) {
		var p *policy.Policy
		if p, err = policy.Parse(r.Text); err == nil {
			r.Match = k.o.MatchList(p)
		}
	}
	if err != nil {
		return nil, err
	}
	return &r, nil
}

// look returns the live policy held for a domain, or nil. unreadable means that
// a policy may be held but cannot be read.
func (k *Keeper) look(domain string) (r *cache.Record, unreadable bool) {
	r, err := k.current(domain)
	if err != nil {
		return nil, !errors.Is(err, cache.ErrNotFound)
	}
	if k.o.Now().Unix() >= liveUntil(r.Fetched.Unix(), r.Expires.Unix()) {
		return nil, false
	}
	return r, false
}

// discover is a discovery from its first packet to the disk (RFC 8461, 3.3).
func (k *Keeper) discover(fl *flight) {
	defer k.flights.end(fl)
	defer k.recoverPanic("discovery", fl.domain)
	fl.tried = true
	// Another discovery may have ended since the lookup looked. A failure of
	// this one must not hide what that one has found.
	held, unreadable := k.look(fl.domain)
	if held != nil {
		fl.entry = k.entryOf(held)
		fl.outcome = Refreshed{Domain: fl.domain, Result: policy.ResultOK, Mode: held.Mode.String(), ID: held.ID}
		return
	}
	if k.o.Fleet != nil && !unreadable {
		fl.outside = k.findBeside(fl.domain)
	}
	err := k.fetch(fl, nil, k.o.LookupTimeout, false)
	if err == nil {
		return
	} else if f := fl.found(); f != nil {
		if k.adoptFirst(fl, f); errors.Is(err, errSilent) {
			k.enqueueAttention(fl.domain) // the question is asked again, without haste
		}
	} else if k.remember(fl.domain, unreadable, err); unreadable {
		fl.err = ErrUnreadable
	}
}

// checkRecord asks for a held policy's TXT record, and tells the observers. A
// record that is gone or broken changes nothing while the policy lives
// (RFC 8461, 3.3).
func (k *Keeper) checkRecord(ctx context.Context, r *cache.Record) (policy.Record, error) {
	begun := time.Now()
	record, _, err := k.o.Network.Record(ctx, r.Domain)
	if ctx.Err() == nil {
		k.health.noteRecord(r.Domain, err)
		k.o.Observe(Event{Step: StepCheck, Domain: r.Domain, Result: policy.ResultOf(err), Err: err, Took: time.Since(begun), Mode: r.Mode})
	}
	return record, err
}
