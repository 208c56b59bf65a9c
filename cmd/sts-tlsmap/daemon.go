package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/fleet"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/observe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/probe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/reporting"
)

const (
	keeperTime  = 15 * time.Second // for the keeper to write, after SIGTERM and the last lookup
	controlTime = time.Second      // for control and metrics requests under way
)

// A service is the running daemon.
type service struct {
	cfg     *config.Config
	log     *slog.Logger
	level   *slog.LevelVar
	started time.Time

	clock    *keeper.Clock
	out      *outside
	store    *cache.Store
	keeper   *keeper.Keeper
	maps     *tlsmap.Server
	exempt   *exempt.List
	sockets  *socketmap.Server
	control  *control.Server
	observer *observe.Observer
	reports  *reporting.Service // nil: off
	fleet    *fleet.Fleet       // nil: off, or fleetErr
	fleetErr error

	sessions   intake    // for TLS reports, passed by systemd
	passed     listeners // by systemd; nil: not asked for yet
	own        map[socket]net.Listener
	listeners  listeners         // those passed, and own ones
	overridden []string          // keys of the configuration in whose place systemd passed sockets
	unused     []error           // of sockets that systemd passed
	missing    []control.Trouble // sockets that are not open
	failed     chan error        // of what must not end by itself
}

// daemon runs the daemon until SIGTERM or SIGINT.
func (a *app) daemon() (int, error) {
	// Signals are caught from here on, so that none interrupts the opening of the cache.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer signal.Stop(signals)

	// A damaged cache file can make bbolt recurse without end. Then the process must
	// end soon, before it takes all memory; after ten such crashes the file is set aside.
	debug.SetMaxStack(64 << 20)

	s := &service{level: new(slog.LevelVar), started: time.Now(), own: make(map[socket]net.Listener), failed: make(chan error, 8)}
	s.log = text.NewLogger(a.stderr, s.level)
	if err := s.start(a.flags.config); err != nil {
		if ended, err := s.hold(signals, a.flags.config, err); ended || err != nil {
			s.closeOwn()
			return exitDone, err
		}
	}
	if err := s.listen(false); err != nil {
		s.closeOwn()
		return 0, errors.Join(err, s.store.Close())
	}
	return exitDone, s.run(signals, a.flags.config)
}

// start reads the configuration and makes everything that answers, the cache last.
// After an error nothing is open, and cfg has defaults in place of mistakes.
func (s *service) start(file string) (err error) {
	if s.cfg, err = config.Load(file); err != nil {
		return configError(err)
	}
	s.level.Set(s.cfg.LogLevel)
	if err = s.open(); err != nil && s.store != nil {
		err = errors.Join(err, s.store.Close())
	}
	return err
}

