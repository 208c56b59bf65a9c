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
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// canonical returns the policy domain that an argument stands for, in the
// form in which it is stored.
func canonical(arg string) (string, error) {
	hop, kind := tlsmap.ParseKey([]byte(arg), nil)
	if kind != tlsmap.KeyPolicyDomain {
		return "", hint(fmt.Errorf("%q is %s", arg, kind), "name a domain, as example.com")
	}
	return string(hop.Domain), nil
}

// daemonError adds the hint that fits an error of the control socket.
func daemonError(err error, cfg *config.Config) error {
	switch {
	case errors.Is(err, control.ErrNoDaemon):
		return hint(err, "start it: systemctl start sts-tlsmap; or name its configuration with -config FILE")
	case errors.Is(err, control.ErrNotAllowed):
		return hint(err, "run this as root; to read, it is enough to be in the group of %s (%s)", cfg.Control.Address, control.Group)
	}
	return err
}

// fileError adds the hint that fits an error of the cache file.
func fileError(err error, cfg *config.Config) error {
	var locked *cache.LockedError
	switch {
	case errors.As(err, &locked):
		return hint(err, "a daemon runs with this cache, and not at %s: name its configuration with -config FILE", cfg.Control)
	case errors.Is(err, fs.ErrPermission):
		return hint(err, "run this as root or the daemon's user, or start the daemon")
	}
	return err
}

// heldFrom finds what is held of a domain: through the daemon where it runs,
// else in the file. No file is an empty one.
func heldFrom(cfg *config.Config) func(ctx context.Context, domain string) (control.Held, string, error) {
	return func(ctx context.Context, domain string) (control.Held, string, error) {
		client := control.NewClient(cfg.Control.Address)
		defer client.Close()
		h, err := client.Held(ctx, domain)
		if !errors.Is(err, control.ErrNoDaemon) {
			return h, explain.Daemon, err
		}
		h, err = heldInFile(cfg, domain)
		return h, explain.File, err
	}
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
	if h.ExemptUntil, err = exemptInFile(store, domain); err != nil {
		return h, err
	}
	h.Exempt = !h.ExemptUntil.IsZero()
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
	code := exitDone
	held := heldFrom(cfg)
	for i, arg := range a.flags.args {
		domain, err := canonical(arg)
		if err != nil {
			return 0, err
		}
		h, from, err := held(ctx, domain)
		switch {
		case errors.Is(err, control.ErrNothingHeld):
			fmt.Fprintf(a.stderr, "sts-tlsmap: %s: nothing is held\n", domain)
			code = exitNotFound
			continue
		case err != nil && from == explain.File:
			return 0, fileError(err, cfg)
		case err != nil:
			return 0, daemonError(err, cfg)
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
	client := control.NewClient(cfg.Control.Address)
	defer client.Close()
	err := client.List(ctx, !a.flags.json, listing.Add)
	if errors.Is(err, control.ErrNoDaemon) {
		err = fileError(listFile(ctx, cfg, listing), cfg)
		if errors.Is(err, fs.ErrNotExist) {
			return 0, hint(fmt.Errorf("the daemon is not running, and there is no cache at %s", cfg.Cache.Path),
				"start it: systemctl start sts-tlsmap; or name its configuration with -config FILE")
		}
	} else if err != nil {
		err = daemonError(err, cfg)
	}
	if e := listing.Close(); err == nil {
		err = e
	}
	if err == nil && listing.Count() == 0 {
		fmt.Fprintln(a.stderr, "sts-tlsmap: the cache is empty")
	}
	if err == nil && !a.flags.json {
		err = a.cacheNotes(ctx, cfg)
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
