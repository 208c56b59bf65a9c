package main

import (
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// outside is the way to the world: the DNS and the policy hosts.
type outside struct {
	resolver *resolver.Resolver
	client   *policy.Client
	checker  *dane.Checker
}

// newOutside makes what asks the world, as the configuration says. Nothing is
// asked yet.
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
	if err != nil {
		return nil, hint(err, "without authorities no policy can be fetched; Debian has them in the package ca-certificates")
	}
	client, err := policy.NewClient(policy.Config{
		Resolver:     r,
		Roots:        roots,
		Timeout:      cfg.Fetch.Timeout,
		AllowPrivate: cfg.Fetch.AllowPrivate,
		Proxy:        policy.ProxyFromEnvironment(),
		UserAgent:    "sts-tlsmap/" + version,
	})
	if err != nil {
		return nil, err
	}
	return &outside{resolver: r, client: client, checker: dane.New(dane.Options{Resolver: r, Log: log})}, nil
}

// mapsOf returns the maps of a configuration as tlsmap takes them.
func mapsOf(cfg *config.Config) []tlsmap.Map {
	maps := make([]tlsmap.Map, len(cfg.Maps))
	for i, m := range cfg.Maps {
		maps[i] = tlsmap.Map(m)
	}
	return maps
}

// warnings are what is allowed and seldom meant.
func warnings(cfg *config.Config, r *resolver.Resolver) []string {
	var list []string
	for _, e := range cfg.Listen {
		if !e.Loopback() {
			list = append(list, fmt.Sprintf("listen: %s can be reached from the network: whoever asks there has domains looked up; "+
				"use a loopback address or a firewall", e))
		}
	}
	if cfg.Metrics.Network != "" && !cfg.Metrics.Loopback() {
		list = append(list, fmt.Sprintf("metrics: %s can be reached from the network: whoever asks there sees how much mail goes out, "+
			"and what is wrong; use a loopback address or a firewall", cfg.Metrics))
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

func isLoopback(a netip.AddrPort) bool { return a.Addr().Unmap().IsLoopback() }
