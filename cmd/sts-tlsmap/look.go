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
	"github.com/sts-tlsmap/sts-tlsmap/internal/explain"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

// canonical returns the policy domain that an argument stands for, in the
// form in which it is stored.
func canonical(arg string) (string, error) {
	hop, kind := mta.ParseKey([]byte(arg), nil)
	if kind != mta.KeyPolicyDomain {
		return "", hint(fmt.Errorf("%q is %s", arg, kind), "name a domain, as example.com")
	}
	return string(hop.Domain), nil
}

// held finds what is held of a domain: through the daemon where it runs, else
// in the file. No file is an empty one.
func (a *app) held(ctx context.Context, domain string) (h control.Held, from string, err error) {
	if a.peer.absent() {
		h, err = heldInFile(a.peer.cfg, domain)
		return h, explain.File, err
	}
	if a.peer.err != nil {
		return h, explain.Daemon, a.peer.err
	}
	h, err = a.peer.client.Held(ctx, domain)
	return h, explain.Daemon, err
}

func heldInFile(cfg *config.Config, domain string) (control.Held, error) {
	h := control.Held{Domain: domain}
	store, err := cache.OpenReadOnly(cfg.Cache.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return h, control.ErrNothingHeld
	}
	if err != nil {
		return h, err
	}
	defer store.Close()
	exemptions, err := exemptInFile(store, domain)
	if err != nil {
		return h, err
	}
	h.ExemptBy, h.Exempt = control.ExemptEntries(exemptions), len(exemptions) > 0
	for _, e := range h.ExemptBy {
		if e.Until.After(h.ExemptUntil) {
			h.ExemptUntil = e.Until
		}
	}
	rec, err := store.Get(domain)
	var damaged *cache.DamagedError
	switch {
	case err == nil:
		e := control.EntryOf(&rec)
		h.Entry = &e
	case errors.Is(err, cache.ErrNotFound) && !h.Exempt:
		return h, control.ErrNothingHeld
	case errors.Is(err, cache.ErrNotFound):
	case errors.As(err, &damaged):
		h.Damaged = err.Error()
	default:
		return h, err
	}
	return h, nil
}

// cache is -cache.
func (a *app) cache(ctx context.Context, cfg *config.Config) (int, error) {
	if len(a.flags.args) == 0 {
		return a.list(ctx, cfg)
	}
	a.sayAbsent()
	code := exitDone
	for i, arg := range a.flags.args {
		domain, err := canonical(arg)
		if err != nil {
			return 0, err
		}
		h, from, err := a.held(ctx, domain)
		switch {
		case errors.Is(err, control.ErrNothingHeld):
			fmt.Fprintf(a.stderr, "sts-tlsmap: %s: not in the cache\n", domain)
			code = exitNotFound
			continue
		case err != nil && from == explain.File:
			return 0, a.peer.fileHinted(err)
		case err != nil:
			return 0, a.peer.hinted(err)
		case h.Entry == nil && h.Damaged == "":
			code = exitNotFound
		}
		if a.flags.json {
			err = explain.WriteHeldJSON(a.stdout, &h)
		} else {
			if i > 0 {
				fmt.Fprintln(a.stdout)
			}
			err = explain.WriteHeld(a.stdout, &h, time.Now())
		}
		if err != nil {
			return 0, err
		}
	}
	return code, nil
}

// list is -cache without a domain.
func (a *app) list(ctx context.Context, cfg *config.Config) (int, error) {
	listing := explain.NewListing(a.stdout, a.flags.json, time.Now())
	a.sayAbsent()
	var err error
	switch {
	case a.peer.absent():
		err = a.peer.fileHinted(listFile(ctx, cfg, listing))
		if errors.Is(err, fs.ErrNotExist) {
			return 0, hint(fmt.Errorf("the daemon is not running, and there is no cache at %s", cfg.Cache.Path),
				"start it: systemctl start sts-tlsmap; or name its configuration with -config FILE")
		}
	case a.peer.err != nil:
		err = a.peer.needed()
	default:
		if err = a.peer.client.List(ctx, !a.flags.json, listing.Add); err != nil {
			err = a.peer.hinted(err)
		}
	}
	if e := listing.Close(); err == nil {
		err = e
	}
	if err == nil && listing.Count() == 0 {
		fmt.Fprintln(a.stderr, "sts-tlsmap: the cache is empty")
	}
	if err == nil && !a.flags.json {
		err = a.cacheNotes(ctx)
	}
	return exitDone, err
}

// listFile lists the cache's file, page by page. The file is closed in between:
// while the reader waits, a daemon must be able to start. If one has, the next
// page is an error that says so.
func listFile(ctx context.Context, cfg *config.Config, listing *explain.Listing) error {
	after := ""
	for ctx.Err() == nil {
		page, next, err := pageOfFile(cfg, after)
		if err != nil {
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
	return ctx.Err()
}

func pageOfFile(cfg *config.Config, after string) (page []cache.Record, next string, err error) {
	store, err := cache.OpenReadOnly(cfg.Cache.Path)
	if err != nil {
		return nil, "", err
	}
	defer store.Close()
	return store.List(after, cache.MaxPage)
}
