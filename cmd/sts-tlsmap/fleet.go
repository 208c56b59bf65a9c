package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/fleet"
	"github.com/sts-tlsmap/sts-tlsmap/internal/observe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

// fleetOptions are those of the configuration.
func fleetOptions(c *config.Fleet) fleet.Options {
	return fleet.Options{
		URL: c.URL, PasswordFile: c.PasswordFile, KeyFile: c.KeyFile, CAFile: c.CAFile, Prefix: c.Prefix, Name: c.Name, Version: version,
	}
}

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
		o := fleetOptions(c)
		o.Now, o.Store, o.Log = s.clock.Now, s.store, s.log
		o.Orders = fleet.Orders{
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
		}
		s.fleet, err = fleet.New(o)
	}
	if s.fleetErr = err; err != nil {
		s.log.Error("[fleet] is wrong; this relay goes on alone", "err", err, "next", "correct it and restart; sts-tlsmap -check shows it")
		return
	}
	for _, w := range s.fleet.Warnings() {
		s.log.Warn(w)
	}
}

// fleetStats are the fleet's numbers. A fleet that [fleet] asks for in vain is in trouble.
func (s *service) fleetStats() fleet.Stats {
	if s.fleetErr != nil {
		return fleet.Stats{On: true, Since: s.started, Trouble: "[fleet] is wrong: " + s.fleetErr.Error()}
	}
	return s.fleet.Stats()
}

// fleetKey is -fleet-key.
func (a *app) fleetKey(context.Context) (int, error) {
	_, err := fmt.Fprintln(a.stdout, fleet.NewKey())
	return exitDone, err
}

// fleet is -fleet: the relays that share policies, and the server between them.
func (a *app) fleet(ctx context.Context) (int, error) {
	f, err := a.client.Fleet(ctx)
	if err != nil {
		return 0, err
	}
	code := exitDone
	if f.Err != "" || f.Trouble != "" {
		code = exitNotFound
	}
	if a.flags.json {
		return code, text.WriteJSON(a.stdout, f)
	}
	fmt.Fprintln(a.stdout, "server:", text.Printable(fleetWords(&f)))
	fmt.Fprintf(a.stdout, "since the start: policies asked for %d, found %d, not answered %d; written %d, waiting %d, dropped %d\n",
		f.Asked, f.Found, f.Failed, f.Written, f.Pending, f.Dropped)
	if refused := observe.RefusedWords(&f.Stats); refused != "" {
		fmt.Fprintln(a.stdout, text.Printable(refused))
	}
	var rows []string
	for _, r := range slices.SortedFunc(slices.Values(f.Members), func(x, y fleet.Relay) int { return strings.Compare(x.Name, y.Name) }) {
		seen := text.When(r.LastSeen, time.Now())
		if r.Name == f.Name {
			seen += " (this one)"
		}
		rows = append(rows, text.Printable(r.Name)+"\t"+text.Printable(r.Version)+"\t"+seen)
	}
	if _, err := a.table("RELAY\tVERSION\tLAST SEEN", rows, "which relays there are is not known: "+cmp.Or(f.Err, "none is listed")); err != nil {
		return 0, err
	}
	return code, nil
}

// fleetWords say how the server does.
func fleetWords(f *control.Fleet) string {
	if trouble := cmp.Or(f.Trouble, f.Err); trouble != "" {
		return "does not serve: " + trouble + "; this relay goes on alone"
	}
	words := fmt.Sprintf("answers in %s", f.Latency.Round(10*time.Microsecond))
	if f.Keys >= 0 {
		words += fmt.Sprintf(", has %s", numbered(int(f.Keys), "key"))
	}
	return words
}

// order has all relays of the fleet do something for the domains.
func (a *app) order(ctx context.Context, do string, long time.Duration, words string) (int, error) {
	for _, arg := range a.flags.args {
		parse := canonical
		if do == "exempt" {
			parse = exemptDomain
		}
		domain, err := parse(arg)
		if err != nil {
			return 0, err
		}
		if err := a.client.Order(ctx, control.Order{Do: do, Domain: domain, For: long}); err != nil {
			return 0, hint(err, "sts-tlsmap -fleet shows the server; without -fleet, this relay alone does it")
		}
		fmt.Fprintf(a.stdout, "%s: %s at all relays that reach the server, within 15 s\n", domain, words)
	}
	return exitDone, nil
}

// checkFleetFiles checks what a fleet needs, without connecting.
func (a *app) checkFleetFiles() {
	const what, until = "configuration", "this relay goes on alone until then; lookups are answered"
	for _, m := range a.cfg.Fleet.Errs {
		a.find(stateWrong, what, m.Error(), until)
	}
	if a.cfg.Fleet.URL == "" || len(a.cfg.Fleet.Errs) > 0 {
		return
	}
	f, err := fleet.New(fleetOptions(&a.cfg.Fleet))
	switch {
	case errors.Is(err, fs.ErrPermission):
		a.find(stateNote, "fleet", err.Error(), "run this as root or the daemon's user, who must be able to read it")
		return
	case err != nil:
		a.find(stateWrong, what, "[fleet]: "+err.Error(), until)
		return
	}
	for _, w := range f.Warnings() {
		a.find(stateNote, what, w, "")
	}
}

// checkFleet says how the daemon's fleet does, unless a condition has said so.
func (a *app) checkFleet(ctx context.Context) {
	isFleet := func(t control.Trouble) bool { return t.Condition == observe.Fleet }
	if a.cfg.Fleet.URL == "" || a.peerErr != nil || slices.ContainsFunc(a.health.Troubles, isFleet) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, a.askWait)
	defer cancel()
	f, err := a.client.Fleet(ctx)
	if err != nil {
		a.find(stateNote, "fleet", err.Error(), "if [fleet] is new, restart the daemon")
		return
	}
	a.find(stateOK, "fleet", fmt.Sprintf("%s; the server %s", numbered(f.Relays, "relay"), fleetWords(&f)), "")
}
