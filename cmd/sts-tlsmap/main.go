// Command sts-tlsmap tells a mail relay how to protect the connection to a
// next-hop domain, from the MTA-STS policies that domains publish (RFC 8461).
// Without a mode flag it is the daemon that Postfix asks through
// smtp_tls_policy_maps; with one it looks at, or changes, what the daemon
// holds. See -help.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
)

// What the linker writes in: -ldflags "-X main.version=...".
var version, commit, date = "dev", "unknown", "unknown"

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
	peer   *peer // of the modes that ask a daemon or read what one has left

	askWait time.Duration // shorter in tests
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run runs the program and returns its exit code.
func run(args []string, stdout io.Writer, stderr *os.File) int {
	f, err := parseFlags(args)
	if errors.Is(err, errHelp) {
		fmt.Fprint(stdout, usage)
		return exitDone
	}
	a := &app{flags: f, stdout: stdout, stderr: stderr, askWait: askWait}
	if err != nil {
		return a.fail(err)
	}
	code, err := a.mode()
	if err != nil {
		return a.fail(err)
	}
	return code
}

// mode runs the mode that the flags ask for.
func (a *app) mode() (int, error) {
	switch a.flags.mode {
	case modeVersion:
		fmt.Fprintf(a.stdout, "sts-tlsmap %s, commit %s of %s\n", version, commit, date)
		return exitDone, nil
	case modeCheck:
		return a.check()
	}
	cfg, err := config.Load(a.flags.config)
	if err != nil {
		return 0, configError(err)
	}
	if a.flags.mode == modeDaemon {
		return a.daemon(cfg)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a.peer = a.findPeer(ctx, cfg)
	defer a.peer.client.Close()
	switch a.flags.mode {
	case modeCache:
		return a.cache(ctx, cfg)
	case modeQuery:
		return a.query(ctx, cfg)
	case modeExplain:
		return a.explain(ctx, cfg)
	case modeRefresh:
		return a.refresh(ctx)
	case modeForget:
		return a.forget(ctx)
	case modeLearn:
		return a.learn(ctx)
	case modeExempt:
		return a.exempt(ctx)
	case modeRecipe:
		return a.recipe(ctx, cfg)
	}
	return 0, fmt.Errorf("bug: mode %q is not known", a.flags.mode)
}

// A hinted error comes with the next thing to try.
type hinted struct {
	err  error
	hint string
}

func (h *hinted) Error() string { return h.err.Error() }
func (h *hinted) Unwrap() error { return h.err }

// hint adds to err what to do next.
func hint(err error, format string, args ...any) error {
	return &hinted{err: err, hint: fmt.Sprintf(format, args...)}
}

// fail prints an error, and the hint that comes with it.
func (a *app) fail(err error) int {
	lines := strings.Split(err.Error(), "\n")
	var errs config.Errors
	if errors.As(err, &errs) {
		lines = lines[:0]
		for _, e := range errs {
			lines = append(lines, e.Error())
		}
	}
	var h *hinted
	if errors.As(err, &h) {
		lines = append(lines, "hint: "+h.hint)
	}
	prefix := ""
	if a.flags != nil && a.flags.mode == modeDaemon && isJournal(a.stderr, os.Getenv("JOURNAL_STREAM")) {
		prefix = prefixError
	}
	for _, line := range lines {
		fmt.Fprintf(a.stderr, "%ssts-tlsmap: %s\n", prefix, line)
	}
	return exitFailed
}

// configError adds the hint that fits an error of the configuration.
func configError(err error) error {
	if os.IsPermission(err) || errors.Is(err, os.ErrPermission) {
		return hint(err, "run this as root, or name a file that you can read with -config FILE")
	}
	if errors.Is(err, os.ErrNotExist) {
		return hint(err, "name a file that is there with -config FILE, or none: the default, %s, may be absent", config.DefaultPath)
	}
	return hint(err, "correct the file, then check it with: sts-tlsmap -check -config FILE")
}
