package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/observe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

const (
	// drainTime is how long lookups may still take after SIGTERM.
	drainTime = socketmap.DrainTimeout
	// keeperTime is how long the keeper may still write after that.
	keeperTime = 15 * time.Second
	// controlTime is how long those who look on may still take.
	controlTime = time.Second
)

// A service is the running daemon.
type service struct {
	cfg     *config.Config
	log     *slog.Logger
	level   *slog.LevelVar
	started time.Time

	out      *outside
	store    *cache.Store
	keeper   *keeper.Keeper
	maps     *tlsmap.Server
	exempt   *exempt.List
	sockets  *socketmap.Server
	control  *control.Server
	observer *observe.Observer

	listeners listeners
	failed    chan error // of what must not end by itself
}

// daemon runs the daemon until SIGTERM or SIGINT.
func (a *app) daemon(cfg *config.Config) (int, error) {
	// Caught from here on: a signal that comes while the cache is opened must
	// not cut that short.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer signal.Stop(signals)

	level := new(slog.LevelVar)
	level.Set(cfg.LogLevel)
	s := &service{
		cfg: cfg, level: level, log: newLogger(a.stderr, level), started: time.Now(), failed: make(chan error, 8),
	}
	if err := s.open(); err != nil {
		return 0, err
	}
	if err := s.listen(); err != nil {
		return 0, errors.Join(err, s.store.Close())
	}
	return exitDone, s.run(signals, a.flags.config)
}

// open makes everything that answers, the cache first of all: no listener is
// served before it is open.
func (s *service) open() error {
	cfg := s.cfg
	var err error
	if s.out, err = newOutside(cfg, s.log); err != nil {
		return err
	}
	table, err := tlsmap.NewTable(cfg.Maps)
	if err != nil {
		return err
	}
	if s.store, err = openCache(cfg, s.inUse, s.log); err != nil {
		return err
	}
	s.observer = observe.New(s.observed(table))
	s.keeper = keeper.New(keeper.Options{
		Store:   s.store,
		Network: s.out.client,
		Prepare: tlsmap.Prepare,
		Current: tlsmap.MatchListCurrent,
		Observe: s.observer.Observe,
		Log:     s.log,

		LookupTimeout:     cfg.Lookup.Timeout,
		FetchTimeout:      cfg.Fetch.Timeout,
		LookupConcurrency: cfg.Lookup.Concurrency,

		Recheck:            cfg.Refresh.Recheck,
		UnusedAfter:        cfg.Refresh.UnusedAfter,
		FetchRate:          float64(cfg.Refresh.FetchRate),
		RefreshConcurrency: cfg.Refresh.Concurrency,
	})
	s.maps = tlsmap.NewServer(table, tlsmap.Options{
		Policies: s.keeper, NextHops: s.out.checker, Timeout: cfg.Lookup.Timeout, Log: s.log,
	})
	if err := s.maps.SetExempt(cfg.Exempt.Domains); err != nil {
		return errors.Join(err, s.store.Close())
	}
	if s.exempt, err = exempt.Open(s.store, s.maps.SetTimedExempt, s.log); err != nil {
		return errors.Join(err, s.store.Close())
	}
	s.sockets = socketmap.NewServer(s.maps, socketmap.Options{MaxConnections: cfg.Socket.MaxConnections, Log: s.log})
	s.control = control.NewServer(control.Options{
		Keeper: s.keeper, Health: s.health, Stats: s.stats, Metrics: s.observer.Metrics(), Exempt: s.maps.IsExempt, Log: s.log,
		Learner: s.keeper, Exemptions: s.exempt, Rehearsed: s.maps.Rehearsed, ExemptUntil: s.exemptUntil, ExemptBy: s.maps.ExemptBy,
		DANE: s.out.checker.Findings,
	})
	return nil
}

// exemptUntil says when a domain's exemption ends; zero: it has none that does.
func (s *service) exemptUntil(domain string) time.Time {
	until, _ := s.maps.Exempt(domain)
	return until
}

// inUse asks the keeper whether a policy may be in use. The cache is opened
// before there is one, and gives nothing up until it runs.
func (s *service) inUse(domain []byte) bool { return s.keeper == nil || s.keeper.InUse(domain) }

// openCache opens the cache, or says why it cannot be and what to do.
func openCache(cfg *config.Config, inUse func([]byte) bool, log *slog.Logger) (*cache.Store, error) {
	if dir := filepath.Dir(cfg.Cache.Path); !isDir(dir) {
		return nil, hint(fmt.Errorf("the cache cannot be opened: there is no folder %s", dir),
			"make it, owned by the daemon's user, or set path in [cache]")
	}
	store, err := cache.Open(cfg.Cache.Path, cache.Options{MaxSize: cfg.Cache.MaxSize, InUse: inUse, Log: log})
	if err != nil {
		return nil, cacheError(err, cfg)
	}
	return store, nil
}

