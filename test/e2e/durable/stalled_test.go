//go:build e2e

package durable

import (
	"context"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// stall makes each sync of the running daemon take a minute, until resume is called.
// A frozen file system would do the same, but if the test were killed, nobody could
// end the daemon.
func stall(t *testing.T, d *stage.Daemon) (resume func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	c := exec.CommandContext(ctx, "strace", "-f", "-p", strconv.Itoa(d.PID), "-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=60s")
	said, err := c.StderrPipe()
	try(t, err, c.Start())
	attached := make([]byte, 256)
	n, err := said.Read(attached)
	if err != nil || !strings.Contains(string(attached[:n]), "attached") {
		t.Fatalf("strace says %q (%v)", attached[:n], err)
	}
	go func() {
		for err == nil {
			_, err = said.Read(attached)
		}
	}()
	return func() {
		cancel()
		_ = c.Wait() // killed
	}
}

// says runs the program in a mode, and returns its output once it has the words.
func says(t *testing.T, d *stage.Daemon, words string, args ...string) (output string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lookTime)
	defer cancel()
	err := stage.Await(ctx, func() bool {
		output, _ = d.Run(t, args...)
		return strings.Contains(output, words)
	})
	if err != nil {
		t.Fatalf("%v does not say %q:\n%s", args, words, output)
	}
	return output
}

func TestCommitThatDoesNotEndIsACondition(t *testing.T) {
	lab := stage.NewLab(t)
	for _, domain := range []string{"one.test", "two.test"} {
		lab.Domain(domain, testlab.With{})
	}
	d := newDaemon(t, lab)
	d.Start(t)
	resume := stall(t, d)
	began := time.Now()
	mustHold(t, "one.test")
	mustHold(t, "two.test")
	const condition = "a write to the cache has not ended for 1"
	says(t, d, condition, "-check")
	if took := time.Since(began); took < 10*time.Second || took > 30*time.Second {
		t.Errorf("it is a condition after %s", took)
	}
	if list := says(t, d, "two.test", "-cache"); strings.Count(list, "(not on disk)") != 2 {
		t.Errorf("-cache says:\n%s", list)
	}
	if n := strings.Count(d.Log(), "level=ERROR"); n != 1 || !strings.Contains(d.Log(), "a commit of the cache does not end") {
		t.Errorf("%d lines of the log are errors", n)
	}

	resume()
	lab.DNS.Break("*", "", testlab.ServFail)
	ctx, cancel := context.WithTimeout(t.Context(), lookTime)
	defer cancel()
	if err := stage.Await(ctx, func() bool {
		list, _ := d.Run(t, "-cache")
		return !strings.Contains(list, "(not on disk)")
	}); err != nil {
		t.Error("the policies do not come to the disk")
	}
	if text, _ := d.Run(t, "-check"); strings.Contains(text, condition) {
		t.Errorf("afterwards -check says:\n%s", text)
	}
	d.Kill(t)
	d.Start(t)
	mustHold(t, "one.test")
	mustHold(t, "two.test")
}
