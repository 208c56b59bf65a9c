package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

// all reports whether the arguments are the word all: every domain of the cache.
func (a *app) all() bool { return slices.Equal(a.flags.args, []string{"all"}) }

// named returns the domains that the arguments stand for, and a bar that people
// see where there are many.
func (a *app) named(ctx context.Context) (domains []string, bar *text.Progress, err error) {
	if slices.Contains(a.flags.args, "all") && !a.all() {
		return nil, nil, hint(errors.New("all cannot be mixed with domains"), "name the domains, or give all by itself")
	}
	for _, arg := range a.flags.args {
		domain, err := canonical(arg)
		if err != nil && !a.all() {
			return nil, nil, err
		}
		domains = append(domains, domain)
	}
	if a.all() {
		domains = nil
		err = a.client.List(ctx, func(e control.Entry) error {
			domains = append(domains, e.Domain)
			return nil
		})
	}
	if err == nil && len(domains) == 0 {
		a.say("the cache is empty")
	}
	bar = &text.Progress{W: a.stderr, Shown: a.all() && text.IsTerminal(a.stderr)}
	bar.Begin(len(domains))
	return domains, bar, err
}

// refresh is -refresh.
func (a *app) refresh(ctx context.Context) (int, error) {
	if a.flags.fleet {
		return a.order(ctx, "refresh", 0, "refreshed")
	}
	domains, bar, err := a.named(ctx)
	if err != nil {
		return 0, err
	}
	code, failed := exitDone, 0
	err = a.client.Refresh(ctx, domains, func(r keeper.Refreshed) error {
		bar.Step()
		ok := r.Result == policy.ResultOK && r.Err == ""
		switch {
		case ok:
		case r.Result == policy.ResultNoRecord:
			ok, code = true, max(code, exitNotFound)
		default:
			failed, code = failed+1, exitFailed
		}
		if !ok || !a.all() {
			bar.Clear()
			fmt.Fprintf(a.stdout, "%s: %s\n", r.Domain, refreshedWords(r))
		}
		return nil
	})
	bar.End()
	if err == nil && a.all() && len(domains) > 0 {
		fmt.Fprintf(a.stdout, "%d refreshed\n", len(domains)-failed)
		if failed > 0 {
			a.say("%d could not be refreshed; policies held stay in force", failed)
		}
	}
	return code, err
}

func refreshedWords(r keeper.Refreshed) string {
	if r.Result == policy.ResultOK && r.Err == "" {
		change := "unchanged"
		if r.Changed {
			change = "changed"
		}
		return fmt.Sprintf("ok, mode %s, id %s, %s", r.Mode, r.ID, change)
	}
	words := cmp.Or(string(r.Result), "failed")
	if r.Err != "" {
		words += ": " + text.Printable(r.Err)
	}
	if r.Mode != "" {
		words += "; the policy held stays in force (mode " + r.Mode + ")"
	}
	return words
}

// confirm asks for a yes.
func (a *app) confirm(question string) error {
	fmt.Fprintf(a.stderr, "%s Type yes: ", question)
	var answer string
	_, _ = fmt.Fscanln(os.Stdin, &answer) // none is no
	if answer == "yes" {
		return nil
	}
	return hint(errors.New("nothing was forgotten"), "answer yes, or give -yes with -forget all")
}

// forget is -forget.
func (a *app) forget(ctx context.Context) (int, error) {
	if a.flags.fleet {
		return a.order(ctx, "forget", 0, "forgotten")
	}
	domains, bar, err := a.named(ctx)
	if err == nil && a.all() && !a.flags.yes {
		err = a.confirm(fmt.Sprintf("Forget %s? Their mail goes unprotected until the next lookup finds each policy again.", numbered(len(domains), "domain")))
	}
	if err != nil {
		return 0, err
	}
	code, found, failures := exitDone, 0, 0
	err = a.client.Forget(ctx, domains, func(f control.Forgotten) error {
		bar.Step()
		words := "forgotten"
		switch {
		case f.Err != "":
			bar.Clear()
			fmt.Fprintf(a.stdout, "%s: failed: %s\n", f.Domain, text.Printable(f.Err))
			code = exitFailed
			return nil
		case f.Found:
			found++
		case f.Failure:
			failures++
			words = "forgotten: no policy was held, only a failure to find one"
		case !a.all():
			words = "not in the cache"
			code = max(code, exitNotFound)
		}
		if !a.all() {
			fmt.Fprintf(a.stdout, "%s: %s\n", f.Domain, words)
		}
		return nil
	})
	bar.End()
	if err != nil || !a.all() {
		return code, err
	}
	n, err := a.client.ForgetFailures(ctx) // of domains without a policy, which no list has
	words := ""
	if failures += n; failures > 0 {
		words = fmt.Sprintf("; failures to find a policy: %d", failures)
	}
	fmt.Fprintf(a.stdout, "%d forgotten%s\n", found, words)
	return code, err
}
