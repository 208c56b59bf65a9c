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

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/explain"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
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

// now is the time by which the daemon's policies live; without a daemon, the clock.
func (a *app) now() time.Time {
	return time.Now().Add(-time.Duration(a.health.ClockOff) * time.Second)
}

// absent reports whether no daemon answers, so that the file is read instead.
func (a *app) absent() bool { return errors.Is(a.peerErr, control.ErrNoDaemon) || a.mute() }

// mute reports whether the socket is held but gives no answer.
func (a *app) mute() bool {
	return errors.Is(a.peerErr, control.ErrNoAnswer) || errors.Is(a.peerErr, control.ErrClosed)
}

// sayAbsent warns that the output may differ from what the daemon holds.
func (a *app) sayAbsent() {
	if a.mute() {
		a.say("%v; reading the file %s instead", a.peerErr, a.cfg.Cache.Path)
	}
}

// listeners are where lookups are answered: the daemon tells, since systemd may
// have passed others than the configuration has.
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

// nextOf says what to do about an error of the control socket.
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

// canonical returns the policy domain that an argument stands for, in the form
// in which it is stored.
func canonical(arg string) (string, error) {
	hop, kind := mta.ParseKey([]byte(arg), nil)
	if kind != mta.KeyPolicyDomain {
		return "", hint(fmt.Errorf("%q is %s", arg, kind), "name a domain, as example.com")
	}
	return string(hop.Domain), nil
}

// held finds what is held for a domain: through the daemon where it runs, else
// in the file.
func (a *app) held(ctx context.Context, domain string) (h control.Held, from string, err error) {
	switch {
	case a.absent():
		h, err = a.heldInFile(domain)
		return h, explain.File, err
	case a.peerErr != nil:
		return h, explain.Daemon, a.peerErr
	}
	h, err = a.client.Held(ctx, domain)
	return h, explain.Daemon, err
}

func (a *app) heldInFile(domain string) (control.Held, error) {
	store, err := a.openFile()
	if store == nil {
		return control.Held{Domain: domain}, cmp.Or(err, control.ErrNothingHeld)
	}
	defer store.Close()
	stored, err := store.Exemptions()
	set, e := exempt.Timed(stored)
	if err := errors.Join(err, e); err != nil {
		return control.Held{}, err
	}
	rec, err := store.Get(domain)
	h, err := control.NewHeld(domain, rec, err, set.Matching(domain, time.Now().Unix()))
	if err == nil && h.Nothing() {
		err = control.ErrNothingHeld
	}
	return h, err
}

// cache is -cache.
func (a *app) cache(ctx context.Context) (int, error) {
	a.sayAbsent()
	if len(a.flags.args) == 0 {
		return exitDone, a.list(ctx)
	}
	write := func(h *control.Held) error { return explain.WriteHeld(a.stdout, h, a.now()) }
	if a.flags.json {
		write = func(h *control.Held) error { return explain.WriteHeldJSON(a.stdout, h) }
	}
	code := exitDone
	for i, arg := range a.flags.args {
		domain, err := canonical(arg)
		if err != nil {
			return 0, err
		}
		h, _, err := a.held(ctx, domain)
		if errors.Is(err, control.ErrNothingHeld) {
			a.say("%s: not in the cache", domain)
			code = exitNotFound
			continue
		}
		if err != nil {
			return 0, a.hintPeer(err)
		}
		if h.Entry == nil && h.Damaged == "" {
			code = exitNotFound
		}
		if i > 0 && !a.flags.json {
			fmt.Fprintln(a.stdout)
		}
		if err := write(&h); err != nil {
			return 0, err
		}
	}
	return code, nil
}

// list is -cache without a domain.
func (a *app) list(ctx context.Context) error {
	listing := explain.NewListing(a.stdout, a.flags.json, a.now())
	var err error
	switch {
	case a.absent():
		err = a.listFile(listing)
	case a.peerErr != nil:
		return a.needPeer()
	default:
		err = a.hintPeer(a.client.List(ctx, listing.Add))
	}
	err = cmp.Or(err, listing.Close())
	if err == nil && listing.Count() == 0 {
		a.say("the cache is empty")
	}
	if err != nil || a.flags.json {
		return err
	}
	return a.cacheNotes(ctx)
}

