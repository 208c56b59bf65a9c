package main

import (
	"errors"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
)

// reload reads the configuration again and takes what can change while the
// daemon runs: [exempt] and log_level. A broken file changes nothing.
func (s *service) reload(file string) {
	s.notify(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
	defer s.notify(daemon.SdNotifyReady)
	s.observer.Look()

	cfg, err := config.Load(file)
	if err == nil {
		err = s.maps.SetExempt(cfg.Exempt.Domains)
	}
	if err != nil {
		var errs config.Errors
		if !errors.As(err, &errs) {
			s.log.Error("the configuration could not be reloaded", "err", err, "next", "the old one stays in force; correct it and reload")
		}
		for _, e := range errs {
			s.log.Error("mistake in the configuration", "err", e.Error())
		}
		if len(errs) > 0 {
			s.log.Error("the configuration was not reloaded", "mistakes", len(errs), "next", "the old one stays in force; correct it and reload")
		}
		return
	}
	s.level.Set(cfg.LogLevel)
	late := needRestart(s.cfg, cfg, s.listeners.overridden())
	s.log.Info("configuration read again", "file", cfg.File, "exempt", len(cfg.Exempt.Domains))
	for _, w := range ignored(cfg, s.listeners.opened()) {
		s.log.Warn(w)
	}
	if len(late) > 0 {
		s.log.Warn("some changed settings take effect only after a restart", "changed", strings.Join(late, " "), "next", "systemctl restart sts-tlsmap")
	}
}

// needRestart names the keys that differ and cannot be changed while the daemon
// runs. A restart does not help those in whose place systemd's sockets are.
func needRestart(was, is *config.Config, overridden []string) []string {
	return slices.DeleteFunc(config.Changed(was, is), func(key string) bool {
		return key == "log_level" || strings.HasPrefix(key, "exempt.") || slices.Contains(overridden, key)
	})
}
