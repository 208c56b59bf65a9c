package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
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
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/observe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/recipe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/reporting"
)

// unknownFor is how long a lookup in an unknown map counts as a failure. Postfix asks
// again for mail that waits after 4,000 s at most (maximal_backoff_time).
const unknownFor = 2 * time.Hour

// The states of a finding. The worst one decides the exit code of -check.
const (
	stateOK     = "ok"
	stateNote   = "note"   // perhaps not meant
	stateFailed = "failed" // mail waits, or is less protected than configured
	stateWrong  = "wrong"  // the configuration is
)

// A finding is a line of -check.
type finding struct {
	Check string `json:"check"`
	State string `json:"state"`
	What  string `json:"what"`
	Next  string `json:"next,omitempty"` // what to do
}

// find prints a finding.
func (a *app) find(state, check, what, next string) {
	f := finding{check, state, text.Printable(strings.ReplaceAll(what, "\n", "; ")), text.Printable(next)}
	a.found[state]++
	if a.flags.json {
		_ = text.WriteJSON(a.stdout, f)
		return
	}
	line := fmt.Sprintf("%-6s  %s: %s", f.State, f.Check, f.What)
	if f.Next != "" {
		line += "; " + f.Next
	}
	fmt.Fprintln(a.stdout, line)
}

// findErr prints an error with its hint.
func (a *app) findErr(state, check string, err error) {
	a.find(state, check, err.Error(), hintOf(err))
}

// check is -check: the configuration, the running daemon, the resolver, and the MTA
// of this machine; or the configuration alone, as for a reload. Each part has an end,
// after some times askWait.
func (a *app) check(ctx context.Context) (int, error) {
	alone := len(a.flags.args) > 0
	if alone && a.flags.args[0] != "configuration" {
		return 0, hint(fmt.Errorf("-check %q is not known", text.Printable(a.flags.args[0])), "write -check configuration, or -check for everything")
	}
	a.found = make(map[string]int)
	out, wrong := a.checkConfiguration(), "the configuration is wrong"
	switch hold := (*control.NotStartedError)(nil); {
	case out == nil && a.peerErr == nil:
		a.find(stateNote, "daemon", "runs with the configuration that it had at its start; with this one, a restart would answer every lookup TEMP", "")
	case out == nil && errors.As(a.peerErr, &hold):
		a.find(stateFailed, "daemon", "it cannot start, and answers every lookup TEMP: "+hold.Reason, "")
		wrong += ", and all mail waits"
	case out != nil && !alone:
		a.checkDaemon(ctx)
		a.checkResolver(ctx, out, a.checkMTA(ctx))
		a.checkReports(ctx, out)
		a.checkFleet(ctx)
	}
	switch {
	case errors.Is(a.cfgErr, fs.ErrPermission):
		a.find(stateWrong, "verdict", "the configuration could not be read", "")
		return exitFailed, nil
	case a.found[stateWrong] > 0:
		a.find(stateWrong, "verdict", wrong, "")
		return exitFailed, nil
	case a.found[stateFailed] > 0:
		a.find(stateFailed, "verdict", "mail waits, or is less protected than configured: "+numbered(a.found[stateFailed], "failure"), "")
		return exitNotFound, nil
	}
	verdict := "all is well here; mail that waits for its hosts: sts-tlsmap -waiting"
	if alone {
		verdict = "the configuration is correct"
	}
	a.find(stateOK, "verdict", verdict, "")
	return exitDone, nil
}

