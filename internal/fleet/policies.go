package fleet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// writeNewer stores a policy unless the stored one is as new. A stored stamp that is ahead
// of ARGV[4] is not believed by anybody, and does not keep a policy out.
const writeNewer = `local s = redis.call('GET', KEYS[1])
s = s and string.sub(s, ` + "10, 24" + `)
if s and s >= ARGV[2] and s <= ARGV[4] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return 1`

// policyKey has the domain in braces, so that all keys of a domain are in one slot of a
// Cluster.
func policyKey(kind, domain string) string { return kind + ":{" + domain + "}" }

// Find returns the policy of a domain that some relay has fetched, verified and alive. It
// waits for findWait at most. With the engine away it returns none at once.
func (f *Fleet) Find(ctx context.Context, domain string) (found *keeper.Foreign, ok bool) {
	sealed, ok := f.Sealed(ctx, domain)
	if !ok {
		return nil, false
	}
	v, ok := f.open("p", domain, sealed, 3)
	if !ok {
		return nil, false
	}
	found = &keeper.Foreign{Domain: domain, Relay: v.fields[0], ID: v.fields[1], Text: []byte(v.fields[2]), Fetched: v.stamp.Truncate(time.Second)}
	var err error
	if found.Policy, err = policy.Parse(found.Text); err != nil {
		f.refuse(ReasonInvalid, policyKey("p", domain), err)
		return nil, false
	}
	// Its life is under the HMAC: nobody can extend it (Merging 3).
	if found.Expires = found.Fetched.Add(found.Policy.MaxAge); !found.Expires.After(f.o.Now()) || f.orders.forbids(domain, found.Fetched) {
		return nil, false
	}
	if found.Relay != f.o.Name && rand.Int64N(f.compareOneIn*f.relays.Load()) == 0 {
		waits, _ := f.compared.ContainsOrAdd(domain, comparison{Foreign: *found})
		found.Compare = !waits
	}
	f.count(&f.counts.Found)
	return found, true
}

// Sealed returns what the engine has as the policy of a domain, which is not to be believed yet.
func (f *Fleet) Sealed(ctx context.Context, domain string) (sealed string, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, findWait)
	defer cancel()
	f.count(&f.counts.Asked)
	key := f.key(policyKey("p", domain))
	reply, err := f.do(ctx, key, "GET", key)
	if err != nil {
		f.count(&f.counts.Failed)
	}
	sealed, ok = reply.(string)
	return sealed, ok && err == nil
}

// Lease asks for the right to do something for a domain that one relay does for all, kind
// says what. It waits for findWait at most. With the engine away, the right is ours; so is the right to
// fetch at the second try. release gives it back early.
func (f *Fleet) Lease(ctx context.Context, kind keeper.Lease, domain string, long time.Duration) (release func(), ours bool) {
	asking, cancel := context.WithTimeout(ctx, findWait)
	defer cancel()
	key := f.key(policyKey(string(kind), domain))
	reply, err := f.do(asking, key, "SET", key, f.o.Name, "NX", "PX", strconv.FormatInt(max(long.Milliseconds(), 1), 10))
	if err != nil {
		return func() {}, true
	}
	if reply == nil {
		now := f.o.Now()
		if last, ok := f.yielded.Get(domain); kind != keeper.LeaseFetch || !ok || now.Sub(last).Abs() > yieldedFor {
			if kind == keeper.LeaseFetch {
				// Without a note of it, the second try would not succeed either.
				if _, oldest, _ := f.yielded.GetOldest(); f.yielded.Len() == maxPending && now.Sub(oldest).Abs() <= yieldedFor {
					return func() {}, true
				}
				f.yielded.Add(domain, now)
			}
			return func() {}, false
		}
		f.yielded.Remove(domain)
	}
	return func() {
		releasing, cancel := context.WithTimeout(ctx, findWait)
		defer cancel()
		_, _ = f.do(releasing, key, "DEL", key)
	}, true
}

