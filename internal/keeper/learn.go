package keeper

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// What fills the cache before the mail does.

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
}

// errProbeDomain keeps a policy from the name that must have none.
var errProbeDomain = errors.New(ProbeDomain + " is the daemon's own name and has no policy")

// takenSettles is when the refresher is to fetch a policy that was taken over.
// The taking over has ended by then: until it has, the refresher would leave
// the domain alone for a minute.
const takenSettles = time.Second

// Learn discovers a domain's policy, at a pace of its own, unless one is held
// or it is known that there is none. It waits until that is done or ctx ends.
func (k *Keeper) Learn(ctx context.Context, domain string) (Learned, error) {
	if domain == ProbeDomain {
		return Learned{}, errProbeDomain
	}
	if r, held := k.look(domain, time.Now()); held == holdLive {
		return Learned{Domain: domain, Result: policy.ResultOK, Mode: r.Mode.String(), Held: true}, nil
	}
	if n, ok := k.Negative(domain); ok {
		return Learned{Domain: domain, Result: n.Result, Err: n.Err}, nil
	}
	if err := k.learning.Wait(ctx); err != nil {
		return Learned{}, err
	}
	done, err := k.fly(ctx, domain, k.discover)
	if err != nil {
		return Learned{}, err
	}
	return Learned{Domain: domain, Result: done.Result, Mode: done.Mode, Err: done.Err}, nil
}

// Take takes over a policy that another node has fetched. It counts until the
// end that its own fetch gave it, and no longer: only a fetch of ours extends
// it (RFC 8461, 3.3), which is due at once. It is taken only where it is newer
// than what is held, and where what is held can be read.
func (k *Keeper) Take(ctx context.Context, f Foreign) (Learned, error) {
	p, err := f.check(time.Now())
	if err != nil {
		return Learned{}, err
	}
	fl := k.flights.alone(ctx, f.Domain)
	if fl == nil {
		return Learned{}, ctx.Err()
	}
	defer k.flights.end(f.Domain, fl)
	now := time.Now()
	old, err := k.held(f.Domain, now)
	switch {
	case err == nil && isLive(old, now) && !old.Fetched.Before(f.Fetched.Truncate(time.Second)):
		return Learned{Domain: f.Domain, Result: policy.ResultOK, Mode: old.Mode.String(), Held: true}, nil
	case err != nil && !errors.Is(err, cache.ErrNotFound):
		return Learned{}, fmt.Errorf("what is held of %s cannot be read, and is to be fetched: %w", f.Domain, err)
	}
	if rec, err := policy.ParseRecord("v=STSv1; id=" + f.ID); err != nil || rec.ID != f.ID {
		f.ID = "" // as for a policy whose record was not seen
	}
	soon := now.Add(takenSettles)
	r := &cache.Record{
		Domain: f.Domain, ID: f.ID, Mode: p.Mode, Text: f.Text, Ready: k.o.Prepare(p),
		Fetched: f.Fetched, Expires: f.Expires,
		// It counts as used, since it was learned for the mail that will come.
		Used: now, CheckAt: soon, FetchAt: soon, FetchUnusedAt: soon,
	}
	k.timing().schedule(r, now, false)
	done := &pending{domain: r.Domain, record: r, entry: k.entryOf(r)}
	if err := k.writer.write(done); err != nil {
		return Learned{}, err
	}
	fl.tried, fl.entry = true, done.entry
	fl.outcome = Refreshed{Domain: r.Domain, Result: policy.ResultOK, Mode: r.Mode.String(), ID: r.ID, Changed: true}
	return Learned{Domain: r.Domain, Result: policy.ResultOK, Mode: r.Mode.String(), Taken: true}, nil
}

// check says whether the policy can be taken over at now, and parses it.
func (f *Foreign) check(now time.Time) (*policy.Policy, error) {
	p, err := policy.Parse(f.Text)
	switch {
	case f.Domain == ProbeDomain:
		return nil, errProbeDomain
	case err != nil:
		return nil, fmt.Errorf("the policy of %s is no policy: %w", f.Domain, err)
	case f.Fetched.After(now.Add(ClockSlack)):
		return nil, fmt.Errorf("the policy of %s was fetched in the future (%s): see to the clocks", f.Domain, f.Fetched.Format(time.RFC3339))
	case f.Expires.After(f.Fetched.Add(p.MaxAge)):
		return nil, fmt.Errorf("the policy of %s would last longer than its max_age", f.Domain)
	case !f.Expires.After(now):
		return nil, fmt.Errorf("the policy of %s has expired", f.Domain)
	}
	return p, nil
}
