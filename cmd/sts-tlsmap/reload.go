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

	const next = "the old one stays in force; correct it and reload"
	cfg, err := config.Load(file)
	if err == nil {
		err = s.maps.SetExempt(cfg.Exempt.Domains)
	}
	var mistakes config.Errors
	switch {
	case errors.As(err, &mistakes):
		for _, m := range mistakes {
			s.log.Error("mistake in the configuration", "err", m.Error())
		}
		s.log.Error("the configuration was not reloaded", "mistakes", len(mistakes), "next", next)
		return
	case err != nil:
		s.log.Error("the configuration could not be reloaded", "err", err, "next", next)
		return
	}
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
