package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

const day = 24 * time.Hour

// world is the network of the domains.
type world struct {
	mu      sync.Mutex
	hosts   map[string]host
	fetches map[string]int
	records map[string]int
}

// host is a domain: what it publishes, and how it fails.
type host struct {
	id, text            string
	recordErr, fetchErr policy.Result
	hangs               bool          // the policy host never answers
	silent              bool          // the DNS never answers
	slow                time.Duration // the DNS answers after that
}

func newWorld() *world {
	return &world{hosts: map[string]host{}, fetches: map[string]int{}, records: map[string]int{}}
}

func text(mode string, maxAge time.Duration, mx ...string) string {
	s := "version: STSv1\nmode: " + mode + "\n"
	for _, name := range mx {
		s += "mx: " + name + "\n"
	}
	return s + fmt.Sprintf("max_age: %d\n", int(maxAge.Seconds()))
}

func (w *world) set(domain string, h host) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hosts[domain] = h
}

func (w *world) asked(domain string) (records, fetches int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.records[domain], w.fetches[domain]
}

func (w *world) total() (records, fetches int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range w.records {
		records += n
	}
	for _, n := range w.fetches {
		fetches += n
	}
	return records, fetches
}

func (w *world) Record(ctx context.Context, domain string) (policy.Record, time.Duration, error) {
	w.mu.Lock()
	w.records[domain]++
	h, ok := w.hosts[domain]
	w.mu.Unlock()
	wait := h.slow
	if h.silent {
		wait, h.recordErr = 10*time.Second, policy.ResultDNS // the resolver's own time-outs
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return policy.Record{}, 0, &policy.Error{Domain: domain, Result: policy.ResultDNS, Err: context.Cause(ctx)}
	case <-timer.C:
	}
	switch {
	case !ok:
		return policy.Record{}, 0, &policy.Error{Domain: domain, Result: policy.ResultNoRecord, TTL: time.Minute, Err: errors.New("NXDOMAIN")}
	case h.recordErr != "":
		return policy.Record{}, 0, &policy.Error{Domain: domain, Result: h.recordErr, Err: errors.New("as the test wants it")}
	}
	return policy.Record{ID: h.id}, time.Hour, nil
}

func (w *world) Fetch(ctx context.Context, domain string, gate policy.Gate) (*policy.Fetched, error) {
	n := rand.Uint32() // each fetch goes to a network of its own
	release, err := gate.Acquire(ctx, netip.AddrFrom4([4]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)}))
	if err != nil {
		return nil, &policy.Error{Domain: domain, Result: policy.ResultBusy, Err: err}
	}
	defer release()
	w.mu.Lock()
	w.fetches[domain]++
	h := w.hosts[domain]
	w.mu.Unlock()
	if h.hangs {
		timer := time.NewTimer(30 * time.Second) // the fetcher's own time-out
		defer timer.Stop()
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		return nil, &policy.Error{Domain: domain, Result: policy.ResultFetch, Err: policy.ErrTimeout}
	}
	if h.fetchErr != "" {
		return nil, &policy.Error{Domain: domain, Result: h.fetchErr, Err: errors.New("as the test wants it")}
	}
	p, err := policy.Parse([]byte(h.text))
	if err != nil {
		return nil, &policy.Error{Domain: domain, Result: policy.ResultInvalid, Err: err}
	}
	return &policy.Fetched{Text: []byte(h.text), Policy: p}, nil
}

// A site is a whole relay: keeper, cache and fleet.
type site struct {
	*relay
	keeper *keeper.Keeper
	end    func()
}

