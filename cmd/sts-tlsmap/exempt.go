package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

const shownExempt = 20 // exemptions below the table of -cache

// exempt is -exempt: it lists what is exempt, or exempts a domain.
func (a *app) exempt(ctx context.Context) (int, error) {
	if len(a.flags.args) == 0 {
		a.sayAbsent()
		list, err := a.exemptions(ctx)
		if err == nil && len(list) == 0 {
			a.say("no domain is exempt")
		}
		a.printExempt(list)
		return exitDone, err
	}
	domain, err := exemptDomain(a.flags.args[0])
	if err != nil {
		return 0, err
	}
	long, ok := config.ParseDuration(a.flags.span)
	if !ok {
		return 0, hint(fmt.Errorf("-for %q is not a duration", a.flags.span), "write -for 4h, 90m or 2d; -for 0 ends the exemption")
	}
	if a.flags.fleet && long > 0 {
		return a.order(ctx, "exempt", long, "exempt for "+text.Span(long))
	} else if a.flags.fleet {
		return a.order(ctx, "exempt", 0, "not exempt any more")
	}
	x, err := a.client.Exempt(ctx, domain, long)
	if err != nil {
		return 0, err
	}
	still := ""
	for _, e := range x.Still {
		still += "; still exempt by " + a.exemptWords(e)
	}
	code, words := exitDone, "not exempt any more"
	switch {
	case long > 0:
		words = "exempt until " + text.Moment(x.Until, a.now())
	case !x.Was:
		code, words = exitNotFound, "was not exempt by -exempt"
	case still != "":
		words = "its own exemption has ended"
	}
	fmt.Fprintf(a.stdout, "%s: %s%s\n", domain, words, still)
	if x.Err != "" {
		return 0, hint(errors.New(text.Printable(x.Err)), "check the disk; the daemon will try again by itself")
	}
	return code, nil
}

// exemptWords say what an entry is and until when.
func (a *app) exemptWords(e exempt.Exemption) string {
	if e.Until.IsZero() {
		return text.Printable(e.Domain) + " in [exempt]"
	}
	return fmt.Sprintf("%s until %s by -exempt", text.Printable(e.Domain), text.Moment(e.Until, a.now()))
}

// exemptDomain parses an argument; one that begins with a dot is all below it.
func exemptDomain(arg string) (string, error) {
	if !strings.HasPrefix(arg, ".") {
		return canonical(arg)
	}
	domain, err := exempt.Parse(arg)
	if err != nil {
		return "", hint(err, "name a domain, as example.com")
	}
	return domain, nil
}

// exemptions are those in force, as the daemon has them; without a daemon, those of the
// configuration and those in the file.
func (a *app) exemptions(ctx context.Context) (list []exempt.Exemption, err error) {
	if a.absent() {
		err = a.inFile(func(_ *cache.Store, maps *tlsmap.Server) error {
			list = maps.Exemptions()
			return nil
		})
		return list, err
	}
	err = a.client.Exemptions(ctx, func(x exempt.Exemption) error {
		list = append(list, x)
		return nil
	})
	return list, err
}

// printExempt prints exemptions, a line each.
func (a *app) printExempt(list []exempt.Exemption) {
	for _, x := range list {
		fmt.Fprintln(a.stdout, "exempt:", a.exemptWords(x))
	}
}

// cacheNotes prints the exemptions, and the rehearsals, which only the daemon knows.
func (a *app) cacheNotes(ctx context.Context) error {
	list, err := a.exemptions(ctx)
	if len(list) > 0 {
		fmt.Fprintln(a.stdout)
	}
	a.printExempt(list[:min(len(list), shownExempt)])
	if len(list) > shownExempt {
		fmt.Fprintf(a.stdout, "exempt: %d more; list them with -exempt\n", len(list)-shownExempt)
	}
	if err != nil || a.peerErr != nil {
		return err
	}
	return a.rehearsals(ctx)
}

// rehearsals prints the replies of maps with enforce = false: each reply that would
// have deferred mail, and the number of the others.
func (a *app) rehearsals(ctx context.Context) error {
	since := fmt.Sprintf("\nSince the daemon's start, %s, a rehearsal would have", text.Moment(a.health.Started, time.Now()))
	deferred, others := 0, 0
	err := a.client.Rehearsed(ctx, func(r tlsmap.Rehearsed) error {
		if !r.Deferred {
			others++
			return nil
		}
		if deferred++; deferred == 1 {
			fmt.Fprintln(a.stdout, since, "deferred mail for:")
		}
		fmt.Fprintf(a.stdout, "%s in map %s, asked %s, the last time %s: %s\n",
			text.Printable(r.Domain), r.Map, numbered(int(r.Count), "time"), text.Moment(r.Last, time.Now()), text.Printable(r.Reply))
		return nil
	})
	if err != nil || deferred+others == 0 {
		return err
	}
	if others > 0 {
		fmt.Fprintf(a.stdout, "%s enforced the policies of %s; see each with -explain.\n", since, numbered(others, "domain"))
	}
	fmt.Fprintln(a.stdout, "A rehearsal does not see certificates that the MTA would reject: see the MTA's own log, as in sts-tlsmap(8), REHEARSALS.")
	return nil
}

func numbered(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprint(n, " ", thing, "s")
}