// checkConfiguration checks all that can be known without the daemon. It returns
// nil if something is wrong.
func (a *app) checkConfiguration() *outside {
	const what = "configuration"
	var mistakes config.Errors
	switch {
	case errors.As(a.cfgErr, &mistakes):
		for _, m := range mistakes {
			a.find(stateWrong, what, m.Error(), "")
		}
		return nil
	case a.cfgErr != nil:
		a.findErr(stateWrong, what, configError(a.cfgErr))
		return nil
	}
	out, err := newOutside(a.cfg, nil, nil)
	if err == nil {
		_, _, err = newMaps(a.cfg)
	}
	if err == nil {
		if err = cache.CheckPath(a.cfg.Cache.Path); err != nil {
			err = cacheError(err)
		}
	}
	if err != nil {
		a.findErr(stateWrong, what, err)
		return nil
	}
	a.find(stateOK, what, cmp.Or(a.cfg.File, config.DefaultPath+" (absent; these are the defaults)"), "")
	h, open := &a.health, socketsOf(a.cfg)
	now := map[string][]string{keyListen: h.Listeners, keyControl: {h.Control}, keyMetrics: strings.Fields(h.Metrics)}
	for _, key := range h.Overridden {
		open[key] = parsed(now[key])
	}
	for _, w := range slices.Concat(warnings(a.cfg, out.resolver, open, h.Overridden), folderWarnings(a.cfg, h.Overridden)) {
		a.find(stateNote, what, w, "")
	}
	for _, m := range a.cfg.TLSRPT.Errs {
		a.find(stateWrong, what, m.Error(), "TLS reports are off until then; lookups are answered")
	}
	if err := reporting.Check(&a.cfg.TLSRPT); errors.Is(err, fs.ErrPermission) {
		a.find(stateNote, "TLS reports", err.Error(), "run this as root or the daemon's user")
	} else if err != nil {
		a.find(stateWrong, what, err.Error(), "no TLS reports are sent until then; lookups are answered")
	}
	a.checkFleetFiles()
	if out.proxy != "" {
		a.find(stateOK, "proxy", out.proxy+", from this environment; the daemon uses the proxy in its own environment", "")
	}
	return out
}

