package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
)

// probeWait is how long -check waits for the probe of the resolver.
const probeWait = 5 * time.Second

// check is -check: everything about the configuration that can be known without
// starting the daemon, and the conditions of a daemon that runs. The only
// questions sent out are those that tell whether the resolver validates.
func (a *app) check(ctx context.Context) (int, error) {
	out, err := newOutside(a.cfg, nil)
	if err != nil {
		return 0, err
	}
	if _, _, err := newMaps(a.cfg); err != nil {
		return 0, err
	}
	if err := cache.CheckPath(a.cfg.Cache.Path); err != nil {
		return 0, cacheError(err, a.cfg)
	}
	h, open := &a.health, socketsOf(a.cfg)
	now := map[string][]string{keyListen: h.Listeners, keyControl: {"unix:" + h.Control}, keyMetrics: strings.Fields(h.Metrics)}
	for _, key := range h.Overridden {
		open[key] = nil
		for _, name := range now[key] {
			if e, err := endpoint.Parse(name); err == nil {
				open[key] = append(open[key], e)
			}
		}
	}
	for _, w := range slices.Concat(warnings(a.cfg, out.resolver, open, h.Overridden), folderWarnings(a.cfg, h.Overridden)) {
		a.warn("%s", w)
	}
	if out.proxy != "" {
		fmt.Fprintf(a.stdout, "proxy: %s, by this environment; the daemon goes by its own\n", out.proxy)
	}
	a.checkDNSSEC(ctx, out.checker)
	a.checkDaemon()
	fmt.Fprintf(a.stdout, "%s: ok\n", cmp.Or(a.cfg.File, config.DefaultPath+" (absent; these are the defaults)"))
	return exitDone, nil
}

func (a *app) warn(format string, args ...any) { a.say("warning: "+format, args...) }

// checkDNSSEC says whether the maps with DANE can follow it. It is a warning
// where the configuration shows that it is wanted.
func (a *app) checkDNSSEC(ctx context.Context, checker *dane.Checker) {
	ctx, cancel := context.WithTimeout(ctx, probeWait)
	defer cancel()
	v := checker.Probe(ctx).Verdict
	words := fmt.Sprintf("DNSSEC: %s", v)
	switch {
	case v == dane.NoVerdict:
		words += "; the maps with DANE go by the AD bit of its answers, and by what they knew before"
	case v != dane.Validates:
		words += "; the maps with DANE answer as those without"
	}
	if v != dane.Validates && a.cfg.SetsDANE() {
		a.warn("%s", words)
	} else {
		fmt.Fprintln(a.stdout, words)
	}
}

// checkDaemon says what is wrong with the daemon, where it runs and answers. It
// is a warning: the configuration may be good all the same.
func (a *app) checkDaemon() {
	switch {
	case errors.Is(a.peerErr, control.ErrNoDaemon):
	case a.peerErr != nil:
		a.warn("the daemon could not be asked what is wrong with it: %v", a.peerErr)
		if next := a.nextOf(a.peerErr); next != "" {
			a.say("hint: %s", next)
		}
	default:
		for _, t := range a.health.Troubles {
			a.warn("the daemon: %s; %s", t.What, t.Next)
		}
	}
}
