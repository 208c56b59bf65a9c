package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
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
		return 0, cacheError(err)
	}
	h, open := &a.health, socketsOf(a.cfg)
	now := map[string][]string{keyListen: h.Listeners, keyControl: {h.Control}, keyMetrics: strings.Fields(h.Metrics)}
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
		fmt.Fprintf(a.stdout, "proxy: %s, from this environment; the daemon uses the proxy in its own environment\n", out.proxy)
	}
	a.checkDNSSEC(ctx, out.checker)
	a.checkDaemon()
	fmt.Fprintf(a.stdout, "%s: ok\n", cmp.Or(a.cfg.File, config.DefaultPath+" (absent; these are the defaults)"))
	return exitDone, nil
}

func (a *app) warn(format string, args ...any) { a.say("warning: "+format, args...) }

// checkDNSSEC says whether the resolver validates, as maps with DANE need. It warns if
// it does not and the configuration sets DANE.
func (a *app) checkDNSSEC(ctx context.Context, checker *dane.Checker) {
	ctx, cancel := context.WithTimeout(ctx, probeWait)
	defer cancel()
	v := checker.Probe(ctx).Verdict
	words := fmt.Sprintf("DNSSEC: %s", v)
	switch {
	case v == dane.NoVerdict:
		words += "; until a probe is answered, maps with DANE trust the AD bit and keep what they know"
	case v != dane.Validates:
		words += "; maps with DANE answer as maps without DANE"
	}
	if v != dane.Validates && a.cfg.SetsDANE() {
		a.warn("%s", words)
	} else {
		fmt.Fprintln(a.stdout, words)
	}
}

// checkDaemon prints the conditions of a running daemon as warnings: the configuration
// may still be correct.
func (a *app) checkDaemon() {
	switch {
	case errors.Is(a.peerErr, control.ErrNoDaemon):
	case a.peerErr != nil:
		a.warn("the daemon could not be asked for its conditions: %v", a.peerErr)
		if next := a.nextOf(a.peerErr); next != "" {
			a.say("hint: %s", next)
		}
	default:
		for _, t := range a.health.Troubles {
			a.warn("the daemon: %s; %s", t.What, t.Next)
		}
	}
}

// warnings name settings that are allowed but probably not meant. The daemon has the
// sockets open; systemd passed them in place of the keys overridden.
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

// ignored names the keys that somebody set and that have no effect.
func ignored(cfg *config.Config, s sockets, overridden []string) (list []string) {
	wanted, usual := socketsOf(cfg), socketsOf(config.Default())
	units := map[string]string{keyListen: "sts-tlsmap.socket", keyControl: "sts-tlsmap-control.socket", keyMetrics: "sts-tlsmap-metrics.socket"}
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

// outside has the clients that use the network: DNS and policy hosts.
type outside struct {
	resolver *resolver.Resolver
	client   *policy.Client
	proxy    string // through which policies are fetched, without credentials; empty: none
	checker  *dane.Checker
}

// newOutside makes these clients from the configuration. It sends nothing.
func newOutside(cfg *config.Config, log *slog.Logger) (*outside, error) {
	servers := make([]string, len(cfg.DNS.Servers))
	for i, s := range cfg.DNS.Servers {
		servers[i] = s.String()
	}
	r, err := resolver.New(resolver.Config{Servers: servers, TrustAD: cfg.DNS.TrustAD, Timeout: cfg.DNS.Timeout, Log: log})
	if err != nil {
		return nil, hint(err, "correct it, or name servers in [dns]")
	}
	roots, err := policy.LoadRoots(cfg.Fetch.CAFile)
	switch {
	case errors.Is(err, fs.ErrPermission) && cfg.Fetch.CAFile != "":
		return nil, hint(cfg.CAFileError(err), "uid %d, who runs this, must be able to read the file", os.Geteuid())
	case err != nil && cfg.Fetch.CAFile != "":
		return nil, cfg.CAFileError(err)
	case err != nil:
		return nil, hint(err, "without authorities no policy can be fetched; install ca-certificates, and restart the daemon: it reads them once")
	}
	proxy, named, err := policy.ProxyFromEnvironment()
	if err != nil {
		return nil, hint(err, "write it as http://proxy.example:3128; with user:password@ before the name, each special character "+
			"in these is written as its code, so %% is %%25; then restart the daemon")
	}
	client, err := policy.NewClient(policy.Config{
		Resolver: r, Roots: roots, Timeout: cfg.Fetch.Timeout, AllowPrivate: cfg.Fetch.AllowPrivate, Proxy: proxy,
		UserAgent: "sts-tlsmap/" + version,
	})
	if err != nil {
		return nil, err
	}
	return &outside{resolver: r, client: client, proxy: named, checker: dane.New(dane.Options{Resolver: r, Log: log})}, nil
}
