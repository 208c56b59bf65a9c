package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// anyExit accepts any exit status of a command.
const anyExit = -1

// A story prints the steps of the demo. After the first failure it does
// nothing.
type story struct {
	ctx    context.Context
	daemon *daemon
	slow   bool // pause before each step
	steps  int
	err    error
}

func (s *story) say(text string) {
	if s.err == nil {
		fmt.Println(text)
	}
}

func (s *story) step(text string) {
	if s.err != nil {
		return
	}
	if s.slow {
		select {
		case <-time.After(pause):
		case <-s.ctx.Done():
			s.err = context.Cause(s.ctx)
			return
		}
	}
	s.steps++
	fmt.Printf("\n%d. %s\n", s.steps, text)
}

// do does something that the reader need not see.
func (s *story) do(f func() error) {
	if s.err == nil {
		s.err = f()
	}
}

// lookup looks up a key as Postfix does. An empty want means "not found".
func (s *story) lookup(key, want string) {
	status := 0
	if want == "" {
		status = 1
	}
	var got string
	if s.daemon.postmap != "" {
		got = s.command(status, s.daemon.postmap, "-c", s.daemon.postfixDir, "-q", key, "socketmap:inet:"+s.daemon.Address+":postfix")
	} else {
		got = s.command(status, s.daemon.Program, "-query", key)
	}
	if got = strings.TrimSpace(got); s.err == nil && got != want {
		s.err = fmt.Errorf("the reply for %s is %q, want %q", key, got, want)
	}
}

// command prints a command line and its output, and returns its standard
// output. An unexpected exit status ends the story.
func (s *story) command(status int, name string, args ...string) string {
	if s.err != nil {
		return ""
	}
	fmt.Printf("   $ %s %s\n", filepath.Base(name), strings.Join(shown(args), " "))
	if filepath.Base(name) == filepath.Base(s.daemon.Program) {
		args = append([]string{"-config", s.daemon.Config}, args...)
	}
	cmd := exec.CommandContext(s.ctx, name, args...)
	cmd.Env = s.daemon.Env
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.err = fmt.Errorf("running %s: %w", name, err)
		return ""
	}
	got := cmd.ProcessState.ExitCode()
	for _, line := range strings.Split(strings.TrimRight(stdout.String()+stderr.String(), "\n"), "\n") {
		if line != "" {
			fmt.Println("   " + line)
		}
	}
	if stdout.Len()+stderr.Len() == 0 && got == 1 {
		fmt.Println("   (not found)")
	}
	// postmap exits with 1 both for "not found", without a message, and for
	// errors.
	trouble := stderr.Len() > 0 && name == s.daemon.postmap
	if status != anyExit && (got != status || trouble) {
		s.err = fmt.Errorf("%s %s: exit status %d, want %d", name, strings.Join(args, " "), got, status)
	}
	return stdout.String()
}

// shown returns the arguments without the demo's own.
func shown(args []string) []string {
	if len(args) > 1 && args[0] == "-c" {
		return args[2:]
	}
	return args
}

func isTerminal(f *os.File) bool {
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0
}
