package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
)

// askWait is how long the daemon may take to say that it is there. Where it
// cannot start, systemd holds its sockets, and nobody answers there.
const askWait = 5 * time.Second

// A peer is the daemon that runs, or why it cannot be asked. Every mode that
// needs it meets it here first.
type peer struct {
	cfg    *config.Config
	client *control.Client
	health control.Health
	err    error // nil: it answers
}

// findPeer asks who is at the control socket.
func (a *app) findPeer(ctx context.Context, cfg *config.Config) *peer {
	p := &peer{cfg: cfg, client: control.NewClient(cfg.Control.Address)}
	p.health, p.err = a.askHealth(ctx, p.client)
	return p
}

func (a *app) askHealth(ctx context.Context, client *control.Client) (control.Health, error) {
	ctx, cancel := context.WithTimeout(ctx, a.askWait)
	defer cancel()
	return client.Health(ctx)
}

// absent says whether there is nobody to ask, so that what is held can be read
// in the file only.
func (p *peer) absent() bool { return isAbsent(p.err) }

func isAbsent(err error) bool {
	return errors.Is(err, control.ErrNoDaemon) || errors.Is(err, control.ErrNoAnswer)
}

// listeners are where lookups are answered: the running daemon's, since systemd
// may have passed it others than the configuration says; without a daemon,
// those of the configuration.
func (p *peer) listeners() []string {
	if p.err == nil && len(p.health.Listeners) > 0 {
		return p.health.Listeners
	}
	return openedBy(p.cfg).listen
}

// needed returns the error for a mode that cannot do without the daemon.
func (p *peer) needed() error {
	if p.err == nil {
		return nil
	}
	return p.hinted(p.err)
}

// hinted adds the hint that fits an error of the control socket.
func (p *peer) hinted(err error) error {
	switch {
	case errors.Is(err, control.ErrNoDaemon):
		return hint(err, "start it: systemctl start sts-tlsmap; or name its configuration with -config FILE")
	case errors.Is(err, control.ErrNoAnswer):
		return hint(err, "see what keeps it from starting: systemctl status sts-tlsmap; its sockets are open meanwhile")
	case errors.Is(err, control.ErrNotAllowed):
		return hint(err, "run this as root; to read, it is enough to be in the group of %s (%s)", p.cfg.Control.Address, control.Group)
	}
	return err
}

// fileHinted adds the hint that fits an error of the cache file.
func (p *peer) fileHinted(err error) error {
	var locked *cache.LockedError
	switch {
	case errors.As(err, &locked) && errors.Is(p.err, control.ErrNoAnswer):
		return hint(err, "the daemon has the cache and does not answer: systemctl status sts-tlsmap")
	case errors.As(err, &locked):
		return hint(err, "a daemon runs with this cache, and not at %s: name its configuration with -config FILE", p.cfg.Control)
	case errors.Is(err, fs.ErrPermission):
		return hint(err, "run this as root or the daemon's user, or start the daemon")
	}
	return err
}

// sayAbsent tells those who would take what is in the file for what the daemon
// holds.
func (a *app) sayAbsent() {
	if errors.Is(a.peer.err, control.ErrNoAnswer) {
		fmt.Fprintf(a.stderr, "sts-tlsmap: %v; what follows is from the file %s\n", a.peer.err, a.peer.cfg.Cache.Path)
	}
}
