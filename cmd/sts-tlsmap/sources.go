package main

import (
	"os"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/observe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// sources are where the metrics come from.
func (s *service) sources() observe.Sources {
	return observe.Sources{
		Version: version, Commit: commit, Started: s.started,
		Keeper: s.keeper.Stats, Cache: s.store.Stats, Maps: s.maps.Stats, Sockets: s.sockets.Stats,
		DANE: s.out.checker.Stats, Troubles: s.monitor.Troubles, List: s.keeper.List, Log: s.log,
	}
}

// page is the status page.
func (s *service) page(table *tlsmap.Table, failures *observe.Failures) *observe.Page {
	host, err := os.Hostname()
	if err != nil {
		host = "a machine without a name"
	}
	return observe.NewPage(observe.PageSources{
		Version: version, Host: host, Started: s.started,
		Keeper: s.keeper, Cache: s.store.Stats, Troubles: s.monitor.Troubles, Failures: failures,
		Table: table, Log: s.log,
		Held: func(domain string) (control.Held, error) { return s.control.Held(domain) }, // which is made later
	})
}

// signs are what tells whether something is wrong.
func (s *service) signs() observe.Signs {
	return observe.Signs{Now: time.Now(), Keeper: s.keeper.Stats(), Cache: s.store.Stats(), DANE: s.out.checker.Stats()}
}

// rootsAgain reads the certificate authorities as the next start would, where
// they are in a file of ours. The system's are read once in the life of a
// process; that they fail shows in the fetches.
func (s *service) rootsAgain() error {
	if s.cfg.Fetch.CAFile == "" {
		return nil
	}
	_, err := policy.LoadRoots(s.cfg.Fetch.CAFile)
	return err
}
