package main

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// warnings name settings that are allowed and seldom meant: of a daemon with
// these sockets, some of which systemd passed in place of the keys overridden.
func warnings(cfg *config.Config, r *resolver.Resolver, s sockets, overridden []string) []string {
	list := slices.Concat(cfg.Warnings, ignored(cfg, s, overridden))
	exposed := func(key, risk string) {
		for _, e := range s[key] {
			if !e.Loopback() {
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
func folderWarnings(cfg *config.Config, overridden []string) (list []string) {
	wanted := socketsOf(cfg)
	wanted["cache.path"] = []endpoint.Endpoint{{Network: "unix", Address: cfg.Cache.Path}}
	for _, key := range slices.Sorted(maps.Keys(wanted)) {
		for _, e := range wanted[key] {
			if dir := filepath.Dir(e.Address); e.Network == "unix" && !slices.Contains(overridden, key) && !isDir(dir) {
				list = append(list, fmt.Sprintf("%s: there is no folder %s: the daemon will not start before it is there", key, dir))
			}
		}
	}
	return list
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// units are the socket units of keys.
var units = map[string]string{
	keyListen: "sts-tlsmap.socket", keyControl: "sts-tlsmap-control.socket", keyMetrics: "sts-tlsmap-metrics.socket",
}

// ignored names the keys that somebody set and that have no effect.
func ignored(cfg *config.Config, s sockets, overridden []string) (list []string) {
	wanted, usual := socketsOf(cfg), socketsOf(config.Default())
	for _, key := range overridden {
		isMissing := func(e endpoint.Endpoint) bool { return !slices.Contains(s[key], e) }
		if slices.Equal(wanted[key], usual[key]) || !slices.ContainsFunc(wanted[key], isMissing) {
			continue
		}
		list = append(list, fmt.Sprintf("%s: %s in the file has no effect, since systemd holds the sockets: %s; "+
			"change that with systemctl edit %s, and take the key out of the file", key,
			strings.Join(wanted.names(key), " "), cmp.Or(strings.Join(s.names(key), " "), "none"), units[key]))
	}
	return list
}
