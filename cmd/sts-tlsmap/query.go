package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

// query is -query: it asks the running daemon at its first listener, as the MTA
// would, and prints what postmap -q prints: the value, or nothing.
func (a *app) query(ctx context.Context) (int, error) {
	at, err := endpoint.Parse(a.listeners()[0])
	if err != nil {
		return 0, err
	}
	wait := a.cfg.Lookup.Timeout + a.askWait
	if a.mute() {
		wait = a.askWait // lookups may be answered all the same, but not for sure
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	reply, err := socketmap.Query(ctx, at, a.flags.mapName, a.flags.args[0])
	if errors.Is(err, context.DeadlineExceeded) {
		return 0, a.hintPeer(fmt.Errorf("%w at %s in %s", control.ErrNoAnswer, at, wait))
	}
	if err != nil {
		return 0, err // it says what to do
	}
	word, rest, _ := strings.Cut(reply, " ")
	switch word {
	case "OK":
		fmt.Fprintln(a.stdout, rest)
		return exitDone, nil
	case "NOTFOUND":
		return exitNotFound, nil
	case "PERM":
		return 0, fmt.Errorf("the daemon replies PERM: %s", text.Printable(rest))
	case "TEMP", "TIMEOUT":
		return 0, hint(fmt.Errorf("the daemon replies %s: %s", word, text.Printable(rest)), "see why: sts-tlsmap -explain %s", a.flags.args[0])
	}
	return 0, fmt.Errorf("what answers at %s is not sts-tlsmap", at)
}
