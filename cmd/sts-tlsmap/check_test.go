package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/observe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// answers replies the same to every lookup.
type answers string

func (a answers) AppendReply(_ context.Context, dst, _, _ []byte) []byte { return append(dst, a...) }

// checked runs -check against a daemon with that health and that reply, beside a
// Postfix that asks it, and returns the exit code and the output.
func checked(t *testing.T, h control.Health, reply, postconf string) (code int, out string) {
	t.Helper()
	dir, file := writeConfig(t, testlab.New(t), testlab.DaemonConfig{})
	lookups := socketmap.NewServer(answers(reply), socketmap.Options{})
	l := listenAt(t, "tcp", "127.0.0.1:0")
	h.Listeners = []string{endpoint.Of(l.Addr()).String()}
	h.Maps = mta.Builtin()
	server := control.NewServer(control.Options{Log: slog.New(slog.DiscardHandler), Health: func() control.Health { return h }})
	socket, err := control.Listen(filepath.Join(dir, "control.sock"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 2)
	go func() { served <- lookups.Serve(l) }()
	go func() { served <- server.Serve(socket) }()
	defer func() {
		if err := errors.Join(lookups.Shutdown(t.Context()), server.Shutdown(t.Context())); err != nil {
			t.Error(err)
		}
		for range 2 {
			if err := <-served; err != nil && !errors.Is(err, http.ErrServerClosed) {
				t.Error(err)
			}
		}
	}()
	if postconf == "" {
		postconf = fmt.Sprintf("#!/bin/sh\n[ $1 = -x ] && printf 'mail_version = 3.10.5\\nsmtp_tls_CAfile = %s\\nsmtp_tls_policy_maps = socketmap:%s:postfix\\n'; exit 0\n",
			filepath.Join(dir, "lab.pem"), h.Listeners[0])
	}
	if err := os.WriteFile(filepath.Join(dir, "postconf"), []byte(postconf), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	f, err := parseFlags([]string{"-check", "-config", file})
	if err != nil {
		t.Fatal(err)
	}
	var stdout bytes.Buffer
	a := &app{flags: f, stdout: &stdout, stderr: os.Stderr, askWait: 2 * time.Second}
	if code, err = a.run(t.Context()); err != nil {
		t.Error(err)
	}
	return code, stdout.String()
}

// Which conditions there are, and when, is tested in internal/observe. Those that
// can be brought about in seconds are in testdata/trouble.txt, with the real daemon.
func TestCheckFailsWhereMailWaitsOrIsLessProtected(t *testing.T) {
	condition := func(name, severity string) control.Health {
		return control.Health{Troubles: []control.Trouble{{Condition: name, Severity: severity, What: "it is so", Next: "look"}}}
	}
	for _, c := range []struct {
		name            string
		health          control.Health
		reply, postconf string
		failed          string // empty: all is well
		failures        int    // 0: 1
		line            string
	}{
		{name: "all is well", line: "ok      Postfix 3.10.5: asks socketmap:inet:127.0.0.1:"},
		{name: "a condition that mail feels", health: condition(observe.Discovery, observe.Page), failed: "discovery: it is so; look"},
		{name: "a condition that can wait", health: condition(observe.Salvage, observe.Ticket), line: "note    salvage: it is so; look"},
		{name: "an unknown map", health: control.Health{UnknownMap: "posfix", UnknownAt: time.Now().Add(-time.Hour)},
			postconf: "#!/bin/sh\n[ $1 = -x ] && echo mail_version = 3.10.5; exit 0\n", failed: "unknown map: map posfix was asked for at ", failures: 2},
		{name: "an unknown map for which the MTA of this machine does not ask", health: control.Health{UnknownMap: "posfix", UnknownAt: time.Now()},
			line: "note    unknown map: map posfix was asked for at "},
		{name: "an unknown map long ago", health: control.Health{UnknownMap: "posfix", UnknownAt: time.Now().Add(-3 * time.Hour)}, line: "ok      daemon: "},
		{name: "no start yet", reply: "TEMP /x.toml:3: oops", failed: "lookups: the daemon replies at inet:127.0.0.1:"},
		{name: "a postconf that hangs", postconf: "#!/bin/sh\nexec sleep 60\n", failed: "Postfix: reading Postfix's settings: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.reply == "" {
				c.reply = "NOTFOUND "
			}
			begun := time.Now()
			code, out := checked(t, c.health, c.reply, c.postconf)
			wantCode, verdict := exitDone, "\nok      verdict: all is well here; mail that waits for its hosts: sts-tlsmap -waiting\n"
			if c.failed != "" {
				c.line, wantCode = "\nfailed  "+c.failed, exitNotFound
				verdict = "\nfailed  verdict: mail waits, or is less protected than configured: " + numbered(max(c.failures, 1), "failure") + "\n"
			}
			if code != wantCode || !strings.Contains(out, c.line) || !strings.HasSuffix(out, verdict) {
				t.Errorf("exit %d, want %d and %q:\n%s", code, wantCode, c.line, out)
			}
			if took := time.Since(begun); took > patience {
				t.Errorf("it took %s", took)
			}
		})
	}
}

// A user outside the group may not ask the daemon, and not read its files.
func TestCheckDoesNotFailForWhatItMayNotRead(t *testing.T) {
	dir, file := writeConfig(t, testlab.New(t), testlab.DaemonConfig{})
	f, err := parseFlags([]string{"-check", "-config", file})
	if err != nil {
		t.Fatal(err)
	}
	var stdout bytes.Buffer
	a := &app{flags: f, stdout: &stdout, found: make(map[string]int), askWait: brief,
		peerErr: fmt.Errorf("%w to ask the daemon (no permission to open %s)", control.ErrNotAllowed, dir)}
	if a.cfg, err = config.Load(file); err != nil {
		t.Fatal(err)
	}
	a.cfg.Listen = nil // nothing else fails
	a.checkDaemon(t.Context())
	if want := "note    daemon: could not be checked: not allowed to ask the daemon (no permission to open " + dir + "); run this as root"; !strings.HasPrefix(stdout.String(), want) || a.found[stateFailed] > 0 {
		t.Errorf("%s\nwant %q", &stdout, want)
	}
	stdout.Reset()
	a.cfgErr = fmt.Errorf("the configuration file cannot be read: %w", os.ErrPermission)
	if code, _ := a.check(t.Context()); code != exitFailed || !strings.HasSuffix(stdout.String(), "\nwrong   verdict: the configuration could not be read\n") {
		t.Errorf("exit %d:\n%s", code, &stdout)
	}
}
