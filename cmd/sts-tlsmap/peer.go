package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
)

// askWait is how long the daemon may take to say that it is there. Where it
// cannot start, systemd holds its sockets, and nobody answers there.
const askWait = 5 * time.Second

// findPeer asks who is at a control socket. Every mode does so first.
func (a *app) findPeer(ctx context.Context, socket string) {
	ctx, cancel := context.WithTimeout(ctx, a.askWait)
	defer cancel()
	a.client = control.NewClient(socket)
	a.health, a.peerErr = a.client.Health(ctx)
}

// absent reports whether no daemon answers, so that what is held can be read in
// the file only.
func (a *app) absent() bool { return errors.Is(a.peerErr, control.ErrNoDaemon) || a.mute() }

// mute reports whether somebody holds the socket and gives no answer: no daemon,
// or one that hangs or crashed.
func (a *app) mute() bool {
	return errors.Is(a.peerErr, control.ErrNoAnswer) || errors.Is(a.peerErr, control.ErrClosed)
}

// sayAbsent tells those who would take what is in the file for what the daemon
// holds.
func (a *app) sayAbsent() {
	if a.mute() {
		a.say("%v; reading the file %s instead", a.peerErr, a.cfg.Cache.Path)
	}
}

// listeners are where lookups are answered: the running daemon's, since systemd
// may have passed others than the configuration has; without a daemon, those of
// the configuration.
func (a *app) listeners() []string {
	if a.peerErr == nil && len(a.health.Listeners) > 0 {
		return a.health.Listeners
	}
	return socketsOf(a.cfg).names(keyListen)
}

// needPeer is the error of a mode that cannot do without the daemon.
func (a *app) needPeer() error { return a.hintPeer(a.peerErr) }

// hintPeer adds the hint that fits an error of the control socket.
func (a *app) hintPeer(err error) error {
	if next := a.nextOf(err); next != "" {
		return hint(err, "%s", next)
	}
	return err
}

// nextOf says what to do about an error of the control socket; nothing if it is
// none.
func (a *app) nextOf(err error) string {
	switch {
	case errors.Is(err, control.ErrNoDaemon):
		return "start it: systemctl start sts-tlsmap; or name its configuration with -config FILE"
	case errors.Is(err, control.ErrNoAnswer):
		return "it hangs, or cannot start while systemd holds its sockets: see systemctl status sts-tlsmap " +
			"and journalctl -u sts-tlsmap; then systemctl restart sts-tlsmap"
	case errors.Is(err, control.ErrClosed):
		return fmt.Sprintf("it crashed or is stopping, or more than %d clients are asking: see systemctl status sts-tlsmap "+
			"and journalctl -u sts-tlsmap; then try again", control.MaxClients)
	case errors.Is(err, control.ErrNotAllowed):
		return fmt.Sprintf("run this as root, with sudo for instance; to read, it is enough to be in the group of %s: usermod -aG %s USER",
			a.cfg.Control.Address, control.Group)
	}
	return ""
}

// openFile opens the cache file to read it. No file is nil, and no error.
func (a *app) openFile() (*cache.Store, error) {
	store, err := cache.OpenReadOnly(a.cfg.Cache.Path)
	var locked *cache.LockedError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.As(err, &locked) && a.mute():
		return nil, hint(err, "that is the daemon: it runs, but %s", a.nextOf(a.peerErr))
	case errors.As(err, &locked):
		return nil, hint(err, "a daemon uses this cache, but does not listen at %s: name its configuration with -config FILE", a.cfg.Control)
	case errors.Is(err, fs.ErrPermission):
		return nil, hint(err, "run this as root or the daemon's user, or start the daemon")
	}
	return store, err
}
