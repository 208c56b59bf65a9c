package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
)

// An order is what an administrator has all relays do for a domain: a field of one of the
// hashes below. Each relay carries an order out once, and keeps its stamp for as long as
// the order may be played back: an older one is ignored (Merging 5).
const (
	orderExempt  = "exempt"
	orderForget  = "forget"
	orderRefresh = "refresh"

	forgotHere = "forgot" // not an order: a forget of this relay alone
	everything = "."      // in place of a domain of forgotHere
)

// How long an order counts after its stamp.
var ordersLive = map[string]time.Duration{orderExempt: MaxExempt, orderForget: forgetFor, orderRefresh: time.Hour, forgotHere: forgetFor}

const (
	// MaxExempt is the longest exemption in all relays.
	MaxExempt = 7 * 24 * time.Hour

	forgetFor = 24 * time.Hour // a policy fetched before a forget is not taken from the engine
	orderWait = 30 * time.Second
)

// Orders are carried out by this relay. A function that fails is called again.
type Orders struct {
	// Exempt ends an exemption if until is zero. by names the relay and the user.
	Exempt func(entry string, until time.Time, by string) error
	// Forget drops a policy that was fetched before a time, and its negative result.
	Forget func(ctx context.Context, domain string, before time.Time) error
	// Refresh fetches a held policy, or takes the newer one of the fleet.
	Refresh func(ctx context.Context, domain string) error
}

type orders struct {
	f  *Fleet
	mu sync.Mutex
	// The newest stamp of each order, Unix milliseconds, by kind and domain.
	stamps  map[string]map[string]int64
	running map[string]bool // by kind and domain
	dirty   bool            // there are stamps to be written

	writing sync.Mutex
	wg      sync.WaitGroup
	places  chan struct{}
}

func (o *orders) init(f *Fleet) {
	o.f, o.stamps, o.running = f, make(map[string]map[string]int64), make(map[string]bool)
	o.places = make(chan struct{}, ordersAtOnce)
	for kind := range ordersLive {
		o.stamps[kind] = make(map[string]int64)
	}
}

// load reads the stamps of the last run. Without them an exemption that has not ended may
// be played back, for 7 days at most.
func (o *orders) load() {
	text, err := o.f.o.Store.FleetStamps()
	stamps := make(map[string]map[string]int64)
	if err == nil && len(text) > 0 {
		err = json.Unmarshal(text, &stamps)
	}
	if err != nil {
		o.f.o.Log.Warn("the stamps of the fleet's exemptions could not be read", "err", err)
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for kind, known := range o.stamps {
		for domain, stamp := range stamps[kind] {
			known[domain] = max(known[domain], stamp)
		}
	}
}

// forbids says whether a policy fetched then was to be forgotten.
func (o *orders) forbids(domain string, fetched time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	stamp := max(o.stamps[orderForget][domain], o.stamps[forgotHere][domain], o.stamps[forgotHere][everything])
	return fetched.UnixMilli() <= stamp && o.f.o.Now().UnixMilli()-stamp < forgetFor.Milliseconds()
}

// Forgot takes note of a forget on this relay alone. After very many of them nothing that
// is older is taken from the engine.
func (f *Fleet) Forgot(domain string) {
	o := &f.orders
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.stamps[forgotHere]) >= maxOrders {
		domain = everything
	}
	o.stamps[forgotHere][domain] = f.o.Now().UnixMilli()
	o.dirty = true
}

// begin says whether an order was not carried out yet, nor a newer one.
func (o *orders) begin(kind, domain string, stamp time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	known, ok := o.stamps[kind][domain]
	if stamp.UnixMilli() <= known || o.running[kind+domain] || !ok && len(o.stamps[kind])+len(o.running) >= 2*maxOrders {
		return false
	}
	o.running[kind+domain] = true
	return true
}

// end keeps the stamp of an order that was carried out.
func (o *orders) end(kind, domain string, stamp time.Time, done bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.running, kind+domain)
	if done {
		o.stamps[kind][domain] = max(o.stamps[kind][domain], stamp.UnixMilli())
		o.dirty = true
	}
}

