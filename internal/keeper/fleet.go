package keeper

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// This file: what comes from other relays. It may add or keep protection, never remove it.

// A Fleet brings what other relays know; *fleet.Fleet is one. Each method ends within
// 100 ms. Without an answer the keeper goes on as one without a fleet.
type Fleet interface {
	// Find returns the policy of a domain that some relay fetched: verified, alive, and not
	// to be forgotten.
	Find(ctx context.Context, domain string) (*Foreign, bool)
	// Announce tells the others of a policy that this relay fetched; it does not wait. again
	// asks for another fetch within the hour, to confirm a difference.
	Announce(*Foreign) (again bool)
	// Lease says whether this relay, of all, is to do something for a domain. release lets
	// another one. A second try to fetch succeeds.
	Lease(ctx context.Context, kind Lease, domain string, long time.Duration) (release func(), ours bool)
	// Forgot says that -forget dropped what this relay held: an older policy is not found
	// again within a day.
	Forgot(domain string)
}

// A Lease is what one relay does for all.
type Lease string

// The leases.
const (
	LeaseFetch Lease = "l" // fetch the policy
	LeaseCheck Lease = "c" // look at the TXT record
)

var (
	// errKnown ends a discovery whose TXT record has the id of the fleet's policy.
	errKnown = errors.New("the fleet has the policy of this id")
	// errSilent ends one whose TXT question has no answer yet, while the fleet has a policy.
	errSilent = errors.New("no answer of the DNS yet; the fleet's policy is taken")
)

// findFirst asks the fleet for a policy where none is held. Only an enforced one counts:
// none and testing stop no discovery.
func (k *Keeper) findFirst(domain string) *Foreign {
	f, ok := k.o.Fleet.Find(k.life, domain)
	if !ok || f.check(k.o.Now()) != nil || f.Policy.Mode != policy.ModeEnforce {
		return nil
	}
	return f
}

// findBeside is findFirst while the TXT question is asked. The result waits for it.
func (k *Keeper) findBeside(domain string) func() *Foreign {
	found := make(chan *Foreign, 1)
	go func() {
		defer close(found)
		defer k.recoverPanic("fleet", domain)
		found <- k.findFirst(domain)
	}()
	return sync.OnceValue(func() *Foreign { return <-found })
}

// askAgain asks the fleet for a domain whose discovery has failed, without trying that again.
func (k *Keeper) askAgain(fl *flight, n *Negative) {
	defer k.flights.end(fl)
	defer k.recoverPanic("fleet", fl.domain)
	fl.tried, fl.err = true, n.err()
	if f := k.findFirst(fl.domain); f != nil {
		k.adoptFirst(fl, f)
	}
}

// adoptFirst takes a policy of the fleet for a domain of which none is held.
func (k *Keeper) adoptFirst(fl *flight, f *Foreign) {
	if k.mayLog(k.strangerLines) {
		k.o.Log.Info("MTA-STS policy found by another relay", "domain", f.Domain, "relay", f.Relay, "id", f.ID, "fetched", f.Fetched.UTC().Format(time.RFC3339))
	}
	k.adopt(fl, &cache.Record{Domain: f.Domain, Used: k.o.Now()}, f, false)
}

// news is what the fleet has of a held policy.
type news int

const (
	newsNone    news = iota
	newsAdopted      // the same or a stricter one, newer: it was adopted
	newsOther        // another one: a fetch of our own decides at once
)

// newsOf asks the fleet for a newer policy than the held one. A held enforced policy is only
// renewed: see renews. Nothing else is stored.
func (k *Keeper) newsOf(fl *flight, r *cache.Record) news {
	if k.o.Fleet == nil {
		return newsNone
	}
	f, ok := k.o.Fleet.Find(k.life, r.Domain)
	if !ok || !r.Fetched.Before(f.Fetched) || f.check(k.o.Now()) != nil {
		return newsNone
	}
	if renews(r, f) {
		k.adopt(fl, r, f, true)
		return newsAdopted
	}
	// Under the same id it is served differently now and then; the next fetch decides.
	if !isNews(r, f.ID, k.o.Now()) {
		return newsNone
	}
	k.counters.add(&k.counters.NotAdopted, 1)
	if k.mayLog(k.heldLines) {
		k.o.Log.Info("another relay fetched a changed MTA-STS policy; the held one stays in force until this relay has fetched it too",
			"domain", r.Domain, "relay", f.Relay, "mode", f.Policy.Mode.String(), "held", r.Mode.String())
	}
	return newsOther
}

// adopt takes the policy of another relay.
func (k *Keeper) adopt(fl *flight, r *cache.Record, f *Foreign, lazily bool) {
	k.counters.add(&k.counters.Adopted, 1)
	k.put(r, f)
	if draw(r); f.Compare {
		fetchAt(r, k.o.Now().Add(minFetchInterval))
	}
	k.finishTaken(fl, r, lazily)
}

// mayFetch says whether this relay is to fetch a held policy now. If another one does, the
// fleet is asked again in a while.
func (k *Keeper) mayFetch(r *cache.Record) bool {
	if k.o.Fleet == nil {
		return true
	}
	if _, ours := k.o.Fleet.Lease(k.life, LeaseFetch, r.Domain, fetchLease); ours {
		return true
	}
	now := k.o.Now()
	k.fetched.Add(k.hash(r.Domain), now.Add(fetchLease-firstBackoff)) // see wasVisited
	fetchAt(r, now.Add(between(fetchLease, 1, 2)))
	schedule(r, now, k.o.UnusedAfter)
	k.store(r, true)
	return false
}

// mayCheck says whether this relay is to look at a TXT record. If another one does, this one
// takes what that has found. What the engine has lost is brought to it again.
func (k *Keeper) mayCheck(ctx context.Context, r *cache.Record) (release func(), ours bool) {
	if k.o.Fleet == nil {
		return func() {}, true
	}
	if release, ours = k.o.Fleet.Lease(ctx, LeaseCheck, r.Domain, k.o.Recheck); ours {
		return release, true
	}
	if f, ok := k.o.Fleet.Find(ctx, r.Domain); !ok {
		k.announce(r)
	} else if r.Fetched.Before(f.Fetched) {
		k.fetchNow(ctx, r.Domain, "", false)
	}
	return nil, false
}

// announce tells the fleet of a held policy. If a difference is to be confirmed, the policy
// is fetched again, which may have been a change on its way (RFC 8461, 8.1).
func (k *Keeper) announce(r *cache.Record) {
	if k.o.Fleet != nil && k.o.Fleet.Announce(&Foreign{Domain: r.Domain, ID: r.ID, Text: r.Text, Fetched: r.Fetched.Truncate(time.Second), Expires: r.Expires}) {
		fetchAt(r, k.o.Now().Add(confirmAfter+between(confirmWithin-confirmAfter, 0, 1)))
	}
}

// ForgetBefore is Forget for a policy that was fetched before a time.
func (k *Keeper) ForgetBefore(ctx context.Context, domain string, before time.Time) error {
	_, _, err := k.forget(ctx, domain, before)
	return err
}

// RefreshHeld fetches a held policy now, or takes the newer one of the fleet.
func (k *Keeper) RefreshHeld(ctx context.Context, domain string) {
	k.fetched.Remove(k.hash(domain))
	k.fetchNow(ctx, domain, "", true)
}
