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

// Keys of the configuration that systemd's sockets replace.
const (
	keyListen  = "listen"
	keyControl = "control"
	keyMetrics = "metrics"
)

// sockets are the endpoints of a daemon, by the key that names them.
type sockets map[string][]string

// socketsOf are those that the configuration has.
func socketsOf(cfg *config.Config) sockets {
	s := sockets{keyControl: {cfg.Control.Address}}
	for _, e := range cfg.Listen {
		s[keyListen] = append(s[keyListen], e.String())
	}
	if cfg.Metrics.Network != "" {
		s[keyMetrics] = []string{cfg.Metrics.String()}
	}
	return s
}

// replace puts in the sockets of those keys.
func (s sockets) replace(with sockets, keys []string) {
	for _, key := range keys {
		s[key] = with[key]
	}
}

// warnings name settings that are allowed and seldom meant: of a daemon with
// these sockets, some of which systemd passed in place of the keys overridden.
func warnings(cfg *config.Config, r *resolver.Resolver, s sockets, overridden []string) []string {
	list := slices.Concat(cfg.Warnings, ignored(cfg, s, overridden))
	exposed := func(key, risk string) {
		for _, e := range s[key] {
			if at, err := endpoint.Parse(e); err == nil && !at.Loopback() {
				list = append(list, fmt.Sprintf("%s: %s can be reached from the network: anyone who can connect %s; "+
					"use a loopback address or a firewall", key, e, risk))
			}
		}
	}
	exposed(keyListen, "can make the daemon look up domains")
	exposed(keyMetrics, "sees how much mail goes out, and what is wrong")
	for _, server := range r.Servers() {
		if r.TrustsAD() && !server.Addr().Unmap().IsLoopback() {
			list = append(list, fmt.Sprintf("the AD bit of the resolver %s is trusted across a network, where it can be forged; "+
				"run a validating resolver on this machine, or set trust_ad = false in [dns]", server))
		}
	}
	return list
}

// folderWarnings name the folders that are missing and that the daemon needs.
func folderWarnings(cfg *config.Config, overridden []string) []string {
	var list []string
	warn := func(key, path, unless string) {
		if dir := filepath.Dir(path); !slices.Contains(overridden, key) && !isDir(dir) {
			list = append(list, fmt.Sprintf("%s: there is no folder %s: the daemon will not start before it is there%s", key, dir, unless))
		}
	}
	for _, e := range append(slices.Clone(cfg.Listen), cfg.Control) {
		key := keyListen
		if e == cfg.Control {
			key = keyControl
		}
		if e.Network == "unix" {
			warn(key, e.Address, ", unless systemd passes the sockets")
		}
	}
	warn("cache.path", cfg.Cache.Path, "")
	return list
}

// ignored names the keys that somebody set and that have no effect.
func ignored(cfg *config.Config, s sockets, overridden []string) []string {
	units := map[string]string{
		keyListen: "sts-tlsmap.socket", keyControl: "sts-tlsmap-control.socket", keyMetrics: "sts-tlsmap-metrics.socket",
	}
	var list []string
	wanted, usual := socketsOf(cfg), socketsOf(config.Default())
	for _, key := range overridden {
		isOpen := func(e string) bool { return slices.Contains(s[key], e) }
		if slices.Equal(wanted[key], usual[key]) || !slices.ContainsFunc(wanted[key], func(e string) bool { return !isOpen(e) }) {
			continue
		}
		real := strings.Join(s[key], " ")
		if real == "" {
			real = "none"
		}
		list = append(list, fmt.Sprintf("%s: %s in the file has no effect, since systemd holds the sockets: %s; "+
			"change that with systemctl edit %s, and take the key out of the file", key, strings.Join(wanted[key], " "), real, units[key]))
	}
	return list
}
