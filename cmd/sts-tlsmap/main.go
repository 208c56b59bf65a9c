// Command sts-tlsmap tells a mail relay how to protect the connection to a next
// hop, from the MTA-STS policies that domains publish (RFC 8461). Without a mode
// flag it is the daemon that Postfix asks through smtp_tls_policy_maps; with one
// it shows or changes what the daemon holds. See -help.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

// Exit codes.
const (
	exitDone     = 0
	exitNotFound = 1
	exitFailed   = 2
)

// An app is one run of the program.
type app struct {
	flags  *flags
	stdout io.Writer
	stderr *os.File
	cfg    *config.Config
	cfgErr error          // of a file with mistakes: only for -check
	found  map[string]int // by -check: how often each state

	// Of the modes that ask the daemon: see look.go.
	client  *control.Client
	health  control.Health
	peerErr error         // why the daemon cannot be asked; nil: it answers
	askWait time.Duration // for it to answer
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run runs the program and returns its exit code.
func run(args []string, stdout io.Writer, stderr *os.File) int {
	f, err := parseFlags(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, usage())
		return exitDone
	}
	a := &app{flags: f, stdout: stdout, stderr: stderr, askWait: askWait}
	if err != nil {
		return a.fail(err)
	}
	code, err := a.run(context.Background())
	if err != nil {
		return a.fail(err)
	}
	return code
}

// run runs the mode that the flags ask for. A signal ends a mode at once: what
// it asks of the daemon ends with its connection.
func (a *app) run(ctx context.Context) (int, error) {
	if a.flags.is("version") {
		_, err := fmt.Fprintf(a.stdout, "sts-tlsmap %s, commit %s of %s\n", version, commit, date)
		return exitDone, err
	}
	if a.flags.mode == nil {
		return a.daemon()
	}
	if a.flags.is("read-report") {
		return a.flags.mode.run(a, ctx) // perhaps on a machine without the daemon
	}
	if a.cfg, a.cfgErr = config.Load(a.flags.config); a.cfgErr != nil && !a.flags.is("check") {
		return 0, configError(a.cfgErr)
	}
	a.findPeer(ctx, a.cfg.Control.Address)
	defer a.client.Close()
	return a.flags.mode.run(a, ctx)
}

// A hinted error comes with the next thing to try.
type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

// thenRestart ends the hint of an error that a running daemon does not notice mended.
const thenRestart = "; then restart the daemon"

// hintOf returns the hint that comes with an error, or nothing.
func hintOf(err error) string {
	if h := (*hinted)(nil); errors.As(err, &h) {
		return h.hint
	}
	return ""
}

func hint(err error, format string, args ...any) error {
	return &hinted{err, fmt.Sprintf(format, args...)}
}

// say writes to standard error, as every line of the program's own begins.
func (a *app) say(format string, args ...any) {
	fmt.Fprintf(a.stderr, "sts-tlsmap: "+format+"\n", args...)
}

// fail prints an error, and the hint that comes with it.
func (a *app) fail(err error) int {
	lines := strings.Split(err.Error(), "\n")
	if next := cmp.Or(hintOf(err), a.nextOf(err)); next != "" {
		lines = append(lines, "hint: "+next)
	}
	prefix := ""
	if a.flags != nil && a.flags.mode == nil && text.IsJournal(a.stderr, os.Getenv("JOURNAL_STREAM")) {
		prefix = text.JournalError
	}
	for _, line := range lines {
		fmt.Fprintf(a.stderr, "%ssts-tlsmap: %s\n", prefix, line)
	}
	return exitFailed
}

// configError adds the hint that fits an error of the configuration.
func configError(err error) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		return hint(err, "run this as root, or name a file that you can read with -config FILE")
	case errors.Is(err, os.ErrNotExist):
		return hint(err, "name a file that is there with -config FILE, or none: the default, %s, may be absent", config.DefaultPath)
	}
	return hint(err, "correct the file, then check it with: sts-tlsmap -check -config FILE")
}
