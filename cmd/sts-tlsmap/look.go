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
	"github.com/sts-tlsmap/sts-tlsmap/internal/explain"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
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
	a.client.Err = a.peerErr
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
func (a *app) listeners() []endpoint.Endpoint {
	if list := parsed(a.health.Listeners); len(list) > 0 {
		return list
	}
	return a.cfg.Listen
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
	if a.absent() {
		h, err = a.heldInFile(domain)
		return h, explain.File, err
	}
	h, err = a.client.Held(ctx, domain)
	return h, explain.Daemon, err
}

func (a *app) heldInFile(domain string) (h control.Held, err error) {
	err = a.inFile(func(store *cache.Store, maps *tlsmap.Server) error {
		rec, err := cache.Record{}, error(cache.ErrNotFound)
		if store != nil {
			rec, err = store.Get(domain)
		}
		if h, err = control.NewHeld(domain, rec, err, maps.ExemptBy(domain)); err == nil && h.Nothing() {
			err = control.ErrNothingHeld
		}
		return err
	})
	return h, err
}

// inFile calls do with the cache file, which is nil if there is none, and with maps that
// know the exemptions of the configuration and of the file.
func (a *app) inFile(do func(*cache.Store, *tlsmap.Server) error) error {
	store, err := a.openFile()
	if err != nil {
		return err
	}
	if store != nil {
		defer store.Close()
	}
	_, maps, err := newMaps(a.cfg)
	if err == nil && store != nil {
		stored, bad := store.Exemptions()
		err = errors.Join(bad, maps.SetTimedExempt(stored))
	}
	if err != nil {
		return err
	}
	return do(store, maps)
}