// open makes everything that answers, the cache before the listeners.
func (s *service) open() error {
	cfg := s.cfg
	var err error
	s.clock = keeper.SystemClock()
	if s.out, err = newOutside(cfg, s.log, func() bool { return s.clock.Off() != 0 }); err != nil {
		return err
	}
	table, err := tlsmap.NewTable(cfg.Maps)
	if err != nil {
		return err
	}
	s.store, err = cache.Open(cfg.Cache.Path, cache.Options{MaxSize: cfg.Cache.MaxSize, Log: s.log, Now: s.clock.Now, InDoubtSince: s.clock.InDoubtSince})
	if err != nil {
		return cacheError(err)
	}
	stats := s.store.Stats()
	s.clock.NotBefore(stats.Heartbeat, stats.InDoubtSince)
	s.observer = observe.New(s.observed())
	most := discoveries(cfg, socketmap.Descriptors())
	if most < cfg.Lookup.Concurrency {
		s.log.Warn("too few file descriptors for the concurrency of discoveries", "concurrency", cfg.Lookup.Concurrency, "at_once", most,
			"next", "raise LimitNOFILE=, or lower max_connections in [socket] or concurrency in [lookup]")
	}
	s.openFleet()
	keeping := keeper.Options{
		Clock:            s.clock,
		Store:            s.store,
		Network:          s.out.client,
		MatchList:        tlsmap.MatchList,
		MatchListCurrent: tlsmap.MatchListCurrent,
		Observe:          s.observer.Observe,
		Log:              s.log,

		LookupTimeout: cfg.Lookup.Timeout, LookupConcurrency: min(most, cfg.Lookup.Concurrency), MaxQuestions: most, FetchTimeout: cfg.Fetch.Timeout,
		Recheck: cfg.Refresh.Recheck, UnusedAfter: cfg.Refresh.UnusedAfter,
		FetchRate: float64(cfg.Refresh.FetchRate), RefreshConcurrency: cfg.Refresh.Concurrency,
	}
	if s.fleet != nil {
		keeping.Fleet = s.fleet
	}
	s.keeper = keeper.New(keeping)
	answering := tlsmap.Options{Policies: s.keeper, NextHops: s.out.checker, Timeout: cfg.Lookup.Timeout, Log: s.log, Now: s.clock.Now}
	if cfg.TLSRPT.On() {
		answering.Failed = func(domain []byte, barred []string) { s.reports.Failed(domain, barred) }
	}
	s.maps = tlsmap.NewServer(table, answering)
	s.maps.SetExempt(cfg.Exempt.Domains)
	if s.exempt, err = exempt.Open(s.store, s.maps.SetTimedExempt, s.clock.Now, s.log); err != nil {
		return err
	}
	s.sockets = socketmap.NewServer(s.maps, socketmap.Options{MaxConnections: cfg.Socket.MaxConnections, Log: s.log})
	s.control = control.NewServer(control.Options{
		Keeper: s.keeper, Exemptions: s.exempt, Exempt: s.maps.Exemptions, Health: s.health, ExemptBy: s.maps.ExemptBy, Rehearsed: s.maps.Rehearsed,
		DANE: s.out.checker.Findings, Reports: func() *reporting.Service { return s.reports }, Fleet: s.fleet, Metrics: s.observer.Metrics(), Log: s.log,
	})
	return nil
}

// discoveries returns how many domains the descriptors allow to be discovered at
// once: half of those that connections leave. The other half is for refreshes, DANE and
// the daemon's own files. Their number does not depend on the descriptors.
func discoveries(cfg *config.Config, descriptors int) int {
	return max((descriptors-min(cfg.Socket.MaxConnections, descriptors/2))/2, 1)
}

// cacheError adds the hint that fits an error of opening the cache. A path that
// cannot be written is not such an error: the cache is then in memory.
func cacheError(err error) error {
	next := "set path in [cache]"
	if errors.As(err, new(*cache.LockedError)) {
		next = "stop that daemon, or give this one a cache of its own: path in [cache]"
	}
	return hint(fmt.Errorf("the cache cannot be opened: %w", err), "%s", next)
}

// run serves until a signal or a failure. It then answers the lookups under way and
// writes the policies that they found.
func (s *service) run(signals <-chan os.Signal, file string) error {
	keeping, stopKeeping := context.WithCancel(context.Background())
	defer stopKeeping()
	kept := make(chan error, 1)
	go func() { kept <- s.keeper.Run(keeping) }()
	s.reports = s.newReports()
	reported := make(chan struct{})
	go func() { defer close(reported); s.reports.Run(keeping) }()
	if s.fleet != nil {
		go s.fleet.Run(keeping)
	}
	s.serve(s.listeners[keyListen], s.sockets.Serve)
	s.serve(s.listeners[keyControl], s.control.Serve)
	s.serve(s.listeners[keyMetrics], s.observer.Serve)
	s.announce()
	watching, stopWatching := context.WithCancel(keeping)
	go s.watch(watching, s.probe)
	go s.observer.Run(watching)
	go s.out.checker.Run(watching)

	err := s.wait(signals, file)
	stopWatching()
	s.drain()
	stopKeeping()
	late := time.After(keeperTime)
	select {
	case unwritten := <-kept:
		err = errors.Join(err, unwritten)
	case <-late:
		err = errors.Join(err, errors.New("not everything could be written to the cache: the disk does not answer"))
	}
	select {
	case <-reported:
	case <-late:
		s.log.Warn("TLS reports did not end in time; TLS sessions of the last second may be lost")
	}
	err = errors.Join(err, s.store.Close())
	s.log.Info("ended")
	return err
}

