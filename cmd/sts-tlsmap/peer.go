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
	return errors.Is(err, control.ErrNoDaemon) || isMute(err)
}

// isMute says whether somebody holds the socket, and nothing was to be had
// there: no daemon, or one that hangs.
func isMute(err error) bool {
	return errors.Is(err, control.ErrNoAnswer) || errors.Is(err, control.ErrBusy)
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
	if next := p.next(err); next != "" {
		return hint(err, "%s", next)
	}
	return err
}

// next says what to do about an error of the control socket; nothing if it is
// none.
func (p *peer) next(err error) string {
	switch {
	case errors.Is(err, control.ErrNoDaemon):
		return "start it: systemctl start sts-tlsmap; or name its configuration with -config FILE"
	case errors.Is(err, control.ErrNoAnswer):
		return "it hangs, or cannot start while systemd holds its sockets: see systemctl status sts-tlsmap " +
			"and journalctl -u sts-tlsmap; then systemctl restart sts-tlsmap"
	case errors.Is(err, control.ErrBusy):
		return "too many others are asking it, or it hangs: see who asks with ps ax | grep sts-tlsmap, " +
			"and how it is with systemctl status sts-tlsmap; then try again"
	case errors.Is(err, control.ErrNotAllowed):
		return fmt.Sprintf("run this as root, with sudo for instance; to read, it is enough to be in the group of %s: usermod -aG %s USER",
			p.cfg.Control.Address, control.Group)
	}
	return ""
}

// fileHinted adds the hint that fits an error of the cache file.
func (p *peer) fileHinted(err error) error {
	var locked *cache.LockedError
	switch {
	case errors.As(err, &locked) && errors.Is(p.err, control.ErrBusy):
		return hint(err, "that is the daemon: it runs, but %s", p.next(p.err))
	case errors.As(err, &locked) && errors.Is(p.err, control.ErrNoAnswer):
		return hint(err, "that is the daemon: it runs, but hangs; see journalctl -u sts-tlsmap, then systemctl restart sts-tlsmap")
	case errors.As(err, &locked):
		return hint(err, "a daemon uses this cache, but does not listen at %s: name its configuration with -config FILE", p.cfg.Control)
	case errors.Is(err, fs.ErrPermission):
		return hint(err, "run this as root or the daemon's user, or start the daemon")
	}
	return err
}

// sayAbsent tells those who would take what is in the file for what the daemon
// holds.
func (a *app) sayAbsent() {
	if isMute(a.peer.err) {
		fmt.Fprintf(a.stderr, "sts-tlsmap: %v; reading the file %s instead\n", a.peer.err, a.peer.cfg.Cache.Path)
	}
}
