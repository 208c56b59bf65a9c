// Package reporting runs TLS reports (RFC 8460) in the daemon: it collects the TLS
// sessions of Postfix and Exim, stores them, probes domains with a testing policy, and
// reports each day. It does so in goroutines of its own. A file or a socket that cannot be
// used is tried again each minute, and a panic is recovered: nothing here keeps the daemon
// from starting, or a lookup waiting.
//
// Left out: what the parts do, which are the packages collect, store, report and deliver.
package reporting

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/collect"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/deliver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

const (
	retry       = time.Minute    // between two tries to use a file or a socket
	leftOutTime = 24 * time.Hour // for which reports that were left out are an error
)

var errLeftOut = errors.New("reports were left out in the last day, since one receiver would get too many: see -report, and max_per_destination in [tlsrpt]")

// Options of a Service.
type Options struct {
	Config *config.TLSRPT
	Passed net.PacketConn // the socket for Postfix's sessions, from systemd; nil: it is made
	Exim   net.Listener   // likewise, for Exim's

	Resolver policy.Resolver
	Network  policy.Config // for receivers of reports on HTTPS
	Host     string        // this machine's name, for EHLO
	Fleet    deliver.Fleet // nil: there is none

	Now func() time.Time // the clock, by which sessions are of a day; nil: time.Now

	// What the keeper knows: the text of a policy, why a policy could not be fetched, and
	// whether no fetch succeeds any more.
	Policy    func(domain string) (text []byte, ok bool)
	Negative  func(domain string) (keeper.Negative, bool)
	FetchDead func() bool

	MX func(ctx context.Context, domain string) (*dane.MXSet, error)
	// Prober makes what has a session with an MX host that a policy lists; see
	// probe.Prober's Listed. A new one is made each day.
	Prober func() (see func(ctx context.Context, host string) *tlsrpt.Failure, err error)

	Log *slog.Logger
}

// A Service runs TLS reports. The nil Service is off.
type Service struct {
	Options

	mu        sync.Mutex
	store     *store.Store
	collector *collect.Collector
	deliverer *deliver.Deliverer
	overview  Overview         // the last
	failing   map[string]error // by part: why it does not work now

	failedLookups chan failedLookup // see Failed
	lost          atomic.Uint64
}

