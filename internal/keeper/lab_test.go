package keeper_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// fakeNet is the network as a Discoverer sees it. Hosts may be changed while
// it is used.
type fakeNet struct {
	mu      sync.Mutex
	hosts   map[string]*fakeHost
	records map[string]int // TXT lookups by domain
	fetches map[string]int // HTTPS fetches by domain

	open, mostOpen int // connections to policy hosts
}

// fakeHost is a domain: what it publishes, and how it fails.
type fakeHost struct {
	id, text   string
	recordErr  policy.Result // "" is none
	fetchErr   policy.Result
	cause      error // of fetchErr; nil: as the test wants it
	ttl        time.Duration
	takes      time.Duration   // a fetch
	gate       <-chan struct{} // a fetch waits until it is closed
	tarpit     bool            // a fetch never ends
	recordGate <-chan struct{} // a TXT lookup waits until it is closed
	addr       string          // of the policy host; "" is one in a network of its own
}

func newFakeNet() *fakeNet {
	return &fakeNet{hosts: make(map[string]*fakeHost), records: make(map[string]int), fetches: make(map[string]int)}
}

// connections returns how many there are to policy hosts, or were at most.
func (n *fakeNet) connections(most bool) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if most {
		return n.mostOpen
	}
	return n.open
}

func policyText(mode string, maxAge time.Duration, mx string) string {
	return fmt.Sprintf("version: STSv1\nmode: %s\nmx: %s\nmax_age: %d\n", mode, mx, int64(maxAge.Seconds()))
}

// enforced publishes an enforced policy with a max_age.
func (n *fakeNet) enforced(domain string, maxAge time.Duration) {
	n.set(domain, fakeHost{id: "1", text: policyText("enforce", maxAge, "mx."+domain)})
}

func (n *fakeNet) set(domain string, h fakeHost) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[domain] = &h
}

func (n *fakeNet) change(domain string, bend func(*fakeHost)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := *n.hosts[domain]
	bend(&h)
	n.hosts[domain] = &h
}

func (n *fakeNet) asked(domain string) (records, fetches int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.records[domain], n.fetches[domain]
}

// total returns the fetches of all domains that begin so.
func (n *fakeNet) total(prefix string) (fetches int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for domain, count := range n.fetches {
		if strings.HasPrefix(domain, prefix) {
			fetches += count
		}
	}
	return fetches
}

func (n *fakeNet) Record(ctx context.Context, domain string) (policy.Record, time.Duration, error) {
	n.mu.Lock()
	n.records[domain]++
	h := n.hosts[domain]
	n.mu.Unlock()
	if h != nil && h.recordGate != nil {
		select {
		case <-h.recordGate:
		case <-ctx.Done():
		}
	}
	switch {
	case ctx.Err() != nil:
		return policy.Record{}, 0, &policy.Error{Domain: domain, Result: policy.ResultDNS, Err: ctx.Err()}
	case h == nil:
		return policy.Record{}, 0, &policy.Error{Domain: domain, Result: policy.ResultNoRecord, TTL: time.Minute, Err: errors.New("NXDOMAIN")}
	case h.recordErr != "":
		return policy.Record{}, 0, &policy.Error{Domain: domain, Result: h.recordErr, TTL: h.ttl, Err: errors.New("as the test wants it")}
	}
	return policy.Record{ID: h.id}, time.Hour, nil
}

// addrOf gives each policy host an address in a network of its own.
func addrOf(domain string) netip.Addr {
	h := fnv.New64a()
	h.Write([]byte(domain))
	return netip.AddrFrom16([16]byte(append(h.Sum([]byte{0x2a, 0}), 0, 0, 0, 0, 0, 1)))
}

func (n *fakeNet) Fetch(ctx context.Context, domain string, gate policy.Gate) (*policy.Fetched, error) {
	n.mu.Lock()
	addr := addrOf(domain)
	if h := n.hosts[domain]; h != nil && h.addr != "" {
		addr = netip.MustParseAddr(h.addr)
	}
	n.mu.Unlock()
	release, err := gate.Acquire(ctx, addr)
	if err != nil {
		return nil, &policy.Error{Domain: domain, Result: policy.ResultBusy, Err: err}
	}
	defer release()
	n.mu.Lock()
	n.fetches[domain]++
	n.open++
	n.mostOpen = max(n.mostOpen, n.open)
	defer func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.open--
	}()
	h := n.hosts[domain]
	n.mu.Unlock()
	fail := func(result policy.Result, err error) (*policy.Fetched, error) {
		return nil, &policy.Error{Domain: domain, Result: result, Err: err}
	}
	if h == nil {
		return fail(policy.ResultFetch, errors.New("no such host"))
	}
	if h.tarpit {
		timer := time.NewTimer(30 * time.Second) // the fetcher's own time-out
		defer timer.Stop()
		select {
		case <-ctx.Done():
			return fail(policy.ResultFetch, ctx.Err())
		case <-timer.C:
			return fail(policy.ResultFetch, errors.New("timed out"))
		}
	}
	if h.takes > 0 {
		timer := time.NewTimer(h.takes)
		defer timer.Stop()
		select {
		case <-ctx.Done():
			return fail(policy.ResultFetch, ctx.Err())
		case <-timer.C:
		}
	}
	if h.gate != nil {
		select {
		case <-h.gate:
		case <-ctx.Done():
			return fail(policy.ResultFetch, ctx.Err())
		}
	}
	if h.fetchErr != "" && h.cause != nil {
		return fail(h.fetchErr, h.cause)
	}
	if h.fetchErr != "" {
		return fail(h.fetchErr, errors.New("as the test wants it"))
	}
	p, err := policy.Parse([]byte(h.text))
	if err != nil {
		return fail(policy.ResultInvalid, err)
	}
	return &policy.Fetched{Text: []byte(h.text), Policy: p, Duration: h.takes}, nil
}

