package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
)

// probeWait is how long -check waits for the probe of the resolver.
const probeWait = 5 * time.Second

// check is -check: everything about the configuration that can be known
// without starting the daemon, and what a daemon that runs says is wrong with
// it. The only questions sent out are those that tell whether the resolver
// validates.
func (a *app) check() (int, error) {
	cfg, err := config.Load(a.flags.config)
	if err != nil {
		var errs config.Errors
		if errors.As(err, &errs) {
			return 0, err // each with its place: there is nothing to add
		}
		return 0, configError(err)
	}
	out, err := newOutside(cfg, nil)
	if err != nil {
		return 0, err
	}
	if _, _, err := newMaps(cfg); err != nil {
		return 0, err
	}
	if err := cache.CheckPath(cfg.Cache.Path); err != nil {
		return 0, cacheError(err, cfg)
	}
	h, healthErr := a.checkedPeer(cfg)
	open := openedBy(cfg)
	if healthErr == nil {
		open = openedNow(&h).after(cfg)
	}
	for _, w := range slices.Concat(warnings(cfg, out.resolver, open), folderWarnings(cfg, open.overridden)) {
		fmt.Fprintf(a.stderr, "sts-tlsmap: warning: %s\n", w)
	}
	if w := cacheWarning(cfg, os.DirFS("/"), mayWrite); w != "" {
		fmt.Fprintf(a.stderr, "sts-tlsmap: warning: %s\n", w)
	}
	if out.proxy != "" {
		fmt.Fprintf(a.stdout, "proxy: %s, by this environment; the daemon goes by its own\n", out.proxy)
	}
	a.checkDNSSEC(cfg, out.checker)
	a.checkDaemon(cfg, &h, healthErr)
	name := cfg.File
	if name == "" {
		name = config.DefaultPath + " (absent; these are the defaults)"
	}
	fmt.Fprintf(a.stdout, "%s: ok\n", name)
	return exitDone, nil
}

// checkDNSSEC says whether the maps with DANE can follow it. It is a warning
// where the configuration shows that it is wanted.
func (a *app) checkDNSSEC(cfg *config.Config, checker *dane.Checker) {
	ctx, cancel := context.WithTimeout(context.Background(), probeWait)
	defer cancel()
	v := checker.Probe(ctx).Verdict
	switch {
	case v == dane.Validates:
		fmt.Fprintf(a.stdout, "DNSSEC: %s\n", v)
	case cfg.SetsDANE():
		fmt.Fprintf(a.stderr, "sts-tlsmap: warning: DNSSEC: %s; %s\n", v, consequence(v))
	default:
		fmt.Fprintf(a.stdout, "DNSSEC: %s; %s\n", v, consequence(v))
	}
}

// checkedPeer asks the daemon at the control socket of the file. One that
// systemd gave another socket is found at the usual one, if it has read that
// file.
func (a *app) checkedPeer(cfg *config.Config) (control.Health, error) {
	h, err := a.healthAt(cfg.Control.Address)
	usual := config.Default().Control.Address
	if !errors.Is(err, control.ErrNoDaemon) || cfg.Control.Address == usual {
		return h, err
	}
	if other, e := a.healthAt(usual); e == nil && other.Config == cfg.File && slices.Contains(other.Overridden, keyControl) {
		return other, nil
	}
	return h, err
}

func (a *app) healthAt(path string) (control.Health, error) {
	client := control.NewClient(path)
	defer client.Close()
	return a.askHealth(context.Background(), client)
}

// openedNow are the sockets that a daemon has told of.
func openedNow(h *control.Health) opened {
	return opened{listen: h.Listeners, metrics: strings.Fields(h.Metrics), control: h.Control, overridden: h.Overridden}
}

// checkDaemon says what is wrong with the daemon, where it runs and lets itself
// be asked. It is a warning: the configuration may be good all the same, and a
// reload must not fail for it.
func (a *app) checkDaemon(cfg *config.Config, h *control.Health, err error) {
	switch {
	case errors.Is(err, control.ErrNoDaemon):
		return
	case err != nil:
		fmt.Fprintf(a.stderr, "sts-tlsmap: warning: the daemon could not be asked what is wrong with it: %v\n", err)
		if next := (&peer{cfg: cfg}).next(err); next != "" {
			fmt.Fprintf(a.stderr, "sts-tlsmap: hint: %s\n", next)
		}
		return
	}
	for _, t := range h.Troubles {
		fmt.Fprintf(a.stderr, "sts-tlsmap: warning: the daemon: %s; %s\n", t.What, t.Next)
	}
}

// consequence says what a verdict other than Validates means for the maps with
// DANE.
func consequence(v dane.Verdict) string {
	if v == dane.NoVerdict {
		return "the maps with DANE go by the AD bit of its answers, and by what they knew before"
	}
	return "the maps with DANE answer as those without"
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}
