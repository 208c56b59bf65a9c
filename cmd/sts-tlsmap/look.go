package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/explain"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

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
	write := func(h *control.Held) error { return explain.WriteHeld(a.stdout, h, time.Now()) }
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
	listing := explain.NewListing(a.stdout, a.flags.json, time.Now())
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
