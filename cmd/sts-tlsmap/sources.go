package main

import (
	"cmp"
	"errors"
	"os"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/observe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// observed is what the observer reads. It is made before the keeper, which tells
// the observer what it tries.
func (s *service) observed(table *tlsmap.Table) observe.Sources {
	host, _ := os.Hostname()
	return observe.Sources{
		Version: version, Commit: commit, Host: cmp.Or(host, "a machine without a name"), Started: s.started,
		Stats: func() observe.Stats {
			return observe.Stats{
				Keeper: s.keeper.Stats(), Cache: s.store.Stats(), Maps: s.maps.Stats(), Sockets: s.sockets.Stats(),
				DANE: s.out.checker.Stats(),
			}
		},
		Roots: s.rootsAgain,
		Due: func(time.Time, int) ([]int, bool, error) {
			return nil, false, errors.New("its queue cannot be counted yet")
		},
		Table: table, Log: s.log,
		Held: func(domain string) (control.Held, error) { return s.control.Held(domain) },
	}
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
