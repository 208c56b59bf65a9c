package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
)

const (
	beatsPerPeriod = 3         // signs of life to the watchdog in its period: two may be lost
	probeMap       = "postfix" // is always there
)

// watch tells systemd's watchdog that the probe succeeds (WatchdogSec=,
// sd_watchdog_enabled(3)), until ctx ends. Without one it returns at once.
func (s *service) watch(ctx context.Context, probe func(context.Context) error) {
	period, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		s.log.Warn("systemd's watchdog cannot be served", "err", err, "next", "see WatchdogSec= in the unit")
	}
	if err != nil || period <= 0 {
		return
	}
	beat(ctx, period/beatsPerPeriod, probe,
		func() { s.notify(daemon.SdNotifyWatchdog) },
		func(err error) {
			s.log.Error("lookups are not being answered", "err", err, "next", "systemd restarts the daemon if it stays so")
		})
}

// beat probes once in every interval, and calls alive or failed. A probe has
// half of the interval; one that hangs longer is a beat that is missing.
func beat(ctx context.Context, interval time.Duration, probe func(context.Context) error, alive func(), failed func(error)) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for ctx.Err() == nil {
		probing, cancel := context.WithTimeout(ctx, interval/2)
		err := probe(probing)
		cancel()
		if err == nil {
			alive()
		} else if ctx.Err() == nil {
			failed(err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// probe asks every listener in turn, as an MTA does, for the name that the
// keeper answers after its table and the store.
//
// This process may be unable to reach a unix socket, because its folder was removed
// with Postfix or its mode admits only Postfix. A restart would not help. If this is
// true of all sockets, probe asks the maps directly.
func (s *service) probe(ctx context.Context) error { return s.probeListeners(ctx, "NOTFOUND", s.maps) }

// probeListeners is probe where the replies begin with word.
func (s *service) probeListeners(ctx context.Context, word string, maps socketmap.Handler) error {
	check := func(reply string, err error) error {
		if err == nil && !strings.HasPrefix(reply, word) {
			err = fmt.Errorf("the reply for %s is %q", keeper.ProbeDomain, reply)
		}
		return err
	}
	reached := false
	for _, l := range s.listeners[keyListen] {
		e := endpoint.Of(l.Addr())
		err := check(socketmap.Query(ctx, e, probeMap, keeper.ProbeDomain))
		if e.Network == "unix" && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", e, err)
		}
		reached = true
	}
	if reached {
		return nil
	}
	return check(string(maps.AppendReply(ctx, nil, []byte(probeMap), []byte(keeper.ProbeDomain))), nil)
}
