package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
)

// probeWait is how long -check waits for the probe of the resolver.
const probeWait = 5 * time.Second

// askWait is how long -check waits for the daemon.
const askWait = 5 * time.Second

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
	for _, w := range warnings(cfg, out.resolver) {
		fmt.Fprintf(a.stderr, "sts-tlsmap: warning: %s\n", w)
	}
	if dir := filepath.Dir(cfg.Cache.Path); !isDir(dir) {
		fmt.Fprintf(a.stderr, "sts-tlsmap: warning: cache.path: there is no folder %s: the daemon will not start before it is there\n", dir)
	}
	a.checkDNSSEC(cfg, out.checker)
	a.checkDaemon(cfg)
	name := cfg.File
	if name == "" {
		name = config.DefaultPath + " (absent: the defaults)"
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

// checkDaemon says what is wrong with the daemon, where it runs and lets itself
// be asked. It is a warning: the configuration may be good all the same, and a
// reload must not fail for it.
func (a *app) checkDaemon(cfg *config.Config) {
	ctx, cancel := context.WithTimeout(context.Background(), askWait)
	defer cancel()
	client := control.NewClient(cfg.Control.Address)
	defer client.Close()
	h, err := client.Health(ctx)
	switch {
	case errors.Is(err, control.ErrNoDaemon):
		return
	case err != nil:
		fmt.Fprintf(a.stderr, "sts-tlsmap: warning: the daemon could not be asked what is wrong with it: %v\n", err)
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