// checkDaemon checks whether the daemon runs and answers lookups, and its conditions.
func (a *app) checkDaemon(ctx context.Context) {
	down, answered := errors.Is(a.peerErr, control.ErrNoDaemon), false
	switch h := &a.health; {
	case down: // or only its control socket: see below
	case errors.Is(a.peerErr, control.ErrNotAllowed):
		a.find(stateNote, "daemon", "could not be checked: "+a.peerErr.Error(), a.nextOf(a.peerErr))
	case a.peerErr != nil:
		a.find(stateFailed, "daemon", a.peerErr.Error(), a.nextOf(a.peerErr))
	default:
		a.find(stateOK, "daemon", fmt.Sprintf("version %s runs since %s", h.Version, text.Moment(h.Started, time.Now())), "")
		for _, t := range h.Troubles {
			state := stateNote
			if t.Severity == observe.Page {
				state = stateFailed
			}
			a.find(state, t.Condition, t.What, t.Next)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, a.askWait)
	defer cancel()
	for _, e := range a.listeners() {
		at, _ := e.Local()
		reply, err := socketmap.Query(ctx, at, probeMap, keeper.ProbeDomain)
		switch {
		case errors.Is(err, fs.ErrPermission):
			a.find(stateNote, "lookups", err.Error(), "run this as a user who may ask")
		case errors.Is(err, context.DeadlineExceeded):
			a.find(stateFailed, "lookups", fmt.Sprintf("%v at %s in %s", control.ErrNoAnswer, e, a.askWait), a.nextOf(control.ErrNoAnswer))
		case err != nil:
			a.find(stateFailed, "lookups", err.Error(), "")
		case !strings.HasPrefix(reply, "NOTFOUND"):
			a.find(stateFailed, "lookups", fmt.Sprintf("the daemon replies at %s: %s", e, reply), "")
		default:
			a.find(stateOK, "lookups", "answered at "+e.String(), "")
			answered = true
		}
	}
	switch {
	case down && answered:
		a.find(stateFailed, "control", "lookups are answered, but nothing listens at "+a.cfg.Control.Address+": whether all is well with the daemon is not known",
			"see journalctl -u sts-tlsmap"+thenRestart)
	case down:
		a.find(stateFailed, "daemon", a.peerErr.Error(), a.nextOf(a.peerErr))
	}
}

// checkMTA checks whether an MTA of this machine asks the daemon, for a map that is
// there. Where one does, the others need not. It reports whether a map with DANE is asked for.
func (a *app) checkMTA(ctx context.Context) (dane bool) {
	ctx, cancel := context.WithTimeout(ctx, 2*a.askWait)
	defer cancel()
	d := recipe.Daemon{Maps: a.cfg.Maps}
	if a.peerErr == nil { // otherwise systemd may hold other sockets
		d.Listen = a.health.Listeners
		if len(a.health.Maps) > 0 {
			d.Maps = a.health.Maps
		}
	}
	all := recipe.Askings(ctx, os.DirFS("/"), d)
	has := func(s recipe.AskingState) bool {
		return slices.ContainsFunc(all, func(m recipe.Asking) bool { return m.State == s })
	}
	for _, m := range all {
		state := stateFailed
		switch {
		case m.State == recipe.Asks:
			state = stateOK
		case m.State == recipe.Odd, m.State == recipe.Silent && has(recipe.Asks):
			state = stateNote
		}
		a.find(state, m.MTA, m.What, m.Next)
		dane = dane || m.DANE
	}
	if h := &a.health; a.peerErr == nil && h.UnknownMap != "" && time.Since(h.UnknownAt) < unknownFor {
		what := fmt.Sprintf("map %s was asked for at %s, and no map has that name", h.UnknownMap, text.Moment(h.UnknownAt, time.Now()))
		if has(recipe.Asks) && !has(recipe.Fails) {
			a.find(stateNote, "unknown map", what, "the MTA of this machine asks for a map that is there; see whether another one asks")
		} else {
			a.find(stateFailed, "unknown map", what+": mail waits", "correct the map's name in the MTA's configuration")
		}
	}
	if len(all) == 0 {
		a.find(stateNote, "MTA", "no Postfix or Exim was found on this machine (sendmail is not looked at), so -check cannot tell whether one asks the daemon", "")
	}
	return dane
}

// checkResolver checks whether the resolver answers, and whether it validates, as maps
// with DANE need: the configuration's own, or the one that the MTA asks for.
func (a *app) checkResolver(ctx context.Context, out *outside, asked bool) {
	ctx, cancel := context.WithTimeout(ctx, 3*a.askWait) // the first server may be silent
	defer cancel()
	if _, err := out.resolver.Query(ctx, "org", resolver.TypeSOA); err != nil {
		a.find(stateFailed, "resolver", err.Error(), "see servers in [dns], or /etc/resolv.conf")
		return
	}
	verdict := out.checker.Probe(ctx).Verdict
	words, state := verdict.String(), stateNote
	switch {
	case verdict == dane.Validates:
		state = stateOK
	case verdict == dane.NoVerdict:
		words += "; until one is answered, maps with DANE trust the AD bit and keep what they know"
	default:
		words += "; maps with DANE answer as maps without DANE"
		if asked || a.cfg.SetsDANE() {
			state = stateFailed
		}
	}
	a.find(state, "resolver", words, "")
}

// checkReports checks whether receivers of TLS reports can verify their signature.
func (a *app) checkReports(ctx context.Context, out *outside) {
	ctx, cancel := context.WithTimeout(ctx, a.askWait)
	defer cancel()
	if words, err := reporting.CheckKey(ctx, &a.cfg.TLSRPT, out.resolver); err != nil {
		a.find(stateNote, "TLS reports", err.Error(), "receivers may drop the reports: see docs/tls-reports.md")
	} else if words != "" {
		a.find(stateOK, "TLS reports", words, "")
	}
}

// warnings name settings that are allowed but probably not meant. The daemon has the
// sockets open; systemd passed them in place of the keys overridden.
func warnings(cfg *config.Config, r *resolver.Resolver, s sockets, overridden []string) []string {
	list := slices.Concat(cfg.Warnings, ignored(cfg, s, overridden))
	private := ownPrivateNetwork()
	exposed := func(key, risk string) {
		for _, e := range s[key] {
			if !e.Loopback() && !private {
				list = append(list, fmt.Sprintf("%s: %s can be reached from the network: anyone who can connect %s; "+
					"use a loopback address or a firewall", key, e, risk))
			}
		}
	}
	exposed(keyListen, "can make the daemon look up domains")
	exposed(keyMetrics, "sees how much mail goes out, and what is wrong")
	for _, server := range r.Servers() {
		a := server.Addr().Unmap()
		if r.TrustsAD() && !a.IsLoopback() && (!private || !a.IsPrivate()) {
			list = append(list, fmt.Sprintf("the AD bit of the resolver %s is trusted across a network, where it can be forged; "+
				"run a validating resolver on this machine, or set trust_ad = false in [dns]", server))
		}
	}
	return list
}

// ownPrivateNetwork reports whether this is the first process of a container that has private
// addresses only: others reach it only where the engine publishes its ports.
func ownPrivateNetwork() bool {
	addrs, err := net.InterfaceAddrs()
	return os.Getpid() == 1 && err == nil && !slices.ContainsFunc(addrs, func(a net.Addr) bool {
		p, err := netip.ParsePrefix(a.String())
		return err != nil || !p.Addr().IsLoopback() && !p.Addr().IsPrivate() && !p.Addr().IsLinkLocalUnicast()
	})
}

// folderWarnings name the folders that are missing and that the daemon needs.
func folderWarnings(cfg *config.Config, overridden []string) (list []string) {
	wanted := socketsOf(cfg)
	for _, key := range slices.Sorted(maps.Keys(wanted)) {
		for _, e := range wanted[key] {
			if dir := filepath.Dir(e.Address); e.Network == "unix" && !slices.Contains(overridden, key) && !isDir(dir) {
				list = append(list, fmt.Sprintf("%s: there is no folder %s: the daemon cannot open this socket, and serves the others; make the folder"+thenRestart, key, dir))
			}
		}
	}
	if dir := filepath.Dir(cfg.Cache.Path); !isDir(dir) {
		list = append(list, fmt.Sprintf("cache.path: there is no folder %s: until it is there, the cache is in memory only", dir))
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
	config   policy.Config // of client
	client   *policy.Client
	proxy    string // through which policies are fetched, without credentials; empty: none
	checker  *dane.Checker
}

// newOutside makes these clients from the configuration. It sends nothing.
func newOutside(cfg *config.Config, log *slog.Logger, clockInDoubt func() bool) (*outside, error) {
	r, err := resolver.New(resolver.Config{Servers: cfg.DNS.Servers, TrustAD: cfg.DNS.TrustAD, Timeout: cfg.DNS.Timeout, Log: log})
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
		return nil, hint(err, "without authorities no policy can be fetched; install ca-certificates"+thenRestart)
	}
	proxy, named, err := policy.ProxyFromEnvironment()
	if err != nil {
		return nil, hint(err, "write it as http://proxy.example:3128; with user:password@ before the name, each special character "+
			"in these is written as its code, so %% is %%25"+thenRestart)
	}
	fetch := policy.Config{
		Resolver: r, Roots: roots, Timeout: cfg.Fetch.Timeout, AllowPrivate: cfg.Fetch.AllowPrivate, Proxy: proxy,
		ClockInDoubt: clockInDoubt, UserAgent: "sts-tlsmap/" + version,
	}
	client, err := policy.NewClient(fetch)
	if err != nil {
		return nil, err
	}
	return &outside{resolver: r, config: fetch, client: client, proxy: named, checker: dane.New(dane.Options{Resolver: r, Log: log})}, nil
}
