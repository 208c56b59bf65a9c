package main

import (
	"context"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/fleet"
)

// openFleet makes what shares policies with other relays, nil if [fleet] does not ask for it
// or is wrong: then this relay is alone, and mail goes on.
func (s *service) openFleet() {
	c := &s.cfg.Fleet
	var err error
	switch {
	case len(c.Errs) > 0:
		err = c.Errs
	case c.URL == "":
		return
	default:
		s.fleet, err = fleet.New(fleet.Options{
			URL: c.URL, PasswordFile: c.PasswordFile, KeyFile: c.KeyFile, CAFile: c.CAFile, Prefix: c.Prefix, Name: c.Name, Version: version,
			Now: s.clock.Now, Store: s.store, Log: s.log,
			Orders: fleet.Orders{
				Exempt: func(entry string, until time.Time, _ string) error {
					long := time.Duration(0)
					if !until.IsZero() {
						long = max(until.Sub(s.clock.Now()), time.Second)
					}
					_, _, err := s.exempt.Set(entry, long)
					return err
				},
				Forget: func(ctx context.Context, domain string, before time.Time) error {
					return s.keeper.ForgetBefore(ctx, domain, before)
				},
				Refresh: func(ctx context.Context, domain string) error {
					s.keeper.RefreshHeld(ctx, domain)
					return nil
				},
			},
		})
	}
	if s.fleetErr = err; err != nil {
		s.log.Error("[fleet] is wrong; this relay goes on alone", "err", err, "next", "correct it and restart; sts-tlsmap -check shows it")
		return
	}
	for _, w := range s.fleet.Warnings() {
		s.log.Warn(w)
	}
}
