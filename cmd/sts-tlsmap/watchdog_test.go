package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// beats runs beat for a while with that probe, and counts.
func beats(t *testing.T, interval, total time.Duration, probe func(context.Context) error) (alive, failed int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), total)
	defer cancel()
	beat(ctx, interval, probe, func() { alive++ }, func(error) { failed++ })
	return alive, failed
}

func TestTheWatchdogIsToldOnlyWhenALookupIsAnswered(t *testing.T) {
	const interval = 20 * time.Second
	for _, c := range []struct {
		name          string
		probe         func(context.Context) error
		alive, failed int
	}{
		{"answered", func(context.Context) error { return nil }, 3, 0},
		{"refused", func(context.Context) error { return errors.New("refused") }, 0, 3},
		{"no answer", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, 0, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				alive, failed := beats(t, interval, 3*interval-time.Second, c.probe)
				if alive != c.alive || failed != c.failed {
					t.Errorf("%d alive, %d failed; want %d and %d", alive, failed, c.alive, c.failed)
				}
			})
		})
	}
}

func TestTheWatchdogIsToldAgainAfterAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		alive, failed := beats(t, 20*time.Second, time.Minute-time.Second, func(context.Context) error {
			if n++; n == 1 {
				return errors.New("not yet")
			}
			return nil
		})
		if alive != 2 || failed != 1 {
			t.Errorf("%d alive, %d failed; want 2 and 1", alive, failed)
		}
	})
}

// gatedStore is a store whose lookups wait for a gate, where there is one.
type gatedStore struct {
	keeper.Store
	gate    atomic.Pointer[chan struct{}]
	lookups atomic.Int32
}

func (s *gatedStore) Lookup(domain []byte, into *cache.Hit) error {
	s.lookups.Add(1)
	if gate := s.gate.Load(); gate != nil {
		<-*gate
	}
	return s.Store.Lookup(domain, into)
}

// noNetwork fails the test when it is asked.
type noNetwork struct{ t *testing.T }

func (n noNetwork) Record(_ context.Context, domain string) (policy.Record, time.Duration, error) {
	n.t.Errorf("a packet was sent for %s", domain)
	return policy.Record{}, 0, errors.New("no network")
}

func (n noNetwork) Fetch(ctx context.Context, domain string, _ policy.Gate) (*policy.Fetched, error) {
	_, _, err := n.Record(ctx, domain)
	return nil, err
}

// probed is a service with its lookup path, as far as the watchdog sees it.
func probed(t *testing.T, listeners ...net.Listener) (*service, *gatedStore) {
	t.Helper()
	store, err := cache.Open(filepath.Join(t.TempDir(), "cache.db"), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	gated := &gatedStore{Store: store}
	table, err := tlsmap.NewTable(config.Default().Maps)
	if err != nil {
		t.Fatal(err)
	}
	s := &service{log: slog.New(slog.DiscardHandler), listeners: map[string][]net.Listener{keyListen: listeners}}
	s.keeper = keeper.New(keeper.Options{Store: gated, Network: noNetwork{t}})
	s.maps = tlsmap.NewServer(table, tlsmap.Options{Policies: s.keeper})
	s.sockets = socketmap.NewServer(s.maps, socketmap.Options{})
	var serving sync.WaitGroup
	for _, l := range listeners {
		serving.Go(func() {
			if err := s.sockets.Serve(l); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		if gate := gated.gate.Swap(nil); gate != nil {
			close(*gate)
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := s.sockets.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		serving.Wait()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, gated
}

func listenAt(t *testing.T, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// brief is the time of a probe that is to fail.
const brief = 300 * time.Millisecond

func probeFor(t *testing.T, s *service, long time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	return s.probe(ctx)
}

func TestTheProbeGoesThroughEveryListenerToTheStoreAndLeavesNoTrace(t *testing.T) {
	s, store := probed(t, listenAt(t, "tcp", "127.0.0.1:0"), listenAt(t, "unix", filepath.Join(t.TempDir(), "map.sock")))
	for range 3 {
		if err := probeFor(t, s, patience); err != nil {
			t.Fatal(err)
		}
	}
	if n := store.lookups.Load(); n != 6 {
		t.Errorf("%d lookups in the store, want 6: three at each listener", n)
	}
	if got := s.keeper.Stats(); got.Negatives != 0 || got.TableEntries != 0 || got.Discovering != 0 {
		t.Errorf("the keeper remembers: %+v", got)
	}
	for _, m := range s.maps.Stats().Maps {
		if n := m.Replies(); n != 0 {
			t.Errorf("%d lookups are counted in map %s", n, m.Map)
		}
	}
}

func TestThereIsNoBeatWhileTheStoreDoesNotAnswer(t *testing.T) {
	s, store := probed(t, listenAt(t, "tcp", "127.0.0.1:0"))
	gate := make(chan struct{})
	store.gate.Store(&gate)
	if alive, failed := beats(t, brief, 3*brief, s.probe); alive != 0 || failed == 0 {
		t.Errorf("%d beats, %d failures", alive, failed)
	}
	store.gate.Store(nil)
	close(gate)
	if err := probeFor(t, s, patience); err != nil {
		t.Errorf("once it answers: %v", err)
	}
}

func TestThereIsNoBeatOnHoldWhileLookupsAreNotAnsweredTEMP(t *testing.T) {
	s, _ := probed(t, listenAt(t, "tcp", "127.0.0.1:0"))
	if err := s.probeListeners(t.Context(), "TEMP ", s.maps); err == nil || !strings.Contains(err.Error(), `the reply for`) {
		t.Errorf("got %v", err)
	}
}

func TestThereIsNoBeatWhileOneListenerIsNotServed(t *testing.T) {
	s, _ := probed(t, listenAt(t, "tcp", "127.0.0.1:0"))
	unserved := listenAt(t, "tcp", "127.0.0.1:0")
	s.listeners[keyListen] = append(s.listeners[keyListen], unserved)
	if err := probeFor(t, s, brief); err == nil || !strings.Contains(err.Error(), unserved.Addr().String()) {
		t.Errorf("got %v", err)
	}
}

// A restart does not bring back the folder of a Postfix that was purged.
func TestAMissingSocketPathCausesNoRestart(t *testing.T) {
	dir := t.TempDir()
	chroot := listenAt(t, "unix", filepath.Join(dir, "map.sock"))
	s, store := probed(t, listenAt(t, "tcp", "127.0.0.1:0"), chroot)
	chroot.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := os.Remove(filepath.Join(dir, "map.sock")); err != nil {
		t.Fatal(err)
	}
	if err := probeFor(t, s, patience); err != nil {
		t.Error(err)
	}
	// Nor where it is the only one; the lookup path is proven all the same.
	s.listeners[keyListen] = s.listeners[keyListen][1:]
	if err := probeFor(t, s, patience); err != nil {
		t.Error(err)
	}
	if n := store.lookups.Load(); n != 2 {
		t.Errorf("%d lookups in the store, want 2", n)
	}
}
