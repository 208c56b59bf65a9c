package main

import (
	"context"
	"errors"
	"os"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/probe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/waiting"
)

// waiting is -waiting: it prints which mail in the MTA's queue waits because of TLS or
// of the daemon.
func (a *app) waiting(ctx context.Context) (int, error) {
	q, err := waiting.Read(ctx, a.now())
	switch {
	case errors.Is(err, waiting.ErrNoMTA):
		return 0, hint(err, whereToRun)
	case err != nil && os.Geteuid() != 0:
		return 0, hint(err, "run this as root: the MTA shows its queue to root")
	case err != nil:
		return 0, err
	}
	q.Judge(ctx, waiting.Source{
		Held: func(ctx context.Context, domain string) (control.Held, error) {
			h, _, err := a.held(ctx, domain)
			return h, err
		},
		Reply: func(ctx context.Context, mapName, domain string) (string, error) {
			return socketmap.Query(ctx, a.listeners()[0], tlsmap.NotMail+mapName, domain)
		},
		Maps: a.health.Maps, Err: a.peerErr, Now: a.now(),
	})
	if a.flags.probe {
		if err := a.probeWaiting(ctx, q); err != nil {
			return 0, err
		}
	}
	if a.flags.json {
		err = q.WriteJSON(a.stdout)
	} else {
		a.sayAbsent()
		err = q.WriteText(a.stdout, a.now())
	}
	if err == nil && len(q.Groups)+q.Left > 0 {
		return exitNotFound, nil
	}
	return exitDone, err
}

// probeWaiting probes the domains whose mail waits.
func (a *app) probeWaiting(ctx context.Context, q *waiting.Queue) error {
	p, err := a.prober(ctx, false)
	if err != nil {
		return err
	}
	domains := q.ToProbe()
	bar := text.Progress{W: a.stderr, Shown: text.IsTerminal(a.stderr)}
	bar.Begin(len(domains))
	defer bar.End()
	return p.Domains(ctx, domains, func(r *probe.Result) error {
		bar.Step()
		q.Probed(r.Domain, string(r.Verdict)+": "+r.Reason)
		return nil
	})
}
