package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"

	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/probe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/recipe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

// probe is -probe.
func (a *app) probe(ctx context.Context) (int, error) {
	domains, isList := a.flags.args, false
	if l, err := a.openList(domains[0]); err == nil && len(domains) == 1 && !isDir(domains[0]) {
		domains, isList = nil, true
		for e := range l.policies() {
			domains = append(domains, e.Domain)
		}
		if domains = append(domains, l.domains...); l.err != nil {
			return 0, l.err
		}
	}
	p, err := a.prober(ctx, isList)
	if err != nil {
		return 0, err
	}
	var table probe.Table
	bar := text.Progress{W: a.stderr, Shown: isList && text.IsTerminal(a.stderr)}
	bar.Begin(len(domains))
	err = p.Domains(ctx, domains, func(r *probe.Result) (err error) {
		line := table.Add(r)
		if a.flags.json || line != "" {
			bar.Clear()
		}
		switch {
		case a.flags.json:
			err = r.WriteJSON(a.stdout)
		case isList:
			_, err = io.WriteString(a.stdout, line)
		default:
			err = r.WriteText(a.stdout)
		}
		bar.Step()
		return err
	})
	bar.End()
	if err == nil && isList && !a.flags.json {
		_, err = fmt.Fprintln(a.stdout, &table)
	}
	switch {
	case table.Waiting > 0:
		return exitNotFound, err
	case table.Unknown > 0:
		return exitFailed, err
	}
	return exitDone, err
}

// prober returns a Prober for the MTA of this machine, or for the MTA that asks in
// the map of -map.
func (a *app) prober(ctx context.Context, sparing bool) (*probe.Prober, error) {
	out, sources, err := a.sources()
	if err != nil {
		return nil, err
	}
	roots, err := policy.LoadRoots("") // the MTA's: ca_file is for policy hosts
	if err != nil {
		return nil, hint(err, "SSL_CERT_FILE=FILE names other authorities")
	}
	name := "postfix-dane-tlsrpt"
	ehlo, _ := os.Hostname()
	path, _ := recipe.FindPostconf()
	if p, err := recipe.ReadPostconf(ctx, path); err == nil {
		ehlo = cmp.Or(p.Settings["myhostname"], ehlo)
	} else if _, err := recipe.FindExim(); err == nil {
		name = "exim"
	} else if _, err := recipe.FindSendmail(); err == nil {
		name = "sts"
	}
	name = cmp.Or(a.flags.mapName, name)
	i := mta.Find(a.cfg.Maps, name)
	if i < 0 {
		return nil, fmt.Errorf("there is no map %q", text.Printable(name))
	}
	return probe.New(probe.Options{
		Resolver: out.resolver, NextHops: out.checker, Policy: sources.Policy, Map: a.cfg.Maps[i], Roots: roots, EHLO: ehlo, Sparing: sparing,
	}), nil
}
