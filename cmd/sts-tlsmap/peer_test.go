package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// TestNoModeWaitsForADaemonThatDoesNotAnswer has sockets that somebody holds and
// nobody serves, as systemd does for a daemon that cannot start.
func TestNoModeWaitsForADaemonThatDoesNotAnswer(t *testing.T) {
	lab := testlab.New(t)
	lookups := listenAt(t, "tcp", "127.0.0.1:0")
	dir, file := writeConfig(t, lab, testlab.DaemonConfig{Listen: "inet:" + lookups.Addr().String()})
	listenAt(t, "unix", filepath.Join(dir, "control.sock"))
	list := filepath.Join(dir, "list")
	if err := os.WriteFile(list, []byte("one.test\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fillCache(t, filepath.Join(dir, "cache.db"))

	const silence = "sts-tlsmap: the daemon does not answer at "
	for _, test := range []struct {
		args           string
		code           int
		stdout, stderr string // parts of them
	}{
		// Those that read go by the file, and say so.
		{"-cache", exitDone, "one.test", silence + dir + "/control.sock in 0s; reading the file " + dir + "/cache.db instead"},
		{"-cache one.test", exitDone, "mx: mx1.one.test", "cache.db instead"},
		{"-exempt", exitDone, "exempt: two.test until ", "cache.db instead"},
		{"-explain one.test", exitDone, "Cache, from the file\n  daemon       the daemon does not answer", ""},
		// Those that change something fail, and say where to look.
		{"-exempt one.test -for 4h", exitFailed, "", silence + dir + "/control.sock in 0s\nsts-tlsmap: hint: it hangs, or cannot start while systemd holds its sockets"},
		{"-forget all", exitFailed, "", silence},
		{"-forget one.test", exitFailed, "", silence},
		{"-refresh one.test", exitFailed, "", silence},
		{"-learn " + list, exitFailed, "", silence},
		// A lookup has an end too.
		{"-query one.test", exitFailed, "", silence + "inet:" + lookups.Addr().String()},
		{"-check", exitNotFound, "failed  daemon: the daemon does not answer at " + dir + "/control.sock in 0s; it hangs, or cannot start while systemd", ""},
		{"-check", exitNotFound, "failed  lookups: the daemon does not answer at inet:" + lookups.Addr().String() + " in 300ms; it hangs", ""},
	} {
		f, err := parseFlags(append(strings.Fields(test.args), "-config", file))
		if err != nil {
			t.Fatal(err)
		}
		stderr, err := os.Create(filepath.Join(dir, "stderr"))
		if err != nil {
			t.Fatal(err)
		}
		defer stderr.Close()
		var stdout bytes.Buffer
		a := &app{flags: f, stdout: &stdout, stderr: stderr, askWait: brief}
		code, err := a.run(t.Context())
		if err != nil {
			code = a.fail(err)
		}
		said, err := os.ReadFile(stderr.Name())
		if err != nil {
			t.Fatal(err)
		}
		if code != test.code || !strings.Contains(stdout.String(), test.stdout) || !strings.Contains(string(said), test.stderr) {
			t.Errorf("%s: exit %d\n%s\n%s", test.args, code, &stdout, said)
		}
	}
}

// TestCommandsSayWhatTheySawOfTheDaemon has a daemon that crashed before and while it
// was asked, and one that closes connections. TestNoModeWaitsForADaemonThatDoesNotAnswer
// has the one that is silent.
func TestCommandsSayWhatTheySawOfTheDaemon(t *testing.T) {
	lab := testlab.New(t)
	gate := lab.Domain("slow.test", testlab.With{}).Policy.Hold()
	lookups := listenAt(t, "tcp", "127.0.0.1:0")
	at := lookups.Addr().String()
	lookups.Close()
	dir, file := writeConfig(t, lab, testlab.DaemonConfig{Listen: "inet:" + at})
	socket := filepath.Join(dir, "control.sock")
	says := func(args string, want ...string) {
		t.Helper()
		out, err := exec.Command("sts-tlsmap", append(strings.Fields(args), "-config", file)...).CombinedOutput()
		if err == nil || slices.ContainsFunc(want, func(w string) bool { return !strings.Contains(string(out), w) }) {
			t.Errorf("%s: %v, %s\nwant %q", args, err, out, want)
		}
	}
	p := startProgram(t, dir, []string{"HTTPS_PROXY=" + lab.Proxy.URL()}, "-config", file)
	crashed := make(chan struct{})
	go func() {
		defer close(crashed)
		says("-refresh slow.test", "the daemon's answer broke off: unexpected EOF")
	}()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := lab.Await(ctx, func() bool { return gate.Waiting() > 0 })
	if err = errors.Join(err, p.cmd.Process.Kill()); err != nil {
		t.Fatal(err)
	}
	<-crashed
	<-p.ended
	says("-refresh slow.test", "the daemon is not running (nothing listens at "+socket, "hint: start it")
	says("-query slow.test", "ask inet:"+at, "connection refused; is the daemon running?")

	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	for _, l := range []net.Listener{listenAt(t, "unix", socket), listenAt(t, "tcp", at)} {
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		}()
	}
	says("-refresh slow.test", "the daemon closed the connection without an answer at "+socket, "hint: it crashed or is stopping")
	says("-query slow.test", "the server closed the connection: its log says why")
}

// fillCache makes a cache with a policy and an exemption.
func fillCache(t *testing.T, path string) {
	t.Helper()
	store, err := cache.Open(path, cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	_, err = store.Write([]cache.Op{{Put: &cache.Record{
		Domain: "one.test", Mode: policy.ModeEnforce, ID: "1", Text: []byte(testlab.PolicyText("enforce", time.Hour, "mx1.one.test")),
		Fetched: now, Expires: now.Add(time.Hour), Due: now.Add(time.Hour),
	}}})
	if err == nil {
		err = store.WriteExemptions([]exempt.Exemption{{Domain: "two.test", Until: now.Add(time.Hour)}})
	}
	if err != nil {
		t.Fatal(fmt.Errorf("filling the cache: %w", err))
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
}
