package main

import (
	"context"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/explain"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// explainTimeout ends an explanation, whatever hangs.
const explainTimeout = 2 * time.Minute

// explain is -explain: live, with or without a daemon.
func (a *app) explain(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, explainTimeout)
	defer cancel()
	out, err := newOutside(a.cfg, nil)
	if err != nil {
		return 0, err
	}
	table, maps, err := newMaps(a.cfg)
	if err != nil {
		return 0, err
	}
	var running []mta.Map
	if a.peerErr == nil {
		running = a.health.Maps
	}
	report := explain.Gather(ctx, a.flags.args[0], explain.Sources{
		Resolver: out.resolver,
		Policies: out.client,
		NextHops: out.checker,
		Table:    table,
		Running:  running,
		Exempt:   func(domain string) []control.ExemptEntry { return control.ExemptEntries(maps.ExemptBy(domain)) },
		Held:     a.held,
		NotAsked: a.peerErr,
		AskHint:  a.nextOf(a.peerErr),
		Now:      time.Now,
	})
	if a.flags.json {
		err = text.WriteJSON(a.stdout, report)
	} else {
		err = report.WriteText(a.stdout)
	}
	if err != nil {
		return 0, err
	}
	if !report.Found() {
		return exitNotFound, nil
	}
	return exitDone, nil
}

// newMaps returns the maps of a configuration, and a server that knows which
// domains are exempt. It answers no lookups.
func newMaps(cfg *config.Config) (*tlsmap.Table, *tlsmap.Server, error) {
	table, err := tlsmap.NewTable(cfg.Maps)
	if err != nil {
		return nil, nil, err
	}
	server := tlsmap.NewServer(table, tlsmap.Options{})
	return table, server, server.SetExempt(cfg.Exempt.Domains)
}
