package main

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"

	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// outside is the way to the world: the DNS and the policy hosts.
type outside struct {
	resolver *resolver.Resolver
	client   *policy.Client
	proxy    string // through which policies are fetched, without credentials; empty: none
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
	switch {
	case errors.Is(err, fs.ErrPermission) && cfg.Fetch.CAFile != "":
		return nil, hint(cfg.CAFileError(err), "uid %d, who runs this, must be able to read the file", os.Geteuid())
	case err != nil && cfg.Fetch.CAFile != "":
		return nil, cfg.CAFileError(err)
	case err != nil:
		return nil, hint(err, "without authorities no policy can be fetched; Debian has them in the package ca-certificates")
	}
	proxy, named, err := policy.ProxyFromEnvironment()
	if err != nil {
		return nil, hint(err, "write it as http://proxy.example:3128; with user:password@ before the name, each special character "+
			"in these is written as its code, so %% is %%25")
	}
	client, err := policy.NewClient(policy.Config{
		Resolver:     r,
		Roots:        roots,
		Timeout:      cfg.Fetch.Timeout,
		AllowPrivate: cfg.Fetch.AllowPrivate,
		Proxy:        proxy,
		UserAgent:    "sts-tlsmap/" + version,
	})
	if err != nil {
		return nil, err
	}
	return &outside{resolver: r, client: client, proxy: named, checker: dane.New(dane.Options{Resolver: r, Log: log})}, nil
}