// New returns a service, or nil if the configuration wants none. It opens nothing.
func New(o Options) *Service {
	if !o.Config.On() {
		return nil
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Service{Options: o, failing: map[string]error{}, failedLookups: make(chan failedLookup, maxWaiting)}
}

// Stats are the numbers of a Service. A part that does not run yet has zeroes.
type Stats struct {
	On  bool
	Err error // why not everything works; nil: it does
	// NewlyFailing is how many destinations have begun to fail: see Failing.
	NewlyFailing int
	Lost         uint64 // failures of our own knowledge that were not counted, since too many wait
	Collect      collect.Stats
	Store        store.Stats
	Deliver      deliver.Stats
}

// Stats returns the numbers of the service.
func (s *Service) Stats() Stats {
	if s == nil {
		return Stats{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := Stats{On: true, Lost: s.lost.Load(), NewlyFailing: s.overview.New}
	if s.store != nil {
		stats.Store = s.store.Stats()
	}
	if s.collector != nil {
		stats.Collect = s.collector.Stats()
	}
	if s.deliverer != nil {
		stats.Deliver = s.deliverer.Stats()
	}
	if left := stats.Deliver.LeftOut; !left.IsZero() && time.Since(left) < leftOutTime {
		stats.Err = errLeftOut
	}
	for _, part := range slices.Sorted(maps.Keys(s.failing)) {
		stats.Err = errors.Join(stats.Err, fmt.Errorf("%s: %w", part, s.failing[part]))
	}
	stats.Err = errors.Join(stats.Err, cmp.Or(stats.Store.Err, stats.Collect.Err))
	return stats
}

// Run runs the service until ctx ends. Then it writes what has been collected.
func (s *Service) Run(ctx context.Context) {
	if s == nil {
		return
	}
	if s.Config.Errs != nil {
		s.run(ctx, "configuration", func() error { return s.Config.Errs })
		return
	}
	s.run(ctx, "store", func() error {
		st, err := store.Open(s.Config.Path, store.Options{MaxSize: s.Config.MaxSize, Keep: s.Config.Keep, Log: s.Log, Now: s.Now})
		if err != nil {
			return err
		}
		c := collect.New(st, collect.Options{Log: s.Log, Now: s.Now, Policy: s.applied})
		s.works("store", func() { s.store, s.collector = st, c })
		var keeping, collecting, working sync.WaitGroup
		kept, stopKeeping := context.WithCancel(context.WithoutCancel(ctx))
		keeping.Go(func() { s.run(kept, "store", func() error { s.works("store", func() {}); st.Run(kept); return nil }) })
		collected, stopCollecting := context.WithCancel(context.WithoutCancel(ctx))
		collecting.Go(func() { c.Run(collected) })
		working.Go(func() { s.run(ctx, "socket", func() error { return s.fromPostfix(ctx) }) })
		working.Go(func() { s.run(ctx, "exim_socket", func() error { return s.fromExim(ctx) }) })
		working.Go(func() {
			s.run(ctx, "policies", func() error { s.works("policies", func() {}); s.countFailed(ctx); return nil })
		})
		working.Go(func() { s.run(ctx, "destinations", func() error { return s.keepLooking(ctx) }) })
		if s.Config.Reports() {
			working.Go(func() { s.run(ctx, "reports", func() error { return s.deliver(ctx) }) })
			if s.Config.ProbeTesting {
				p := &probing{Service: s}
				working.Go(func() { s.run(ctx, "probes", func() error { return p.run(ctx) }) })
			}
		}
		working.Wait()
		stopCollecting()
		collecting.Wait()
		stopKeeping()
		keeping.Wait()
		return st.Close()
	})
}

// fromPostfix takes Postfix's sessions. Where Exim is, Postfix may be missing.
func (s *Service) fromPostfix(ctx context.Context) error {
	path := s.Config.PostfixSocket.Address
	if _, err := os.Stat(filepath.Dir(filepath.Dir(path))); s.Passed == nil && s.hasExim() && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	conn, err := s.listen(path)
	if err != nil {
		return err
	}
	s.works("socket", func() {})
	s.collector.Datagrams(ctx, conn, collect.QueueLength())
	return nil
}

func (s *Service) listen(path string) (*net.UnixConn, error) {
	if s.Passed != nil {
		return collect.Passed(s.Passed)
	}
	return collect.Listen(path)
}

func (s *Service) hasExim() bool { return s.Exim != nil || s.Config.EximSocket.Address != "" }

// fromExim takes Exim's sessions, if Exim is to tell of them.
func (s *Service) fromExim(ctx context.Context) (err error) {
	l := s.Exim
	if !s.hasExim() {
		return nil
	}
	if l == nil {
		if l, err = collect.ListenLines(s.Config.EximSocket.Address); err != nil {
			return err
		}
	}
	s.works("exim_socket", func() {})
	s.collector.Lines(ctx, l)
	return nil
}

// deliver reports closed days.
func (s *Service) deliver(ctx context.Context) error {
	d, err := s.newDeliverer()
	if err != nil {
		return err
	}
	s.works("reports", func() { s.deliverer = d })
	d.Run(ctx)
	return nil
}

// run runs a part of the service until ctx ends. After an error, or a panic, it runs the
// part again in a minute.
func (s *Service) run(ctx context.Context, part string, f func() error) {
	for {
		err := s.guard(part, f)
		if err == nil {
			return
		}
		s.mu.Lock()
		was := s.failing[part]
		s.failing[part] = err
		s.mu.Unlock()
		if was == nil || was.Error() != err.Error() {
			s.Log.Error("TLS reports do not work", "part", part, "err", err, "next", "lookups go on; it is tried again each minute, and settings count after a restart")
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(retry):
		}
	}
}

// works notes that a part works, and sets it.
func (s *Service) works(part string, set func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if set(); s.failing[part] != nil {
		s.Log.Info("TLS reports work again", "part", part)
	}
	delete(s.failing, part)
}

// guard runs f, and makes an error of a panic.
func (s *Service) guard(part string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
			s.Log.Error("bug: recovered from a panic; please report it", "in", "TLS reports", "part", part, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
	}()
	return f()
}
