package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// opened are the sockets of a daemon that runs.
type opened struct {
	listen, metrics []string
	control         string   // empty: none
	overridden      []string // keys of the file that do not count, for systemd has passed sockets
}

// openedBy are those that the configuration would have a daemon open by itself.
func openedBy(cfg *config.Config) opened {
	o := opened{control: cfg.Control.Address}
	for _, e := range cfg.Listen {
		o.listen = append(o.listen, e.String())
	}
	if cfg.Metrics.Network != "" {
		o.metrics = []string{cfg.Metrics.String()}
	}
	return o
}

func (l *listeners) opened() opened {
	return opened{listen: l.names(), metrics: l.metricsNames(), control: l.controlName(), overridden: l.overridden()}
}

// after are the sockets that will be open when the daemon, which has these now,
// is started again with the configuration.
func (o opened) after(cfg *config.Config) opened {
	next := openedBy(cfg)
	if slices.Contains(o.overridden, keyListen) {
		next.listen = o.listen
	}
	if slices.Contains(o.overridden, keyControl) {
		next.control = o.control
	}
	if slices.Contains(o.overridden, keyMetrics) {
		next.metrics = o.metrics
	}
	next.overridden = o.overridden
	return next
}

// warnings are what is allowed and seldom meant.
func warnings(cfg *config.Config, r *resolver.Resolver, o opened) []string {
	list := ignored(cfg, o)
	for _, e := range o.listen {
		if isOpen(e) {
			list = append(list, fmt.Sprintf("listen: %s can be reached from the network: anyone who can connect can make the daemon look up domains; "+
				"use a loopback address or a firewall", e))
		}
	}
	for _, e := range o.metrics {
		if isOpen(e) {
			list = append(list, fmt.Sprintf("metrics: %s can be reached from the network: anyone who can connect sees how much mail goes out, "+
				"and what is wrong; use a loopback address or a firewall", e))
		}
	}
	if r.TrustsAD() {
		for _, s := range r.Servers() {
			if !isLoopback(s) {
				list = append(list, fmt.Sprintf("the AD bit of the resolver %s is trusted across a network, where it can be forged; "+
					"run a validating resolver on this machine, or set trust_ad = false in [dns]", s))
			}
		}
	}
	return list
}

// folderWarnings name the sockets of the file that have no folder to be in.
// Those in whose place systemd's are need none.
func folderWarnings(cfg *config.Config, overridden []string) []string {
	var list []string
	warn := func(key string, e endpoint.Endpoint) {
		if dir := filepath.Dir(e.Address); e.Network == "unix" && !slices.Contains(overridden, key) && !isDir(dir) {
			list = append(list, fmt.Sprintf("%s: there is no folder %s: the daemon will not start before it is there, "+
				"unless systemd passes the sockets", key, dir))
		}
	}
	for _, e := range cfg.Listen {
		warn(keyListen, e)
	}
	warn(keyControl, cfg.Control)
	return list
}

// isOpen says whether others than this machine reach an endpoint.
func isOpen(s string) bool {
	e, err := endpoint.Parse(s)
	return err == nil && !e.Loopback()
}

// ignored names the keys of the file that do not count, where that makes a
// difference: somebody has set them, and expects what does not happen.
func ignored(cfg *config.Config, o opened) []string {
	list := slices.Clone(cfg.Warnings)
	wanted, usual := openedBy(cfg), openedBy(config.Default())
	for _, k := range []struct {
		key, unit           string
		wanted, usual, real []string
	}{
		{keyListen, "sts-tlsmap.socket", wanted.listen, usual.listen, o.listen},
		{keyControl, "sts-tlsmap-control.socket", []string{wanted.control}, []string{usual.control}, []string{o.control}},
		{keyMetrics, "sts-tlsmap-metrics.socket", wanted.metrics, usual.metrics, o.metrics},
	} {
		missing := slices.ContainsFunc(k.wanted, func(e string) bool { return !slices.Contains(k.real, e) })
		if !slices.Contains(o.overridden, k.key) || slices.Equal(k.wanted, k.usual) || !missing {
			continue
		}
		list = append(list, fmt.Sprintf("%s: %s in the file has no effect, since systemd holds the sockets: %s; "+
			"change that with systemctl edit %s, and take the key out of the file",
			k.key, strings.Join(k.wanted, " "), strings.Join(nonEmpty(k.real), " "), k.unit))
	}
	return list
}

// nonEmpty has a word for nothing.
func nonEmpty(list []string) []string {
	if strings.Join(list, "") == "" {
		return []string{"none"}
	}
	return list
}