// cacheError adds the hint that fits an error of opening the cache.
func cacheError(err error, cfg *config.Config) error {
	dir := filepath.Dir(cfg.Cache.Path)
	err = fmt.Errorf("the cache cannot be opened: %w", err)
	var locked *cache.LockedError
	var noFile *cache.NotAFileError
	switch {
	case errors.As(err, &noFile):
		return hint(err, "set path in [cache]")
	case errors.As(err, &locked):
		return hint(err, "stop that daemon, or give this one a cache of its own: path in [cache]")
	case errors.Is(err, unix.EROFS):
		return hint(err, "%s", letWrite(dir))
	case errors.Is(err, fs.ErrPermission):
		return hint(err, "the folder %s and what is in it must belong to the daemon's user (uid %d)", dir, os.Geteuid())
	}
	return hint(err, "see that the disk is there and has room, or set path in [cache]")
}

// run serves until a signal says to end, or until something fails that must
// not.
func (s *service) run(signals <-chan os.Signal, file string) error {
	keeping, stopKeeping := context.WithCancel(context.Background())
	defer stopKeeping()
	kept := make(chan error, 1)
	go func() { kept <- s.keeper.Run(keeping) }()
	for _, l := range s.listeners.socketmap {
		go s.guard(func() error { return s.sockets.Serve(l) })
	}
	if l := s.listeners.control; l != nil {
		go s.guard(func() error { return s.control.Serve(l) })
	}
	for _, l := range s.listeners.metrics {
		go s.guard(func() error { return s.observer.Serve(l) })
	}
	s.announce()
	watching, stopWatching := context.WithCancel(keeping)
	defer stopWatching()
	go s.watch(watching)
	go s.observer.Run(watching)
	go s.out.checker.Run(watching)

	var failure error
	for failure == nil {
		select {
		case failure = <-s.failed:
		case sig := <-signals:
			if sig == syscall.SIGHUP {
				s.reload(file)
				continue
			}
			signal.Reset(syscall.SIGTERM, syscall.SIGINT) // a second one ends it at once
			s.log.Info("ending", "signal", sig.String())
		}
		break
	}
	stopWatching()
	return errors.Join(failure, s.stop(stopKeeping, kept))
}

// guard reports what ended by itself.
func (s *service) guard(serve func() error) {
	if err := serve(); err != nil {
		select {
		case s.failed <- err:
		default: // one is enough to end
		}
	}
}

// announce tells systemd and the log that lookups are answered.
func (s *service) announce() {
	s.notify(daemon.SdNotifyReady)
	servers := make([]string, 0, 4)
	for _, a := range s.out.resolver.Servers() {
		servers = append(servers, a.String())
	}
	stats := s.store.Stats()
	s.log.Info("ready", "version", version, "listen", s.listeners.names(), "control", s.listeners.controlName(),
		"cache", s.cfg.Cache.Path, "policies", stats.Policies(), "resolver", servers, "trust_ad", s.out.resolver.TrustsAD(),
		"metrics", s.listeners.metricsNames(), "proxy", cmp.Or(s.out.proxy, "none"))
	for _, w := range warnings(s.cfg, s.out.resolver, s.listeners.opened()) {
		s.log.Warn(w)
	}
	if s.listeners.control == nil {
		s.log.Warn("systemd passed no control socket: -cache, -exempt and the other modes cannot ask this daemon",
			"next", "systemctl unmask sts-tlsmap-control.socket, and restart")
	}
	if s.cfg.SetsDANE() {
		s.out.checker.Verdict() // begins the probe, whose result is logged; otherwise the first lookup does
	}
}

// stop ends everything in the order of need: lookups are answered to the end,
// then what they found is written.
func (s *service) stop(stopKeeping func(), kept <-chan error) error {
	s.notify(daemon.SdNotifyStopping)
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	if err := s.sockets.Shutdown(ctx); err != nil {
		s.log.Warn("some lookups were not answered before the daemon stopped", "err", err)
	}
	controlCtx, cancelControl := context.WithTimeout(context.Background(), controlTime)
	defer cancelControl()
	if err := s.control.Shutdown(controlCtx); err != nil {
		s.log.Warn("the control socket did not close cleanly", "err", err)
	}
	if err := s.observer.Shutdown(controlCtx); err != nil {
		s.log.Warn("the metrics listener did not close cleanly", "err", err)
	}
	stopKeeping()
	var err error
	select {
	case err = <-kept:
		if err != nil {
			err = fmt.Errorf("not everything could be written to the cache: %w", err)
		}
	case <-time.After(keeperTime):
		err = errors.New("not everything could be written to the cache: the disk does not answer")
	}
	if e := s.store.Close(); e != nil {
		err = errors.Join(err, fmt.Errorf("closing the cache: %w", e))
	}
	s.log.Info("ended")
	return err
}

// notify tells systemd, if it asked to be told.
func (s *service) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		s.log.Warn("systemd could not be notified", "state", state, "err", err)
	}
}

// health is /v1/health.
func (s *service) health() control.Health {
	return control.Health{
		Version: version, PID: os.Getpid(), Started: s.started, Config: s.cfg.File,
		Listeners: s.listeners.names(), Cache: s.cfg.Cache.Path, Metrics: strings.Join(s.listeners.metricsNames(), " "),
		Control: s.listeners.controlName(), Overridden: s.listeners.overridden(), Lost: s.maps.RehearsalsLost(),
		Maps: s.cfg.Maps, Troubles: s.observer.Troubles(),
	}
}