// cache is -cache.
func (a *app) cache(ctx context.Context) (int, error) {
	a.sayAbsent()
	f := a.flags
	if below := belows(f.args); len(f.args) == 0 || below != nil {
		return a.list(ctx, below)
	}
	if f.policyMode != "" || f.expiring != "" || f.failing {
		return 0, hint(errors.New("-mode, -expiring and -failing go with the table"), "name no domain, or all below one as .example.com")
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
			return 0, err
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

// belows returns what the arguments have all domains below: each is ".example.com" or
// "*.example.com". It returns nil if one is not.
func belows(args []string) (below []string) {
	for _, arg := range args {
		name := strings.TrimPrefix(arg, "*")
		if !strings.HasPrefix(name, ".") {
			return nil
		}
		domain, err := canonical(name[1:])
		if err != nil { // ".com"
			domain = strings.ToLower(name[1:])
		}
		below = append(below, "."+domain)
	}
	return below
}

// filter returns whether an entry is to be listed.
func (a *app) filter(below []string) (func(control.Entry) bool, error) {
	f, until := a.flags, a.now()
	if f.expiring != "" {
		long, ok := config.ParseDuration(f.expiring)
		if !ok {
			return nil, hint(fmt.Errorf("-expiring %q is not a duration", f.expiring), "write -expiring 2d or 12h")
		}
		until = until.Add(long)
	}
	if f.policyMode != "" && !slices.Contains([]string{"enforce", "testing", "none"}, f.policyMode) {
		return nil, hint(fmt.Errorf("-mode %q is no mode of a policy", f.policyMode), "write -mode enforce, testing or none")
	}
	return func(e control.Entry) bool {
		isBelow := func(b string) bool { return strings.HasSuffix(e.Domain, b) }
		return (below == nil || slices.ContainsFunc(below, isBelow)) && (f.policyMode == "" || e.Mode == f.policyMode) &&
			(!f.failing || e.Failures > 0) && (f.expiring == "" || e.Expires.Before(until))
	}, nil
}

// list is -cache without a domain: the policies that the flags select.
func (a *app) list(ctx context.Context, below []string) (int, error) {
	listing := explain.NewListing(a.stdout, a.flags.json, a.now())
	wanted, err := a.filter(below)
	if err != nil {
		return 0, err
	}
	add := func(e control.Entry) error {
		if wanted(e) {
			return listing.Add(e)
		}
		return nil
	}
	if a.absent() {
		err = a.listFile(add)
	} else {
		err = a.client.List(ctx, add)
	}
	f := a.flags
	filtered := below != nil || f.policyMode != "" || f.expiring != "" || f.failing
	switch err = cmp.Or(err, listing.Close()); {
	case err != nil:
		return 0, err
	case listing.Count() == 0 && filtered:
		a.say("no policy in the cache is like that")
		return exitNotFound, nil
	case listing.Count() == 0:
		a.say("the cache is empty")
	}
	if a.flags.json || filtered {
		return exitDone, nil
	}
	return exitDone, a.cacheNotes(ctx)
}

// listFile lists the cache's file, page by page. The file is closed in between:
// while the reader waits, a daemon must be able to start. If one has, the next
// page is an error that says so.
func (a *app) listFile(add func(control.Entry) error) error {
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
			if err := add(control.EntryOf(&page[i])); err != nil {
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
	table, _, err := newMaps(a.cfg)
	title := "What the maps of the configuration file reply"
	if len(a.health.Maps) > 0 && err == nil {
		var inUse []mta.Map
		inUse, title = a.inUse()
		table, err = tlsmap.NewTable(inUse)
	}
	return out, explain.Sources{
		Resolver: out.resolver,
		Policies: out.client,
		NextHops: out.checker,
		Table:    table,
		MapsOf:   title,
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

// inUse are the daemon's maps that an MTA has asked since the start, and a title for
// them; all, if none was asked.
func (a *app) inUse() (maps []mta.Map, title string) {
	asked := slices.DeleteFunc(slices.Clone(a.health.Maps), func(m mta.Map) bool { return !slices.Contains(a.health.Asked, m.Name) })
	if len(asked) == 0 {
		return a.health.Maps, "What the maps reply"
	}
	return asked, "What the maps in use reply"
}

// newMaps returns the maps of a configuration, and a server that knows which
// domains are exempt. It answers no lookups.
func newMaps(cfg *config.Config) (*tlsmap.Table, *tlsmap.Server, error) {
	table, err := tlsmap.NewTable(cfg.Maps)
	if err != nil {
		return nil, nil, err
	}
	server := tlsmap.NewServer(table, tlsmap.Options{})
	server.SetExempt(cfg.Exempt.Domains)
	return table, server, nil
}

// query is -query: it asks the running daemon at its first listener, as the MTA
// would but for a mark before the map's name: TLS reports count mail, and no test. It
// prints what postmap -q prints: the value, or nothing.
func (a *app) query(ctx context.Context) (int, error) {
	at := a.listeners()[0]
	wait := a.cfg.Lookup.Timeout + a.askWait
	if a.mute() {
		wait = a.askWait // lookups may still be answered
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	reply, err := socketmap.Query(ctx, at, tlsmap.NotMail+cmp.Or(a.flags.mapName, "postfix"), a.flags.args[0])
	if errors.Is(err, context.DeadlineExceeded) {
		return 0, fmt.Errorf("%w at %s in %s", control.ErrNoAnswer, at, wait)
	}
	if err != nil {
		return 0, err // it says what to do
	}
	word, rest, _ := strings.Cut(reply, " ")
	if a.flags.healthy && slices.Contains([]string{"OK", "NOTFOUND", "TEMP", "PERM"}, word) {
		return exitDone, nil
	}
	switch word {
	case "OK":
		fmt.Fprintln(a.stdout, rest)
		return exitDone, nil
	case "NOTFOUND":
		a.say("%s: not found: %s", text.Printable(a.flags.args[0]), a.whyNotFound(ctx))
		return exitNotFound, nil
	case "PERM":
		return 0, fmt.Errorf("the daemon replies PERM: %s", text.Printable(rest))
	case "TEMP":
		err := fmt.Errorf("the daemon replies %s: %s", word, text.Printable(rest))
		if strings.Contains(rest, "sts-tlsmap -explain") || errors.As(a.peerErr, new(*control.NotStartedError)) {
			return 0, err
		}
		return 0, hint(err, "see why: sts-tlsmap -explain %s", a.flags.args[0])
	}
	return 0, fmt.Errorf("what answers at %s is not sts-tlsmap", at)
}

// whyNotFound says why a lookup has found nothing, as far as the daemon tells.
func (a *app) whyNotFound(ctx context.Context) string {
	hop, kind := mta.ParseKey([]byte(a.flags.args[0]), nil)
	if kind != mta.KeyPolicyDomain {
		return "it is " + kind.String()
	}
	h, err := a.client.Held(ctx, string(hop.Domain))
	switch n := h.Negative; {
	case err != nil:
		return err.Error()
	case len(h.ExemptBy) > 0:
		return "exempt: " + a.exemptWords(h.ExemptBy[0])
	case n != nil && n.Result == policy.ResultNoRecord:
		return "no policy: the domain publishes none"
	case n != nil && n.Result == policy.ResultDNS:
		return "DNS failed: " + text.Printable(n.Err)
	case n != nil:
		return fmt.Sprintf("no policy could be fetched: %s: %s", n.Result, text.Printable(n.Err))
	case h.Entry != nil && h.Entry.Mode == policy.ModeEnforce.String():
		return "the map is a rehearsal"
	case h.Entry != nil:
		return "the policy's mode is " + text.Printable(h.Entry.Mode)
	}
	return "no answer in time; the discovery goes on"
}