// newReports returns what runs TLS reports, as the configuration says.
func (s *service) newReports() *reporting.Service {
	host, _ := os.Hostname()
	o := reporting.Options{
		Config: &s.cfg.TLSRPT, Now: s.clock.Now, Passed: s.sessions.postfix, Exim: s.sessions.exim, Resolver: s.out.resolver, Network: s.out.config, Host: cmp.Or(host, "localhost"),
		Policy: func(domain string) ([]byte, bool) {
			r, err := s.keeper.Get(domain)
			return r.Text, err == nil && s.clock.Now().Before(r.Expires)
		},
		MX: s.out.checker.MX, Prober: func() (func(context.Context, string) *tlsrpt.Failure, error) {
			roots, err := policy.LoadRoots("") // the MTA's: ca_file is for policy hosts
			return probe.New(probe.Options{
				Resolver: s.out.resolver, Roots: roots, EHLO: cmp.Or(host, "localhost"), PublicOnly: !s.cfg.Fetch.AllowPrivate, PerSecond: 1,
			}).Listed, err
		},
		Negative: s.keeper.Negative, FetchDead: func() bool { return s.keeper.Stats().FetchDead }, Log: s.log,
	}
	if s.fleet != nil {
		o.Fleet = s.fleet
	}
	return reporting.New(o)
}

// wait waits until a signal says to end, or until something has failed.
func (s *service) wait(signals <-chan os.Signal, file string) error {
	for {
		select {
		case err := <-s.failed:
			return err
		case sig := <-signals:
			if sig == syscall.SIGHUP {
				s.reload(file)
				continue
			}
			signal.Reset(syscall.SIGTERM, syscall.SIGINT) // a second one ends it at once
			s.log.Info("ending", "signal", sig.String())
			return nil
		}
	}
}

// serve serves listeners, and reports one that ends by itself.
func (s *service) serve(list []net.Listener, serve func(net.Listener) error) {
	for _, l := range list {
		go func() {
			if err := serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
				s.failed <- err
			}
		}()
	}
}

// announce tells systemd and the log that lookups are answered.
func (s *service) announce() {
	s.notify(daemon.SdNotifyReady)
	open, r := s.listeners.sockets(), s.out.resolver
	s.log.Info("ready", "version", version, "listen", open.names(keyListen), "control", strings.Join(open.names(keyControl), " "),
		"cache", s.cfg.Cache.Path, "policies", s.store.Stats().Policies(), "resolver", r.Servers(), "trust_ad", r.TrustsAD(),
		"metrics", open.names(keyMetrics), "proxy", cmp.Or(s.out.proxy, "none"))
	for _, w := range warnings(s.cfg, r, open, s.overridden) {
		s.log.Warn(w)
	}
	if len(open[keyControl]) == 0 && slices.Contains(s.overridden, keyControl) {
		s.log.Warn("systemd passed no control socket: -cache, -exempt and the other modes cannot ask this daemon",
			"next", "systemctl unmask sts-tlsmap-control.socket, and restart")
	}
	if s.cfg.SetsDANE() {
		s.out.checker.Verdict() // begins the probe, whose result is logged; otherwise the first lookup does
	}
}

// drain answers the lookups that are under way, and closes all listeners.
func (s *service) drain() {
	s.notify(daemon.SdNotifyStopping)
	ctx, cancel := context.WithTimeout(context.Background(), socketmap.DrainTimeout)
	defer cancel()
	if err := s.sockets.Shutdown(ctx); err != nil {
		s.log.Warn("some lookups were not answered before the daemon stopped", "err", err)
	}
	ctx, cancel = context.WithTimeout(context.Background(), controlTime)
	defer cancel()
	if s.control.Shutdown(ctx) != nil {
		_ = s.control.Close() // whoever still reads an answer sees that it broke off
	}
	_ = s.observer.Shutdown(ctx)
}

