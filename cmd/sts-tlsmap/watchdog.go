package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
)

const (
	// beatsPerPeriod is how often the watchdog is told in its period that all
	// is well: two beats may be lost.
	beatsPerPeriod = 3
	// probeKey is an address, which is answered without a packet sent.
	probeKey = "[192.0.2.1]"
	// probeDomain cannot exist (RFC 6761, 6.4) and is not held.
	probeDomain = "watchdog.invalid"
)

// watch tells systemd's watchdog that lookups are answered (WatchdogSec=,
// sd_watchdog_enabled(3)), until ctx ends. Without one it returns at once.
func (s *service) watch(ctx context.Context) {
	period, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		s.log.Warn("systemd's watchdog is not served", "err", err, "next", "see WatchdogSec= in the unit")
		return
	}
	if period <= 0 {
		return
	}
	beat(ctx, period/beatsPerPeriod, s.probe,
		func() { s.notify(daemon.SdNotifyWatchdog) },
		func(err error) {
			s.log.Error("no lookup is answered", "err", err, "next", "systemd restarts the daemon if it stays so")
		})
}

// beat probes once in every interval, and calls alive or failed. A probe has
// half of the interval. One that hangs nevertheless is reported, and the next
// does not begin before it has ended.
func beat(ctx context.Context, interval time.Duration, probe func(context.Context) error, alive func(), failed func(error)) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var result chan error // nil: no probe runs
	for {
		if result == nil {
			probing := make(chan error, 1)
			result = probing
			go func() {
				ctx, cancel := context.WithTimeout(ctx, interval/2)
				defer cancel()
				probing <- probe(ctx)
			}()
		}
		select {
		case err := <-result:
			result = nil
			if err == nil {
				alive()
			} else if ctx.Err() == nil {
				failed(err)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		case <-tick.C:
			failed(fmt.Errorf("no answer in %s", interval))
		case <-ctx.Done():
			return
		}
	}
}

// probe goes the way of a lookup as far as that goes without a packet: in
// through the first listener, as an MTA, and to the store.
func (s *service) probe(ctx context.Context) error {
	reply, err := socketmap.Query(ctx, endpointOf(s.listeners.socketmap[0].Addr()), "postfix", probeKey)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(reply, "NOTFOUND") {
		return fmt.Errorf("the reply for %s is %q", probeKey, reply)
	}
	// An error of the store is dealt with elsewhere; that it returns is the point.
	if _, err := s.keeper.Get(probeDomain); err != nil && !errors.Is(err, cache.ErrNotFound) {
		s.log.Debug("the store answers with an error", "err", err)
	}
	return nil
}
