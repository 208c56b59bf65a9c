package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
)

// exempt is -exempt: it lists what is exempt for a time, or exempts a domain.
func (a *app) exempt(ctx context.Context) (int, error) {
	if len(a.flags.args) == 0 {
		a.sayAbsent()
		list, err := a.exemptions(ctx)
		if err != nil {
			return 0, err
		}
		a.printExempt(list)
		if len(list) == 0 {
			fmt.Fprintln(a.stderr, "sts-tlsmap: no domain is exempt for now")
		}
		return exitDone, nil
	}
	domain, err := exemptDomain(a.flags.args[0])
	if err != nil {
		return 0, err
	}
	long, ok := config.ParseDuration(a.flags.exemptFor)
	if !ok {
		return 0, hint(fmt.Errorf("-for %q is not a duration", a.flags.exemptFor), "write -for 4h, 90m or 2d; -for 0 ends the exemption")
	}
	if err := a.peer.needed(); err != nil {
		return 0, err
	}
	x, err := a.peer.client.Exempt(ctx, domain, long)
	if err != nil {
		return 0, a.peer.hinted(err)
	}
	switch {
	case long > 0:
		fmt.Fprintf(a.stdout, "%s: exempt until %s\n", domain, x.Until.Format(time.RFC3339))
	case !x.Was:
		fmt.Fprintf(a.stdout, "%s: was not exempt for a time%s\n", domain, still(x.Still))
		return exitNotFound, nil
	case len(x.Still) > 0:
		fmt.Fprintf(a.stdout, "%s: its own exemption has ended%s\n", domain, still(x.Still))
	default:
		fmt.Fprintf(a.stdout, "%s: not exempt any more\n", domain)
	}
	if x.Err != "" {
		return 0, hint(errors.New(printable(x.Err)), "check the disk; the daemon will try again by itself")
	}
	return exitDone, nil
}

// still says what exempts a domain although its own exemption is over; nothing
// if that is not so.
func still(entries []control.ExemptEntry) string {
	if len(entries) == 0 {
		return ""
	}
	by := make([]string, len(entries))
	for i, e := range entries {
		by[i] = printable(e.Entry) + " in [exempt]"
		if !e.Until.IsZero() {
			by[i] = fmt.Sprintf("%s until %s (-exempt)", printable(e.Entry), e.Until.Format(time.RFC3339))
		}
	}
	return "; still exempt by " + strings.Join(by, " and ")
}

// exemptDomain returns the domain that an argument stands for; one that begins
// with a dot is all below it.
func exemptDomain(arg string) (string, error) {
	if strings.HasPrefix(arg, ".") {
		domain, err := exempt.Parse(arg)
		if err != nil {
			return "", hint(err, "name a domain, as example.com")
		}
		return domain, nil
	}
	return canonical(arg)
}

// exemptions are those set at run time: from the daemon where it runs, else
// from the file. No file is an empty one.
func (a *app) exemptions(ctx context.Context) ([]control.Exemption, error) {
	if !a.peer.absent() {
		if err := a.peer.needed(); err != nil {
			return nil, err
		}
		var list []control.Exemption
		err := a.peer.client.Exemptions(ctx, func(x control.Exemption) error {
			list = append(list, x)
			return nil
		})
		if err != nil {
			err = a.peer.hinted(err)
		}
		return list, err
	}
	store, err := cache.OpenReadOnly(a.peer.cfg.Cache.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, a.peer.fileHinted(err)
	}
	defer store.Close()
	return exemptionsInFile(store)
}

func exemptionsInFile(store *cache.Store) ([]control.Exemption, error) {
	stored, err := store.Exemptions()
	var list []control.Exemption
	for _, x := range stored {
		if x.Until.After(time.Now()) {
			list = append(list, control.Exemption{Domain: x.Domain, Until: x.Until.UTC()})
		}
	}
	return list, err
}

// exemptInFile returns the exemptions that are for a domain.
func exemptInFile(store *cache.Store, domain string) ([]exempt.Exemption, error) {
	list, err := exemptionsInFile(store)
	set := make(exempt.Set, len(list))
	for _, x := range list {
		set[x.Domain] = x.Until.Unix()
	}
	return set.Matching(domain, 0), err
}

// printExempt prints exemptions, a line each.
func (a *app) printExempt(list []control.Exemption) {
	for _, x := range list {
		left := time.Until(x.Until).Round(time.Minute)
		fmt.Fprintf(a.stdout, "%s exempt until %s (%s left)\n", printable(x.Domain), x.Until.Format(time.RFC3339), config.FormatDuration(left))
	}
}

// cacheNotes are what a listing of the cache says below its table: what is
// exempt for a time, and what rehearsals would have deferred.
func (a *app) cacheNotes(ctx context.Context) error {
	list, err := a.exemptions(ctx)
	if err != nil {
		return err
	}
	if len(list) > 0 {
		fmt.Fprintln(a.stdout)
		a.printExempt(list)
	}
	if a.peer.err != nil {
		return nil // rehearsals are in the daemon's memory only
	}
	return a.rehearsals(ctx)
}

// rehearsals are what maps with enforce = false would have replied. Of what
// would have been deferred each is named, and of the rest the number.
func (a *app) rehearsals(ctx context.Context) error {
	since, lost := a.peer.health.Started.UTC().Format(time.RFC3339), a.peer.health.Lost
	deferred, others := 0, 0
	err := a.peer.client.Rehearsed(ctx, func(r control.Rehearsed) error {
		if !r.Deferred {
			others++
			return nil
		}
		if deferred++; deferred == 1 {
			fmt.Fprintf(a.stdout, "\nSince the daemon's start, %s, a rehearsal would have deferred mail for:\n", since)
		}
		fmt.Fprintf(a.stdout, "%s in map %s, asked %s, the last time %s: %s\n",
			printable(r.Domain), r.Map, numbered(int(r.Count), "time"), r.Last.Format(time.RFC3339), printable(r.Reply))
		return nil
	})
	if err != nil {
		return a.peer.hinted(err)
	}
	if lost.Deferred > 0 {
		fmt.Fprintf(a.stdout, "and for others, which are no longer remembered: %d such replies are in the log only\n", lost.Deferred)
	}
	if others > 0 {
		more := ""
		if lost.Others > 0 {
			more = " and more"
		}
		fmt.Fprintf(a.stdout, "\nSince the daemon's start, %s, a rehearsal would have enforced the policies of %s%s; see each with -explain.\n",
			since, numbered(others, "domain"), more)
	}
	if deferred+others > 0 {
		fmt.Fprintln(a.stdout, "This does not cover hosts whose certificates would not be accepted: for those see the MTA's own log, as in sts-tlsmap(8), REHEARSALS.")
	}
	return nil
}

// numbered is so many of a thing.
func numbered(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprint(n, " ", thing, "s")
}