// notify tells systemd, if it asked to be told.
func (s *service) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		s.log.Warn("systemd could not be notified", "state", state, "err", err)
	}
}

// health is /v1/health.
func (s *service) health() control.Health {
	open, stats := s.listeners.sockets(), s.maps.Stats()
	var asked []string
	for i := range stats.Maps {
		if stats.Maps[i].Replies() > 0 {
			asked = append(asked, stats.Maps[i].Map)
		}
	}
	return control.Health{
		Version: version, PID: os.Getpid(), Started: s.started, Config: s.cfg.File,
		Listeners: open.names(keyListen), Cache: s.cfg.Cache.Path, Metrics: strings.Join(open.names(keyMetrics), " "),
		Control: strings.Join(open.names(keyControl), " "), Overridden: s.overridden,
		Maps: s.cfg.Maps, Asked: asked, Troubles: slices.Concat(s.missing, s.observer.Troubles()), ClockOff: int64(s.clock.Off() / time.Second),
		UnknownMap: stats.LastUnknown.Name, UnknownAt: stats.LastUnknown.At,
	}
}

// observed is what the observer reads.
func (s *service) observed() observe.Sources {
	host, _ := os.Hostname()
	return observe.Sources{
		Version: version, Commit: commit, Host: cmp.Or(host, "a machine without a name"), Started: s.started,
		Stats: func() observe.Stats {
			return observe.Stats{
				Keeper: s.keeper.Stats(), Cache: s.store.Stats(), Maps: s.maps.Stats(), Sockets: s.sockets.Stats(),
				DANE: s.out.checker.Stats(), Reports: s.reports.Stats(), Fleet: s.fleetStats(),
			}
		},
		// The system's roots are read once in the life of a process: they show in
		// the fetches.
		Roots: func() (err error) {
			if s.cfg.Fetch.CAFile != "" {
				_, err = policy.LoadRoots(s.cfg.Fetch.CAFile)
			}
			return err
		},
		Log: s.log, List: func(after string, limit int) ([]cache.Record, string, error) { return s.keeper.List(after, limit) },
		Held: func(domain string) (control.Held, error) { return s.control.Held(domain) },
		TLS:  func() (reporting.Overview, error) { return s.reports.Overview(false) },
	}
}

// reload reads the configuration again and takes what can change while the
// daemon runs: [exempt] and log_level. A broken file changes nothing.
func (s *service) reload(file string) {
	s.notify(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
	defer s.notify(daemon.SdNotifyReady)
	s.observer.Look()

	cfg, err := config.Load(file)
	if err != nil {
		s.log.Error("the configuration was not reloaded", "err", err,
			"next", "the old one stays in force; correct it and reload: with this file, a restart would answer every lookup TEMP")
		return
	}
	s.maps.SetExempt(cfg.Exempt.Domains)
	s.level.Set(cfg.LogLevel)
	s.log.Info("configuration read again", "file", cfg.File, "exempt", len(cfg.Exempt.Domains))
	for _, w := range slices.Concat(cfg.Warnings, ignored(cfg, s.listeners.sockets(), s.overridden)) {
		s.log.Warn(w)
	}
	if late := needRestart(s.cfg, cfg, s.overridden); len(late) > 0 {
		s.log.Warn("some changed settings take effect only after a restart", "changed", strings.Join(late, " "), "next", "systemctl restart sts-tlsmap")
	}
}

// needRestart names the keys that differ and cannot be changed while the daemon
// runs. A restart does not help those that systemd's sockets replace.
func needRestart(was, is *config.Config, overridden []string) []string {
	return slices.DeleteFunc(config.Changed(was, is), func(key string) bool {
		return key == "log_level" || strings.HasPrefix(key, "exempt.") || slices.Contains(overridden, key)
	})
}