// Announce brings a policy that this relay has fetched to the engine, in the background.
// again asks for another fetch, to confirm that an adopted policy was another one.
func (f *Fleet) Announce(found *keeper.Foreign) (again bool) {
	if !f.orders.forbids(found.Domain, found.Fetched) && !f.pending.put(found, true) {
		f.count(&f.counts.Dropped)
	}
	return f.compare(found)
}

// A comparison is a policy of another relay that a fetch of our own is to confirm.
type comparison struct {
	keeper.Foreign
	again bool // one fetch has found another text
}

// compare compares a fetched policy with the one found before. Under another id the domain
// has changed it since. Otherwise a second fetch decides (RFC 8461, 8.1).
func (f *Fleet) compare(own *keeper.Foreign) (again bool) {
	c, ok := f.compared.Get(own.Domain)
	if !ok || !own.Fetched.After(c.Fetched) {
		return false
	}
	f.compared.Remove(own.Domain)
	switch {
	case bytes.Equal(own.Text, c.Text), own.ID != c.ID:
	case !c.again:
		f.compared.Add(own.Domain, comparison{c.Foreign, true})
		return true
	default:
		f.count(&f.counts.Differ)
		f.o.Log.Warn("the policy that another relay announced is not the one that its host serves; the fetched one is in force", "domain", own.Domain,
			"relay", c.Relay, "next", "compare sts-tlsmap -explain at both relays; if that relay is not to be trusted, change key_file")
	}
	return false
}

// pending are the policies that wait for the engine, the newest of each domain.
type pending struct {
	mu       sync.Mutex
	byDomain map[string]*keeper.Foreign
	bytes    int
	wake     chan struct{}
}

func (p *pending) init() {
	p.byDomain, p.wake = make(map[string]*keeper.Foreign), make(chan struct{}, 1)
}

func (p *pending) length() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.byDomain)
}

func (p *pending) nudge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// put says whether there was room.
func (p *pending) put(found *keeper.Foreign, nudge bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	old, waits := p.byDomain[found.Domain]
	if waits && !found.Fetched.After(old.Fetched) {
		return true
	}
	grown := len(found.Text)
	if waits {
		grown -= len(old.Text)
	}
	if !waits && len(p.byDomain) >= maxPending || p.bytes+grown > maxPendingBytes {
		return false
	}
	p.byDomain[found.Domain] = found
	if p.bytes += grown; nudge {
		p.nudge()
	}
	return true
}

func (p *pending) take() *keeper.Foreign {
	p.mu.Lock()
	defer p.mu.Unlock()
	for domain, found := range p.byDomain {
		delete(p.byDomain, domain)
		p.bytes -= len(found.Text)
		return found
	}
	return nil
}

// send brings pending policies to the engine until ctx ends. What the engine does not take
// waits for the next pass that succeeds.
func (f *Fleet) send(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.pending.wake:
		}
		for ctx.Err() == nil {
			found := f.pending.take()
			if found == nil {
				break
			}
			if err := f.write(ctx, found); err != nil {
				f.pending.put(found, false)
				break
			}
		}
	}
}

// write brings one policy to the engine.
func (f *Fleet) write(ctx context.Context, found *keeper.Foreign) error {
	now := f.o.Now()
	left := found.Expires.Sub(now)
	if left < time.Second || f.orders.forbids(found.Domain, found.Fetched) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, passWait)
	defer cancel()
	stamp := found.Fetched.Truncate(time.Second)
	key := f.key(policyKey("p", found.Domain))
	sealed := f.seal("p", found.Domain, stamp, f.o.Name, found.ID, string(found.Text))
	_, err := f.do(ctx, key, "EVAL", writeNewer, "1", key, sealed, stampText(stamp), strconv.FormatInt(left.Milliseconds(), 10), stampText(now.Add(maxAhead)))
	if err == nil {
		f.count(&f.counts.Written)
	}
	return err
}

func stampText(t time.Time) string { return fmt.Sprintf("%0*d", stampLength, t.UnixMilli()) }

// errNotServing: an order was not given.
var errNotServing = errors.New("the fleet's engine did not take it; no other relay will do it")
