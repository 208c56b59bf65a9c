package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/observe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/reporting"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

// session is what Postfix 3.10 sends after a session under an enforced policy.
const session = `{"d":"one.test","pr":"v=TLSRPTv1;rua=mailto:tls@one.test","policies":[{"policy-type":2,"policy-string":[],"policy-domain":"one.test","mx-host":[],"failure-details":[],"t":0,"f":0}]}`

// sessionsCommand sends a file's lines to a socket, as libtlsrpt does, and waits until
// they are read: sessions SOCKET FILE
func sessionsCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: sessions SOCKET FILE")
	}
	var conn net.Conn
	var err error
	for deadline := time.Now().Add(patience); conn == nil; <-time.After(5 * time.Millisecond) {
		if conn, err = net.Dial("unixgram", ts.MkAbs(args[0])); err != nil && time.Now().After(deadline) {
			ts.Fatalf("no socket: %v", err)
		}
	}
	defer conn.Close()
	for line := range strings.Lines(ts.ReadFile(args[1])) {
		_, err := conn.Write([]byte(line))
		ts.Check(err)
	}
	raw, err := conn.(*net.UnixConn).SyscallConn()
	ts.Check(err)
	for unread, deadline := 1, time.Now().Add(patience); unread > 0; <-time.After(time.Millisecond) { // by the daemon
		ts.Check(raw.Control(func(fd uintptr) { unread, err = unix.IoctlGetInt(int(fd), unix.TIOCOUTQ) }))
		if ts.Check(err); time.Now().After(deadline) {
			ts.Fatalf("the daemon reads nothing")
		}
	}
}

// closedCommand stores a session with each domain on a day that is over, $DAY:
// closed STORE DOMAIN...
func closedCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: closed STORE DOMAIN...")
	}
	day := tlsrpt.DayOf(time.Now().AddDate(0, 0, -2))
	clock := day.Begin()
	s, err := store.Open(ts.MkAbs(args[0]), store.Options{Now: func() time.Time { return clock }})
	ts.Check(err)
	var batch store.Batch
	batch.Reset(day)
	for _, domain := range args[1:] {
		batch.Add(&tlsrpt.Event{Domain: domain, Policy: tlsrpt.Policy{Type: tlsrpt.TypeNone, Domain: domain}})
	}
	ts.Check(s.Write(&batch))
	clock = day.End().Add(11 * time.Minute)
	for range 2 { // the first merges, the second closes the day
		ts.Check(s.Upkeep())
	}
	ts.Check(s.Close())
	ts.Setenv("DAY", string(day))
}

