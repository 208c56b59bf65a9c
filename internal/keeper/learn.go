package keeper

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// This file: what fills the cache before the mail does.

// Learned is what came of learning a domain.
type Learned struct {
	Domain string        `json:"domain"`
	Result policy.Result `json:"result,omitempty"`
	Mode   string        `json:"mode,omitempty"`     // of the policy now held
	Held   bool          `json:"held,omitempty"`     // it was held already; nothing was asked
	Taken  bool          `json:"imported,omitempty"` // it was another node's, whose expiry it keeps
	Err    string        `json:"error,omitempty"`
}

// A Foreign is a policy as another node holds it.
type Foreign struct {
	Domain  string
	ID      string
	Text    []byte
	Fetched time.Time
	Expires time.Time

	Relay   string // of the fleet, that says so
	Compare bool   // with a fetch of our own, soon

	Policy *policy.Policy // of Text; nil: check parses it
}

// errProbeDomain rejects a policy for the watchdog's name, which must have none.
var errProbeDomain = errors.New(ProbeDomain + " is the daemon's own name and has no policy")

// Learn discovers a domain's policy, at its own limited rate, unless a policy or a
// negative result is held. It waits until the discovery ends or ctx ends.
func (k *Keeper) Learn(ctx context.Context, domain string) (Learned, error) {
	if domain == ProbeDomain {
		return Learned{}, errProbeDomain
	}
	if r, _ := k.look(domain); r != nil {
		return Learned{Domain: domain, Result: policy.ResultOK, Mode: r.Mode.String(), Held: true}, nil
	}
	if n, ok := k.Negative(domain); ok {
		return Learned{Domain: domain, Result: n.Result, Err: n.Err}, nil
	}
	if err := k.learnRate.Wait(ctx); err != nil {
		return Learned{}, err
	}
	fl, err := k.runOrJoin(ctx, domain, k.discover)
	if err != nil {
		return Learned{}, err
	}
	return Learned{Domain: domain, Result: fl.outcome.Result, Mode: fl.outcome.Mode, Err: fl.outcome.Err}, nil
}

// Take takes over a policy that another node has fetched. It keeps its own expiry,
// and our own fetch is due at once (RFC 8461, 3.3). Another node may add or keep
// protection, never remove it: only an enforced policy is taken, and it replaces a
// live one only if it allows no other mx and lives as long; otherwise our own fetch
// becomes due. If no policy is held, our own TXT record must have the same id, or our
// discovery fail.
func (k *Keeper) Take(ctx context.Context, f Foreign) (Learned, error) {
	if err := f.check(k.o.Now()); err != nil {
		return Learned{}, err
	}
	held, unreadable := k.look(f.Domain)
	switch {
	case unreadable:
		return Learned{}, fmt.Errorf("the stored policy of %s cannot be read, and is to be fetched", f.Domain)
	case held == nil && f.Policy.Mode != policy.ModeEnforce:
		return k.Learn(ctx, f.Domain)
	case held == nil:
		if err := k.learnRate.Wait(ctx); err != nil {
			return Learned{}, err
		}
		record, _, err := k.o.Network.Record(ctx, f.Domain)
		if err == nil && record.ID == f.ID || policy.ResultOf(err) == policy.ResultDNS {
			break
		}
		fl, err := k.runOrJoin(ctx, f.Domain, k.discover)
		if err != nil {
			return Learned{}, err
		}
		if fl.entry != nil {
			return Learned{Domain: f.Domain, Result: policy.ResultOK, Mode: fl.outcome.Mode}, nil
		}
	}
	fl := k.flights.beginExclusive(ctx, f.Domain)
	if fl == nil {
		return Learned{}, ctx.Err()
	}
	defer k.flights.end(fl)
	r := &cache.Record{Domain: f.Domain}
	if held, _ = k.look(f.Domain); held != nil {
		newer := held.Fetched.Before(f.Fetched.Truncate(time.Second))
		if !newer || !renews(held, &f) {
			if newer {
				k.wg.Go(func() { k.fetchNow(k.life, f.Domain, "", true) })
			}
			return Learned{Domain: f.Domain, Result: policy.ResultOK, Mode: held.Mode.String(), Held: true}, nil
		}
		r.Regular = held.Regular
	}
	now := k.o.Now()
	k.put(r, &f)
	r.Used = now                     // it was learned for the mail that will come
	fetchAt(r, now.Add(time.Second)) // when this flight has ended
	k.finishTaken(fl, r, false)
	return Learned{Domain: r.Domain, Result: policy.ResultOK, Mode: r.Mode.String(), Taken: true}, nil
}

// put puts the policy of another node into a record.
func (k *Keeper) put(r *cache.Record, f *Foreign) {
	r.ID, r.PendingID = f.ID, ""
	if rec, err := policy.ParseRecord("v=STSv1; id=" + f.ID); err != nil || rec.ID != f.ID {
		r.ID = "" // as for a policy whose record was not seen
	}
	r.Mode, r.Text, r.Match = f.Policy.Mode, f.Text, k.o.MatchList(f.Policy)
	r.Fetched, r.Expires = f.Fetched, f.Expires
	r.Failures, r.FailedAt, r.LastError, r.Slow = 0, time.Time{}, "", false
}

// finishTaken stores a record with the policy of another node; lazily: nobody waits for it.
func (k *Keeper) finishTaken(fl *flight, r *cache.Record, lazily bool) {
	schedule(r, k.o.Now(), k.o.UnusedAfter)
	k.store(r, lazily)
	fl.tried = true
	fl.entry = k.entryOf(r)
	fl.outcome = Refreshed{Domain: r.Domain, Result: policy.ResultOK, Mode: r.Mode.String(), ID: r.ID, Changed: true}
}

// renews says whether a policy is at least as strict as the enforced one that is held: with
// the same or fewer mx patterns, and not for a shorter life.
func renews(held *cache.Record, f *Foreign) bool {
	old, err := policy.Parse(held.Text)
	return err == nil && held.Mode == policy.ModeEnforce && f.Policy.Mode == policy.ModeEnforce && !f.Expires.Before(held.Expires) &&
		!slices.ContainsFunc(f.Policy.MX, func(mx string) bool { return !slices.Contains(old.MX, mx) })
}

// check says whether the policy can be taken over at now, and parses it.
func (f *Foreign) check(now time.Time) (err error) {
	if f.Policy == nil {
		f.Policy, err = policy.Parse(f.Text)
	}
	switch {
	case f.Domain == ProbeDomain:
		return errProbeDomain
	case err != nil:
		return fmt.Errorf("the policy of %s does not parse: %w", f.Domain, err)
	case f.Fetched.After(now.Add(clockSlack)):
		return fmt.Errorf("the policy of %s was fetched in the future (%s): check the clocks", f.Domain, f.Fetched.Format(time.RFC3339))
	case f.Expires.After(f.Fetched.Add(f.Policy.MaxAge)):
		return fmt.Errorf("the policy of %s would last longer than its max_age", f.Domain)
	case !f.Expires.After(now):
		return fmt.Errorf("the policy of %s has expired", f.Domain)
	}
	return nil
}
