package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/recipe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

// recipes are the MTAs that -recipe knows, and what makes the text.
var recipes = map[string]func(ctx context.Context, d recipe.Daemon) (fmt.Stringer, error){
	"exim":     eximRecipe,
	"postfix":  postfixRecipe,
	"sendmail": sendmailRecipe,
}

const whereToRun = "run this on the machine that has it, with that machine's configuration of sts-tlsmap"

// recipe is -recipe: it prints the MTA's configuration, and changes nothing.
func (a *app) recipe(ctx context.Context) (int, error) {
	mta := a.flags.args[0]
	cook, ok := recipes[mta]
	if !ok {
		return 0, hint(fmt.Errorf("there is no recipe for %q", text.Printable(mta)), "known are: %s", strings.Join(slices.Sorted(maps.Keys(recipes)), ", "))
	}
	d := recipe.Daemon{LookupTimeout: a.cfg.Lookup.Timeout, Listen: sockets{keyListen: a.listeners()}.names(keyListen), Maps: a.cfg.Maps}
	if a.cfg.TLSRPT.On() {
		d.Sessions, d.EximSessions, d.ReportSender = a.cfg.TLSRPT.PostfixSocket.Address, a.cfg.TLSRPT.EximSocket.Address, a.cfg.TLSRPT.Sender
	}
	r, err := cook(ctx, d)
	if err != nil {
		return 0, err
	}
	_, err = fmt.Fprint(a.stdout, r)
	return exitDone, err
}

func postfixRecipe(ctx context.Context, d recipe.Daemon) (fmt.Stringer, error) {
	path, err := recipe.FindPostconf()
	if err != nil {
		return nil, hint(err, whereToRun)
	}
	p, err := recipe.ReadPostconf(ctx, path)
	if err != nil {
		return nil, hint(err, "see what it says: %s -x", path)
	}
	return recipe.Postfix(p, os.DirFS("/"), d)
}

func eximRecipe(ctx context.Context, d recipe.Daemon) (fmt.Stringer, error) {
	path, err := recipe.FindExim()
	if err != nil {
		return nil, hint(err, whereToRun)
	}
	c, err := recipe.ReadExim(ctx, path, d)
	if err != nil {
		return nil, hint(err, "run this as root, and see what it says: %s -bP config", path)
	}
	return recipe.Exim(c, os.DirFS("/"), d)
}

func sendmailRecipe(ctx context.Context, d recipe.Daemon) (fmt.Stringer, error) {
	path, err := recipe.FindSendmail()
	if err != nil {
		return nil, hint(err, whereToRun)
	}
	root := os.DirFS("/")
	c, err := recipe.ReadSendmail(ctx, path, root)
	if err != nil {
		return nil, hint(err, "see what it says: %s -bt -d0.13", path)
	}
	return recipe.Sendmail(c, root, d)
}
