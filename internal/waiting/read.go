package waiting

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/recipe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

// ErrNoMTA means that this machine has no Postfix, Exim or sendmail.
var ErrNoMTA = errors.New("no postconf, exim or sendmail found: is the MTA on this machine?")

// Read reads the queue of the MTA of this machine.
func Read(ctx context.Context, now time.Time) (*Queue, error) {
	if path, err := recipe.FindPostconf(); err == nil {
		settings, err := exec.CommandContext(ctx, path, "-h", "smtp_tls_policy_maps", "relayhost").Output()
		if err != nil {
			return nil, fmt.Errorf("reading Postfix's settings: %w", err)
		}
		return run(ctx, func(out io.Reader) (*Queue, error) { return ReadPostfix(out, string(settings)) }, strings.TrimSuffix(path, "conf")+"queue", "-j")
	}
	path, err := recipe.FindExim()
	if err != nil {
		if path, err = recipe.FindSendmail(); err != nil {
			return nil, ErrNoMTA
		}
		return run(ctx, func(out io.Reader) (*Queue, error) { return ReadSendmail(out, now) }, path, "-Am", "-bp", "-v")
	}
	spool, err := exec.CommandContext(ctx, path, "-bP", "spool_directory").Output()
	if err != nil {
		return nil, fmt.Errorf("reading Exim's settings: %w", err)
	}
	_, folder, _ := strings.Cut(strings.TrimSpace(string(spool)), " = ")
	if _, err := os.ReadDir(folder + "/msglog"); err != nil { // else nothing would seem to wait
		return nil, fmt.Errorf("reading Exim's message logs: %w", err)
	}
	return run(ctx, func(out io.Reader) (*Queue, error) { return ReadExim(out, os.DirFS(folder), now) }, path, "-bpru")
}

// run runs a program and reads its output as it comes.
func run(ctx context.Context, read func(io.Reader) (*Queue, error), path string, args ...string) (*Queue, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := exec.CommandContext(ctx, path, args...)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		return nil, err
	}
	q, failed := read(out)
	if failed != nil {
		cancel() // it may have more to write
	}
	if err := c.Wait(); err != nil && failed == nil {
		first, _, _ := strings.Cut(strings.TrimSpace(stderr.String()), "\n")
		failed = fmt.Errorf("%s %s: %w: %s", path, strings.Join(args, " "), err, text.Printable(first))
	}
	return q, failed
}