// read has the orders in the engine that are new carried out, in the background.
func (o *orders) read(ctx context.Context) error {
	for _, kind := range []string{orderExempt, orderForget, orderRefresh} {
		err := o.f.readHash(ctx, kind, maxOrders, func(domain, sealed string) (keep bool) {
			v, ok := o.f.open(kind, domain, sealed, 3)
			if !ok {
				return true
			}
			if o.f.o.Now().Sub(v.stamp) > ordersLive[kind] {
				return false
			}
			do, err := o.prepare(kind, domain, v)
			if err != nil {
				o.f.refuse(ReasonInvalid, kind+" "+strconv.Quote(domain), err)
			} else if o.begin(kind, domain, v.stamp) {
				o.wg.Go(func() { o.carryOut(kind, domain, v.stamp, do) })
			}
			return true
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (o *orders) carryOut(kind, domain string, stamp time.Time, do func() error) {
	o.places <- struct{}{}
	defer func() { <-o.places }()
	err := do()
	if err != nil {
		o.f.o.Log.Error("an order of the fleet failed", "order", kind, "domain", domain, "err", err, "next", "it is tried again")
	}
	o.end(kind, domain, stamp, err == nil)
	o.save()
}

// prepare checks an order and returns what carries it out.
func (o *orders) prepare(kind, domain string, v value) (do func() error, err error) {
	name, err := exempt.Parse(domain)
	if err != nil || name != domain || kind != orderExempt && !hostname.Valid(domain) {
		return nil, fmt.Errorf("%q is no domain", domain)
	}
	ms, ok := parseInt(v.fields[0])
	until := time.UnixMilli(ms)
	by := fmt.Sprintf("%q at relay %q", v.fields[2], v.fields[1])
	if kind == orderExempt && (!ok || until.Sub(v.stamp) > MaxExempt) {
		return nil, fmt.Errorf("an exemption in all relays ends within %d days", MaxExempt/(24*time.Hour))
	}
	return func() error {
		ctx, cancel := context.WithTimeout(context.Background(), orderWait)
		defer cancel()
		o.f.o.Log.Warn("order of the fleet", "order", kind, "domain", domain, "by", by, "given", v.stamp.UTC().Format(time.RFC3339))
		switch kind {
		case orderForget:
			return o.f.o.Orders.Forget(ctx, domain, v.stamp)
		case orderRefresh:
			return o.f.o.Orders.Refresh(ctx, domain)
		}
		if ms == 0 {
			until = time.Time{}
		} else if !until.After(o.f.o.Now()) {
			return nil // it has ended before this relay heard of it
		}
		return o.f.o.Orders.Exempt(domain, until, by)
	}, nil
}

// save brings the stamps to the disk, without those of orders that cannot come again.
func (o *orders) save() {
	o.writing.Lock()
	defer o.writing.Unlock()
	o.mu.Lock()
	if !o.dirty {
		o.mu.Unlock()
		return
	}
	for kind, known := range o.stamps {
		maps.DeleteFunc(known, func(_ string, stamp int64) bool {
			return o.f.o.Now().UnixMilli()-stamp > (ordersLive[kind] + maxAhead).Milliseconds()
		})
	}
	text, err := json.Marshal(o.stamps)
	o.dirty = false
	o.mu.Unlock()
	if err == nil {
		err = o.f.o.Store.WriteFleetStamps(text)
	}
	if err != nil {
		o.f.o.Log.Error("the stamps of the fleet's orders could not be written", "err", err, "next", "a restart carries these orders out again")
	}
}

// Exempt exempts a domain at all relays for a time from now; zero ends it. The order is
// given, and each relay, this one included, follows within 15 s.
func (f *Fleet) Exempt(ctx context.Context, entry string, long time.Duration, user string) error {
	if long < 0 || long > MaxExempt {
		return fmt.Errorf("an exemption in all relays lasts at most %d days", MaxExempt/(24*time.Hour))
	}
	return f.give(ctx, orderExempt, entry, long, user)
}

// Forget drops a domain's policy at all relays and in the engine, as Exempt does.
func (f *Fleet) Forget(ctx context.Context, domain, user string) error {
	if err := f.give(ctx, orderForget, domain, 0, user); err != nil {
		return err
	}
	key := f.key(policyKey("p", domain))
	_, _ = f.engine.do(ctx, key, "DEL", key) // older ones are not taken any more either way
	return nil
}

// Refresh has all relays fetch a domain's policy if they hold one, or take a newer one.
func (f *Fleet) Refresh(ctx context.Context, domain, user string) error {
	return f.give(ctx, orderRefresh, domain, 0, user)
}

// give writes an order. Its stamp is newer than that of the order before.
func (f *Fleet) give(ctx context.Context, kind, domain string, long time.Duration, user string) error {
	ctx, cancel := context.WithTimeout(ctx, passWait)
	defer cancel()
	now := f.o.Now()
	stamp, n := now, 0
	err := f.readHash(ctx, kind, maxOrders, func(field, sealed string) bool {
		n++
		v, ok := f.open(kind, field, sealed, 3)
		if ok && field == domain && !v.stamp.Before(stamp) {
			stamp = v.stamp.Add(time.Millisecond)
		}
		return !ok || now.Sub(v.stamp) <= ordersLive[kind]
	})
	if err == nil && n >= maxOrders {
		return fmt.Errorf("the fleet has %d orders of this kind; older ones end by themselves", n)
	}
	until := int64(0)
	if long > 0 {
		until = now.Add(long).UnixMilli()
	}
	if err == nil {
		_, err = f.engine.do(ctx, f.key(kind), "HSET", f.key(kind), domain,
			f.seal(kind, domain, stamp, strconv.FormatInt(until, 10), f.o.Name, user[:min(len(user), maxName)]))
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errNotServing, err)
	}
	f.nudge()
	return nil
}