// openSite runs a relay; without an engine it is alone.
func openSite(t *testing.T, name string, w *world, e engine, bend func(*site)) *site {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "sts-tlsmap-test-")
	if err != nil {
		dir = t.TempDir()
	} else {
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
	}
	s := &site{relay: newRelay(name, e, nil)}
	log := slog.New(slog.NewTextHandler(s.log, nil))
	store, err := cache.Open(filepath.Join(dir, "cache.db"), cache.Options{MaxSize: 1 << 30, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	s.o.Store = store
	s.passEvery = 15 * time.Minute // days pass in this model
	s.compareOneIn = 1 << 40       // but where a test is about it
	if bend != nil {
		bend(s)
	}
	o := keeper.Options{
		Store: store, Network: w, MatchList: func(p *policy.Policy) []byte { return fmt.Appendf(nil, "%s%s", p.Mode, p.MX) },
		MatchListCurrent: func([]byte) bool { return true }, Observe: func(keeper.Event) {}, Log: log,
		LookupTimeout: 20 * time.Second, FetchTimeout: 30 * time.Second, LookupConcurrency: 256,
		Recheck: 5 * time.Minute, UnusedAfter: 90 * day, FetchRate: 20, RefreshConcurrency: 32,
	}
	if e != nil {
		o.Fleet = s.Fleet
	}
	s.keeper = keeper.New(o)
	s.o.Orders.Forget = s.keeper.ForgetBefore
	s.o.Orders.Refresh = func(ctx context.Context, domain string) error { s.keeper.RefreshHeld(ctx, domain); return nil }
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- s.keeper.Run(ctx) }()
	if e != nil {
		s.run(t)
	}
	s.end = func() {
		if cancel(); e != nil {
			s.stop()
		}
		if err := errors.Join(<-ended, store.Close()); err != nil {
			t.Error(err)
		}
	}
	return s
}

// inFleet runs a test in a bubble of time, with relays on one engine.
func inFleet(t *testing.T, relays int, test func(t *testing.T, e *fakeEngine, w *world, sites []*site)) {
	t.Helper()
	inFleetOf(t, relays, nil, test)
}

// promptly has relays read orders as often as real ones do.
func promptly(s *site) { s.passEvery = passEvery }

// inFleetOf is inFleet with other relays.
func inFleetOf(t *testing.T, relays int, bend func(*site), test func(t *testing.T, e *fakeEngine, w *world, sites []*site)) {
	synctest.Test(t, func(t *testing.T) {
		e, w := newFakeEngine(), newWorld()
		var sites []*site
		for i := range relays {
			sites = append(sites, openSite(t, fmt.Sprint("mx", i), w, e, bend))
		}
		defer func() {
			for _, s := range sites {
				s.end()
			}
		}()
		settle(time.Second)
		test(t, e, w, sites)
	})
}

func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// lookup returns the match list of the policy found, empty if there is none.
func (s *site) lookup(t *testing.T, domain string) string {
	t.Helper()
	var h keeper.Held
	if s.keeper.Lookup(t.Context(), []byte(domain), &h) != nil {
		return ""
	}
	return string(h.Match)
}

// Issue 14: at most 1.5 HTTPS fetches a domain and day, by all relays together. The moment
// of the earliest relay counts, which is 0.71 days after the last fetch: 1.4 a day.
func TestTwentyRelaysFetchAPolicyOnceForAll(t *testing.T) {
	const domains, relays, days = 50, 20, 3
	inFleet(t, relays, func(t *testing.T, e *fakeEngine, w *world, sites []*site) {
		for i := range domains {
			name := fmt.Sprintf("d%d.example", i)
			w.set(name, host{id: "1", text: text("enforce", 7*day, "mx."+name)})
		}
		var mail sync.WaitGroup
		for _, s := range sites {
			mail.Go(func() {
				for range 2 * (days + 1) {
					for _, i := range rand.Perm(domains) {
						if s.lookup(t, fmt.Sprintf("d%d.example", i)) == "" {
							t.Error("no policy")
						}
						time.Sleep(day / 2 / domains)
					}
				}
			})
		}
		time.Sleep(day)
		records, fetches := w.total()
		if fetches < domains {
			t.Error("the world was not asked")
		}
		mail.Wait()
		recordsAfter, fetchesAfter := w.total()
		aDay := func(n int) float64 { return float64(n) / days / domains }
		e.mu.Lock()
		asked := maps.Clone(e.calls)
		e.mu.Unlock()
		t.Logf("%.2f fetches and %.1f TXT questions a domain and day; the engine was asked %v", aDay(fetchesAfter-fetches), aDay(recordsAfter-records), asked)
		if aDay(fetchesAfter-fetches) > 1.5 {
			t.Errorf("%.2f fetches a domain and day", aDay(fetchesAfter-fetches))
		}
	})
}