// matchList is a MatchList that tests can read.
func matchList(p *policy.Policy) []byte {
	return []byte(fmt.Sprintf("%s %v", p.Mode, p.MX))
}

// faultyStore is a real store whose disk can be slow, full or damaged.
type faultyStore struct {
	*cache.Store
	mu      sync.Mutex
	full    bool
	gate    chan struct{} // a Write waits until it is closed
	damaged map[string]bool
	writes  int
	listed  func() // is called after a page was read

	unreadable bool // the page on which anything stands
}

var errFull = errors.New("no space left on device")

func (s *faultyStore) Write(ops []cache.Op) (cache.WriteResult, error) {
	s.mu.Lock()
	full, gate := s.full, s.gate
	s.writes++
	s.mu.Unlock()
	if gate != nil {
		<-gate
	}
	if full {
		return cache.WriteResult{}, errFull
	}
	r, err := s.Store.Write(ops)
	if err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, op := range ops {
			if op.Put != nil {
				delete(s.damaged, op.Put.Domain)
			}
		}
	}
	return r, err
}

// fault is what reading a domain fails with.
func (s *faultyStore) fault(domain string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.unreadable:
		return cache.ErrUnreadable
	case s.damaged[domain]:
		return &cache.DamagedError{Domain: domain, Err: errors.New("as the test wants it")}
	}
	return nil
}

func (s *faultyStore) Lookup(domain []byte, into *cache.Hit) error {
	if err := s.fault(string(domain)); err != nil {
		return err
	}
	return s.Store.Lookup(domain, into)
}

func (s *faultyStore) Get(domain string) (cache.Record, error) {
	if err := s.fault(domain); err != nil {
		return cache.Record{}, err
	}
	return s.Store.Get(domain)
}

func (s *faultyStore) List(after string, limit int) (list []cache.Record, next string, err error) {
	list, next, err = s.Store.List(after, limit)
	if s.listed != nil {
		s.listed()
	}
	return list, next, err
}

func (s *faultyStore) set(change func(*faultyStore)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

// A site is a keeper with its network, store and log, running.
type site struct {
	*keeper.Keeper
	net  *fakeNet
	disk *faultyStore
	log  *syncBuffer
	stop func() error
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// inSite runs a test in a bubble of its own time, with a running keeper over
// a real store.
func inSite(t *testing.T, bend func(*keeper.Options), test func(*testing.T, *site)) {
	t.Helper()
	path := filepath.Join(memoryDir(t), "cache.db")
	synctest.Test(t, func(t *testing.T) {
		s := openSite(t, path, newFakeNet(), bend)
		test(t, s)
		if err := s.stop(); err != nil && !errors.Is(err, errFull) {
			t.Errorf("stopping: %v", err)
		}
	})
}

func openSite(t *testing.T, path string, net *fakeNet, bend func(*keeper.Options)) *site {
	t.Helper()
	return openSiteOf(t, path, 1<<30, net, bend)
}

// openSiteOf is openSite with a cache of another size.
func openSiteOf(t *testing.T, path string, maxSize int64, net *fakeNet, bend func(*keeper.Options)) *site {
	t.Helper()
	log := new(syncBuffer)
	store, err := cache.Open(path, cache.Options{MaxSize: maxSize, Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	s := &site{net: net, disk: &faultyStore{Store: store, damaged: make(map[string]bool)}, log: log}
	o := keeper.Options{
		Store: s.disk, Network: net, MatchList: matchList, MatchListCurrent: func([]byte) bool { return true },
		Observe: func(keeper.Event) {}, Log: slog.New(slog.NewTextHandler(s.log, nil)),
		LookupTimeout: 20 * time.Second, FetchTimeout: 30 * time.Second, LookupConcurrency: 256,
		Recheck: 5 * time.Minute, UnusedAfter: 90 * day, FetchRate: 20, RefreshConcurrency: 32,
	}
	if bend != nil {
		bend(&o)
	}
	s.Keeper = keeper.New(o)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	s.stop = func() error {
		cancel()
		err := <-done
		return errors.Join(err, store.Close())
	}
	return s
}

// lookup returns the match list of the policy found, and the error.
func (s *site) lookup(t *testing.T, domain string) (string, error) {
	t.Helper()
	var h keeper.Held
	err := s.Lookup(t.Context(), []byte(domain), &h)
	return string(h.Match), err
}

// mustHold looks a domain up and fails the test if no policy is held.
func (s *site) mustHold(t *testing.T, domain string) string {
	t.Helper()
	match, err := s.lookup(t, domain)
	if err != nil {
		t.Fatalf("%s: %v\n%s", domain, err, s.log)
	}
	return match
}

const day = 24 * time.Hour

// settle lets what is under way end, within the bubble's time.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func mustGet(t *testing.T, s *site, domain string) cache.Record {
	t.Helper()
	r, err := s.Get(domain)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// memoryDir is a folder whose fsync costs nothing, where there is one.
func memoryDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "sts-tlsmap-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