// listFile lists the cache's file, page by page. The file is closed in between:
// while the reader waits, a daemon must be able to start. If one has, the next
// page is an error that says so.
func (a *app) listFile(listing *explain.Listing) error {
	for after := ""; ; {
		store, err := a.openFile()
		if store == nil {
			return cmp.Or(err, hint(fmt.Errorf("the daemon is not running, and there is no cache at %s", a.cfg.Cache.Path),
				"%s", a.nextOf(control.ErrNoDaemon)))
		}
		page, next, err := store.List(after, cache.MaxPage)
		if err := errors.Join(err, store.Close()); err != nil {
			return err
		}
		for i := range page {
			if err := listing.Add(control.EntryOf(&page[i])); err != nil {
				return err
			}
		}
		if next == "" {
			return nil
		}
		after = next
	}
}

// sources are the clients that look a domain up, and what is held and configured.
func (a *app) sources() (*outside, explain.Sources, error) {
	out, err := newOutside(a.cfg, nil, func() bool { return a.health.ClockOff != 0 })
	if err != nil {
		return nil, explain.Sources{}, err
	}
	table, maps, err := newMaps(a.cfg)
	title := "What the maps of the configuration file reply"
	if len(a.health.Maps) > 0 && err == nil {
		table, err = tlsmap.NewTable(a.inUse())
		title = "What the maps in use reply"
	}
	return out, explain.Sources{
		Resolver: out.resolver,
		Policies: out.client,
		NextHops: out.checker,
		Table:    table,
		MapsOf:   title,
		Exempt:   func(domain string) []control.ExemptEntry { return control.ExemptEntries(maps.ExemptBy(domain)) },
		Held:     a.held,
		NotAsked: a.peerErr,
		AskHint:  a.nextOf(a.peerErr),
		Now:      a.now,
	}, err
}

// explain is -explain: live, with or without a daemon.
func (a *app) explain(ctx context.Context) (int, error) {
	_, sources, err := a.sources()
	if err != nil {
		return 0, err
	}
	report := explain.Gather(ctx, a.flags.args[0], sources)
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

// inUse are the daemon's maps that an MTA has asked since the start; all, if none was asked.
func (a *app) inUse() []mta.Map {
	asked := slices.DeleteFunc(slices.Clone(a.health.Maps), func(m mta.Map) bool { return !slices.Contains(a.health.Asked, m.Name) })
	if len(asked) == 0 {
		return a.health.Maps
	}
	return asked
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

// query is -query: it asks the running daemon at its first listener, as the MTA
// would but for a mark before the map's name: TLS reports count mail, and no test. It
// prints what postmap -q prints: the value, or nothing.
func (a *app) query(ctx context.Context) (int, error) {
	at, err := endpoint.Parse(a.listeners()[0])
	if err != nil {
		return 0, err
	}
	wait := a.cfg.Lookup.Timeout + a.askWait
	if a.mute() {
		wait = a.askWait // lookups may still be answered
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	reply, err := socketmap.Query(ctx, at, tlsmap.NotMail+cmp.Or(a.flags.mapName, "postfix"), a.flags.args[0])
	if errors.Is(err, context.DeadlineExceeded) {
		return 0, a.hintPeer(fmt.Errorf("%w at %s in %s", control.ErrNoAnswer, at, wait))
	}
	if err != nil {
		return 0, err // it says what to do
	}
	word, rest, _ := strings.Cut(reply, " ")
	switch word {
	case "OK":
		fmt.Fprintln(a.stdout, rest)
		return exitDone, nil
	case "NOTFOUND":
		return exitNotFound, nil
	case "PERM":
		return 0, fmt.Errorf("the daemon replies PERM: %s", text.Printable(rest))
	case "TEMP", "TIMEOUT":
		err := fmt.Errorf("the daemon replies %s: %s", word, text.Printable(rest))
		if strings.Contains(rest, "sts-tlsmap -explain") || errors.As(a.peerErr, new(*control.NotStartedError)) {
			return 0, err
		}
		return 0, hint(err, "see why: sts-tlsmap -explain %s", a.flags.args[0])
	}
	return 0, fmt.Errorf("what answers at %s is not sts-tlsmap", at)
}
