package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/recipe"
)

// recipes are the MTAs that -recipe knows, and what makes the text.
var recipes = map[string]func(ctx context.Context, d recipe.Daemon) (string, error){
	"exim":    eximRecipe,
	"postfix": postfixRecipe,
}

// recipe is -recipe: it prints the MTA's configuration, and changes nothing.
func (a *app) recipe(ctx context.Context, cfg *config.Config) (int, error) {
	mta := a.flags.args[0]
	cook, ok := recipes[mta]
	if !ok {
		return 0, hint(fmt.Errorf("there is no recipe for %q", printable(mta)), "known are: %s", strings.Join(slices.Sorted(maps.Keys(recipes)), ", "))
	}
	text, err := cook(ctx, a.recipeDaemon(cfg))
	if err != nil {
		return 0, err
	}
	_, err = fmt.Fprint(a.stdout, text)
	return exitDone, err
}

func postfixRecipe(ctx context.Context, d recipe.Daemon) (string, error) {
	path, err := recipe.FindPostconf()
	if err != nil {
		return "", hint(err, "run this on the machine that has it, with that machine's configuration of sts-tlsmap")
	}
	p, err := recipe.ReadPostconf(ctx, path)
	if err != nil {
		return "", hint(err, "see what it says: %s -x", path)
	}
	r, err := recipe.Postfix(p, os.DirFS("/"), d)
	if err != nil {
		return "", err
	}
	return r.String(), nil
}

func eximRecipe(ctx context.Context, d recipe.Daemon) (string, error) {
	path, err := recipe.FindExim()
	if err != nil {
		return "", hint(err, "run this on the machine that has it, with that machine's configuration of sts-tlsmap")
	}
	c, err := recipe.ReadExim(ctx, path, d)
	if err != nil {
		return "", hint(err, "run this as root, and see what it says: %s -bP config", path)
	}
	r, err := recipe.Exim(c, os.DirFS("/"), d)
	if err != nil {
		return "", err
	}
	return r.String(), nil
}

// recipeDaemon is what an MTA meets.
func (a *app) recipeDaemon(cfg *config.Config) recipe.Daemon {
	return recipe.Daemon{LookupTimeout: cfg.Lookup.Timeout, Listen: a.peer.listeners(), Maps: cfg.Maps}
}
