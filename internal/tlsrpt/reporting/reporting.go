// Package reporting runs TLS reports (RFC 8460) in the daemon: it collects the TLS
// sessions of Postfix, stores them, and reports each day. It does so in goroutines of its
// own. A file or a socket that cannot be used is tried again each minute, and a panic is
// recovered: nothing here keeps the daemon from starting, or a lookup waiting.
//
// Left out: what the parts do, which are the packages collect, store, report and deliver.
package reporting

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/collect"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/deliver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

const retry = time.Minute // between two tries to use a file or a socket

// Options of a Service.
type Options struct {
	Config *config.TLSRPT
	Passed net.PacketConn // the socket for Postfix's sessions, from systemd; nil: it is made

	Resolver *resolver.Resolver
	Network  policy.Config // for receivers of reports on HTTPS
	Host     string        // this machine's name, for EHLO

	Now func() time.Time // the clock, by which sessions are of a day; nil: time.Now

	// What the keeper knows: the text of a policy, why a policy could not be fetched, and
	// whether no fetch succeeds any more.
	Policy    func(domain string) (text []byte, ok bool)
	Negative  func(domain string) (keeper.Negative, bool)
	FetchDead func() bool

	Log *slog.Logger
}

// A Service runs TLS reports. The nil Service is off.
type Service struct {
	Options

	mu        sync.Mutex
	store     *store.Store
	collector *collect.Collector
	deliverer *deliver.Deliverer
	failing   [parts]error // why a part does not work now

	failedLookups chan failedLookup // see Failed
	lost          atomic.Uint64
}

// The parts of a Service that can fail alone.
const (
	partStore = iota
	partSocket
	partReports
	partPolicies
	parts
)

var partNames = [parts]string{"store", "socket", "reports", "policies"}

// New returns a service, or nil if the configuration wants none. It opens nothing.
func New(o Options) *Service {
	if !o.Config.On() {
		return nil
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Service{Options: o, failedLookups: make(chan failedLookup, maxWaiting)}
}

// Stats are the numbers of a Service. A part that does not run yet has zeroes.
type Stats struct {
	On      bool
	Err     error  // why not everything works; nil: it does
	Lost    uint64 // failures of our own knowledge that were not counted, since too many wait
	Collect collect.Stats
	Store   store.Stats
	Deliver deliver.Stats
}

// Stats returns the numbers of the service.
func (s *Service) Stats() Stats {
	if s == nil {
		return Stats{}
	}
	s.mu.Lock()
	failing := s.failing
	st, collector, deliverer := s.store, s.collector, s.deliverer
	s.mu.Unlock()
	stats := Stats{On: true, Lost: s.lost.Load()}
	if st != nil {
		stats.Store = st.Stats()
	}
	if collector != nil {
		stats.Collect = collector.Stats()
	}
	if deliverer != nil {
		stats.Deliver = deliverer.Stats()
	}
	for i, err := range failing {
		if err != nil {
			stats.Err = errors.Join(stats.Err, fmt.Errorf("%s: %w", partNames[i], err))
		}
	}
	if stats.Store.Err != nil {
		stats.Err = errors.Join(stats.Err, stats.Store.Err)
	} else if stats.Collect.Err != nil {
		stats.Err = errors.Join(stats.Err, stats.Collect.Err)
	}
	return stats
}

// Run runs the service until ctx ends. Then it writes what has been collected.
func (s *Service) Run(ctx context.Context) {
	if s == nil {
		return
	}
	st, ok := until(ctx, s, partStore, func() (*store.Store, error) {
		c := s.Config
		return store.Open(c.Path, store.Options{MaxSize: c.MaxSize, Keep: c.Keep, Log: s.Log, Now: s.Now})
	})
	if !ok {
		return
	}
	s.mu.Lock()
	s.store = st
	s.mu.Unlock()

	var keeping, working sync.WaitGroup
	kept, stopKeeping := context.WithCancel(context.WithoutCancel(ctx))
	keeping.Go(func() { s.guard(partStore, func() { st.Run(kept) }) })
	working.Go(func() { s.guard(partSocket, func() { s.collect(ctx) }) })
	working.Go(func() { s.guard(partPolicies, func() { s.countFailed(ctx) }) })
	if s.Config.Reports() {
		working.Go(func() { s.guard(partReports, func() { s.deliver(ctx) }) })
	}
	working.Wait()
	stopKeeping()
	keeping.Wait()
	if err := st.Close(); err != nil {
		s.Log.Warn("the store of TLS reports was not closed in good order", "err", err)
	}
}

// collect takes sessions from the socket.
func (s *Service) collect(ctx context.Context) {
	conn, ok := until(ctx, s, partSocket, func() (*net.UnixConn, error) {
		if s.Passed != nil {
			return collect.Passed(s.Passed)
		}
		return collect.Listen(s.Config.PostfixSocket.Address)
	})
	if !ok {
		return
	}
	c := collect.New(conn, s.store, collect.Options{Log: s.Log, Now: s.Now, QueueLength: collect.QueueLength()})
	s.mu.Lock()
	s.collector = c
	s.mu.Unlock()
	c.Run(ctx)
}

// deliver reports closed days.
func (s *Service) deliver(ctx context.Context) {
	d, ok := until(ctx, s, partReports, s.newDeliverer)
	if !ok {
		return
	}
	s.mu.Lock()
	s.deliverer = d
	s.mu.Unlock()
	d.Run(ctx)
}

// until calls open each minute until it succeeds, or until ctx ends.
func until[T any](ctx context.Context, s *Service, part int, open func() (T, error)) (v T, ok bool) {
	for {
		var err error
		if panicked := s.guard(part, func() { v, err = open() }); panicked != nil {
			err = panicked
		}
		if s.fail(part, err); err == nil {
			return v, true
		}
		select {
		case <-ctx.Done():
			return v, false
		case <-time.After(retry):
		}
	}
}

// fail notes whether a part works, and logs a change.
func (s *Service) fail(part int, err error) {
	s.mu.Lock()
	was := s.failing[part]
	s.failing[part] = err
	s.mu.Unlock()
	switch {
	case err == nil && was != nil:
		s.Log.Info("TLS reports work again", "part", partNames[part])
	case err != nil && (was == nil || was.Error() != err.Error()):
		s.Log.Error("TLS reports do not work", "part", partNames[part], "err", err, "next", "lookups go on; it is tried again each minute")
	}
}

// guard runs a part, and recovers from a panic.
func (s *Service) guard(part int, run func()) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
			s.Log.Error("bug: recovered from a panic; please report it", "in", "TLS reports", "part", partNames[part], "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			s.mu.Lock()
			s.failing[part] = err
			s.mu.Unlock()
		}
	}()
	run()
	return nil
}