// awaitDone polls until done, or until ctx ends.
func awaitDone(ctx context.Context, t *testing.T, done func() bool) {
	t.Helper()
	for !done() {
		select {
		case <-ctx.Done():
			t.Fatal("not in time")
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// sessionsOf returns how many sessions of a domain are in a store.
func sessionsOf(t *testing.T, path, domain string) (n uint64) {
	t.Helper()
	s, err := store.Open(path, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Merge(); err != nil {
		t.Fatal(err)
	}
	day, err := s.Load(tlsrpt.DayOf(time.Now()), domain)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range day.Policies {
		n += p.Successful + p.Failed
	}
	return n
}

// awaitSessions waits until the daemon knows as many sessions with one.test.
func awaitSessions(ctx context.Context, t *testing.T, client *control.Client, n uint64) {
	t.Helper()
	awaitDone(ctx, t, func() bool {
		sessions := uint64(0)
		err := client.TLS(ctx, "one.test", func(v reporting.View) error {
			for _, p := range v.Policies {
				sessions += p.Summary.Successful + p.Summary.Failed
			}
			return nil
		})
		return err == nil && sessions == n
	})
}

func TestTheSocketForTLSReportsThatSystemdPassesIsRead(t *testing.T) {
	lab := testlab.New(t)
	dir := t.TempDir()
	reports := filepath.Join(dir, "reports.db")
	// The daemon could not make the socket: the folder does not exist.
	file := filepath.Join(dir, "sts-tlsmap.toml")
	if err := lab.CA.WritePEM(filepath.Join(dir, "lab.pem")); err != nil {
		t.Fatal(err)
	}
	tables := fmt.Sprintf("[tlsrpt]\ncollect = true\npath = %q\npostfix_socket = \"unix:/nowhere/none/tlsrpt.sock\"\n", reports)
	if err := writeLabConfig(file, lab.Lab, testlab.DaemonConfig{Tables: tables}); err != nil {
		t.Fatal(err)
	}
	inet, unixControl := listenTCP(t), listenUnix(t, dir, "passed.sock")
	path := filepath.Join(dir, "tlsrpt.sock")
	datagrams, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer datagrams.Close()
	passedDatagrams, err := datagrams.File()
	if err != nil {
		t.Fatal(err)
	}
	defer passedDatagrams.Close()
	conn, err := net.Dial("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range 2 { // before the daemon runs: the socket holds them
		if _, err := conn.Write([]byte(session)); err != nil {
			t.Fatal(err)
		}
	}
	p := startProgram(t, dir, []string{"LISTEN_FDS=3", "LISTEN_FDNAMES=socketmap:tlsrpt:control"}, "-config", file, inet.file, passedDatagrams, unixControl.file)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	client := control.NewClient(unixControl.addr)
	if h, err := client.Health(ctx); err != nil || len(h.Troubles) > 0 {
		t.Errorf("got %+v, %v", h.Troubles, err)
	}
	awaitSessions(ctx, t, client, 2)
	p.stop(t)
	if n := sessionsOf(t, reports, "one.test"); n != 2 {
		t.Errorf("%d sessions are stored; want 2\n%s", n, p.stderr.String())
	}
}

func TestAWrongSocketForTLSReportsFromSystemdDoesNotKeepTheDaemonFromStarting(t *testing.T) {
	lab := testlab.New(t)
	dir, file := writeConfig(t, lab, testlab.DaemonConfig{Tables: "[tlsrpt]\ncollect = true\npath = \"reports.db\"\n"})
	inet, unixControl, wrong := listenTCP(t), listenUnix(t, dir, "passed.sock"), listenTCP(t)
	p := startProgram(t, dir, []string{"LISTEN_FDS=3", "LISTEN_FDNAMES=socketmap:tlsrpt:control"}, "-config", file, inet.file, wrong.file, unixControl.file)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	client := control.NewClient(unixControl.addr)
	awaitDone(ctx, t, func() bool {
		h, err := client.Health(ctx)
		return err == nil && len(h.Troubles) > 0 && strings.Contains(h.Troubles[0].What, "ListenDatagram=")
	})
	p.stop(t)
}

func TestLookupsAreAnsweredWhileTLSReportsDoNotWork(t *testing.T) {
	const config = "[tlsrpt]\norganization = \"x\"\ncontact = \"tls@relay.test\"\nsender = \"tls@other.test\"\n"
	for table, wants := range map[string][]string{
		"path = \"/nowhere/reports.db\"\n":                                             {"/nowhere/reports.db"},
		"path = \"reports.db\"\npostfix_socket = \"unix:/nowhere/none/tlsrpt.sock\"\n": {"/nowhere/none", "tlsrpt.sender: must have the same domain as contact"},
	} {
		lab := testlab.New(t)
		lab.Domain("one.test", testlab.With{})
		dir, file := writeConfig(t, lab, testlab.DaemonConfig{Tables: config + table})
		p := startProgram(t, dir, []string{"HTTPS_PROXY=" + lab.Proxy.URL()}, "-config", file)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if reply, err := socketmap.Query(ctx, p.endpoint(ctx, t, dir), "postfix", "one.test"); err != nil || !strings.HasPrefix(reply, "OK secure") {
			t.Errorf("got %q, %v", reply, err)
		}
		client := control.NewClient(filepath.Join(dir, "control.sock"))
		for _, want := range wants {
			awaitDone(ctx, t, func() bool {
				h, err := client.Health(ctx)
				return err == nil && slices.ContainsFunc(h.Troubles, func(trouble control.Trouble) bool {
					return trouble.Condition == observe.Reports && strings.Contains(trouble.What, want)
				})
			})
		}
		p.stop(t)
	}
}

func TestALookupOfAnMTAIsReportedAndOneByQueryIsNot(t *testing.T) {
	lab := testlab.New(t)
	lab.Domain("one.test", testlab.With{MX: []string{"mx9.one.test"}})
	dir, file := writeConfig(t, lab, testlab.DaemonConfig{Tables: "[tlsrpt]\ncollect = true\npath = \"reports.db\"\npostfix_socket = \"unix:tlsrpt.sock\"\n"})
	p := startProgram(t, dir, []string{"HTTPS_PROXY=" + lab.Proxy.URL()}, "-config", file)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	at := p.endpoint(ctx, t, dir)
	for mapName, want := range map[string]string{"exim": "none of its MX hosts is listed", "postfix": "secure match=mx9.one.test"} {
		for range 2 {
			if reply, err := socketmap.Query(ctx, at, mapName, "one.test"); err != nil || !strings.Contains(reply, want) {
				t.Fatalf("got %q, %v", reply, err)
			}
		}
		out, _ := exec.Command("sts-tlsmap", "-config", file, "-query", "one.test", "-map", mapName).CombinedOutput() // TEMP is an error
		if !strings.Contains(string(out), want) {
			t.Errorf("-query prints %s", out)
		}
	}
	awaitSessions(ctx, t, control.NewClient(filepath.Join(dir, "control.sock")), 2) // at the end, what is not counted yet is dropped
	p.stop(t)
	if n := sessionsOf(t, filepath.Join(dir, "reports.db"), "one.test"); n != 2 {
		t.Errorf("%d sessions are stored; want those of two lookups in map exim\n%s", n, p.stderr.String())
	}
}

func TestWithoutKeysOfTLSReportsTheDaemonMakesNoFileForThem(t *testing.T) {
	lab := testlab.New(t)
	dir, file := writeConfig(t, lab, testlab.DaemonConfig{})
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	tables := "[tlsrpt]\npath = \"reports.db\"\npostfix_socket = \"unix:reports.sock\"\n"
	if err := os.WriteFile(file, append(text, tables...), 0o600); err != nil {
		t.Fatal(err)
	}
	p := startProgram(t, dir, nil, "-config", file)
	p.stop(t)
	if found, err := filepath.Glob(filepath.Join(dir, "reports*")); err != nil || len(found) > 0 {
		t.Errorf("got %q, %v", found, err)
	}
}
