package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"golang.org/x/sys/unix"
)

// everything stands for all domains of the cache.
const everything = "all"

// batch is how many domains one request to the daemon names.
const batch = 500

// refresh is -refresh.
func (a *app) refresh(ctx context.Context) (int, error) {
	code, failed := exitDone, 0
	err := a.each(ctx, func(domains []string, step func()) error {
		return a.peer.client.Refresh(ctx, domains, func(r control.Refreshed) error {
			step()
			c := refreshedCode(r)
			if c == exitFailed {
				failed++
			}
			code = max(code, c)
			if !a.all() || c == exitFailed {
				fmt.Fprintln(a.stdout, refreshedWords(r))
			}
			return nil
		})
	})
	if err == nil && a.all() && failed > 0 {
		fmt.Fprintf(a.stderr, "sts-tlsmap: %d could not be refreshed; policies held stay in force\n", failed)
	}
	return code, err
}

func refreshedCode(r control.Refreshed) int {
	switch {
	case r.Result == policy.ResultOK && r.Err == "":
		return exitDone
	case r.Result == policy.ResultNoRecord:
		return exitNotFound
	}
	return exitFailed
}

func refreshedWords(r control.Refreshed) string {
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
		s += ": " + printable(r.Err)
	}
	if r.Mode != "" {
		s += "; the policy held stays in force (mode " + r.Mode + ")"
	}
	return s
}

// forget is -forget.
func (a *app) forget(ctx context.Context) (int, error) {
	code, found, failures := exitDone, 0, 0
	err := a.each(ctx, func(domains []string, step func()) error {
		return a.peer.client.Forget(ctx, domains, func(f control.Forgotten) error {
			step()
			switch {
			case f.Err != "":
				fmt.Fprintf(a.stdout, "%s: failed: %s\n", f.Domain, printable(f.Err))
				code = exitFailed
			case !f.Found && f.Failure:
				failures++
				if !a.all() {
					fmt.Fprintf(a.stdout, "%s: forgotten: no policy was held, only a failure to find one\n", f.Domain)
				}
			case !f.Found:
				if !a.all() {
					fmt.Fprintf(a.stdout, "%s: not in the cache\n", f.Domain)
					code = max(code, exitNotFound)
				}
			default:
				found++
				if !a.all() {
					fmt.Fprintf(a.stdout, "%s: forgotten\n", f.Domain)
				}
			}
			return nil
		})
	})
	if err != nil || !a.all() {
		return code, err
	}
	n, err := a.peer.client.ForgetFailures(ctx) // of domains that no list has
	if failures += n; failures > 0 {
		fmt.Fprintf(a.stdout, "%d forgotten; failures to find a policy: %d\n", found, failures)
	} else {
		fmt.Fprintf(a.stdout, "%d forgotten\n", found)
	}
	return code, a.peer.hinted(err)
}

// all says whether the arguments are the word all.
func (a *app) all() bool { return len(a.flags.args) == 1 && a.flags.args[0] == everything }

// each calls do with the domains that the arguments stand for, some at a
// time; do calls step for each. On a terminal the progress is shown.
func (a *app) each(ctx context.Context, do func(domains []string, step func()) error) error {
	var domains []string
	if a.all() {
		if err := a.peer.needed(); err != nil {
			return err
		}
		err := a.peer.client.List(ctx, true, func(e control.Entry) error {
			domains = append(domains, e.Domain)
			return nil
		})
		if err != nil {
			return a.peer.hinted(err)
		}
		if len(domains) == 0 {
			fmt.Fprintln(a.stderr, "sts-tlsmap: the cache is empty")
		}
	} else {
		for _, arg := range a.flags.args {
			if arg == everything {
				return hint(errors.New("all cannot be mixed with domains"), "name the domains, or give all by itself")
			}
			domain, err := canonical(arg)
			if err != nil {
				return err
			}
			domains = append(domains, domain)
		}
	}
	if err := a.peer.needed(); err != nil {
		return err
	}
	done, total, terminal := 0, len(domains), a.all() && a.isTerminal()
	for start := 0; start < total; start += batch {
		err := do(domains[start:min(start+batch, total)], func() {
			if done++; terminal {
				fmt.Fprintf(a.stderr, "\r%d of %d ", done, total)
			}
		})
		if err != nil {
			return a.peer.hinted(err)
		}
	}
	if terminal && total > 0 {
		fmt.Fprint(a.stderr, "\n")
	}
	return nil
}

// isTerminal says whether people watch standard error.
func (a *app) isTerminal() bool {
	_, err := unix.IoctlGetTermios(int(a.stderr.Fd()), unix.TCGETS)
	return err == nil
}
