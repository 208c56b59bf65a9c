package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

// everything stands for all domains of the cache.
const everything = "all"

// all reports whether the arguments are the word all.
func (a *app) all() bool { return slices.Equal(a.flags.args, []string{everything}) }

// named returns the domains that the arguments stand for, and a bar that people
// see where there are many.
func (a *app) named(ctx context.Context) (domains []string, bar *progress, err error) {
	if slices.Contains(a.flags.args, everything) && !a.all() {
		return nil, nil, hint(errors.New("all cannot be mixed with domains"), "name the domains, or give all by itself")
	}
	if !a.all() {
		for _, arg := range a.flags.args {
			domain, err := canonical(arg)
			if err != nil {
				return nil, nil, err
			}
			domains = append(domains, domain)
		}
	}
	if a.peerErr != nil {
		return nil, nil, a.needPeer()
	}
	if a.all() {
		err = a.client.List(ctx, func(e control.Entry) error {
			domains = append(domains, e.Domain)
			return nil
		})
		if err == nil && len(domains) == 0 {
			a.say("the cache is empty")
		}
	}
	bar = &progress{w: a.stderr, shown: a.all() && isTerminal(a.stderr)}
	bar.begin(len(domains))
	return domains, bar, a.hintPeer(err)
}

// refresh is -refresh.
func (a *app) refresh(ctx context.Context) (int, error) {
	domains, bar, err := a.named(ctx)
	if err != nil {
		return 0, err
	}
	code, failed := exitDone, 0
	err = a.client.Refresh(ctx, domains, func(r keeper.Refreshed) error {
		bar.step()
		switch {
		case r.Result == policy.ResultOK && r.Err == "":
		case r.Result == policy.ResultNoRecord:
			code = max(code, exitNotFound)
		default:
			code = exitFailed
			failed++
			bar.clear()
			fmt.Fprintln(a.stdout, refreshedWords(r))
			return nil
		}
		if !a.all() {
			fmt.Fprintln(a.stdout, refreshedWords(r))
		}
		return nil
	})
	bar.end()
	if err == nil && a.all() && failed > 0 {
		a.say("%d could not be refreshed; policies held stay in force", failed)
	}
	return code, a.hintPeer(err)
}

func refreshedWords(r keeper.Refreshed) string {
	s := r.Domain + ": "
	switch {
	case r.Result == policy.ResultOK && r.Err == "":
		change := "unchanged"
		if r.Changed {
			change = "changed"
		}
		return s + fmt.Sprintf("ok, mode %s, id %s, %s", r.Mode, r.ID, change)
	case r.Result != "":
		s += string(r.Result)
	default:
		s += "failed"
	}
	if r.Err != "" {
		s += ": " + text.Printable(r.Err)
	}
	if r.Mode != "" {
		s += "; the policy held stays in force (mode " + r.Mode + ")"
	}
	return s
}

// forget is -forget.
func (a *app) forget(ctx context.Context) (int, error) {
	domains, bar, err := a.named(ctx)
	if err != nil {
		return 0, err
	}
	code, found, failures := exitDone, 0, 0
	err = a.client.Forget(ctx, domains, func(f control.Forgotten) error {
		bar.step()
		words := "forgotten"
		switch {
		case f.Err != "":
			bar.clear()
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
	bar.end()
	if err != nil || !a.all() {
		return code, a.hintPeer(err)
	}
	n, err := a.client.ForgetFailures(ctx) // of domains without a policy, which no list has
	if failures += n; failures > 0 {
		fmt.Fprintf(a.stdout, "%d forgotten; failures to find a policy: %d\n", found, failures)
	} else {
		fmt.Fprintf(a.stdout, "%d forgotten\n", found)
	}
	return code, a.hintPeer(err)
}
