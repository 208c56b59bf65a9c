package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// A held is a daemon that cannot start yet.
type held struct {
	*program
	lab       *testlab.T
	dir, file string
	names     string // of the sockets that systemd passes: one for lookups, one for control
	at        endpoint.Endpoint
}

// hold starts the daemon after spoil has changed something, with a socket of its own
// or one that systemd passes.
func hold(t *testing.T, bySystemd bool, env string, spoil func(h *held)) *held {
	t.Helper()
	h := &held{lab: testlab.New(t), names: "socketmap:control"}
	h.lab.Domain("one.test", testlab.With{})
	socket := filepath.Join(t.TempDir(), "map.sock")
	h.dir, h.file = writeConfig(t, h.lab, testlab.DaemonConfig{Listen: "unix:" + socket})
	h.at = endpoint.Endpoint{Network: "unix", Address: socket}
	spoil(h)
	all := []string{"HTTPS_PROXY=" + h.lab.Proxy.URL(), "WATCHDOG_USEC=200000"}
	if env != "" {
		all = append(all, env)
	}
	args := []any{"-config", h.file}
	if bySystemd {
		inet, unixControl := listenTCP(t), listenUnix(t, h.dir, "control.sock")
		h.at = endpoint.Endpoint{Network: "tcp", Address: inet.addr}
		all = append(all, "LISTEN_FDS=2", "LISTEN_FDNAMES="+h.names)
		args = append(args, inet.file, unixControl.file)
	}
	h.program = startProgram(t, h.dir, all, args...)
	return h
}

func (h *held) query(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	reply, err := socketmap.Query(ctx, h.at, "postfix", "one.test")
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

// command runs the program in another mode, and returns its exit code and what it
// printed, in one line.
func (h *held) command(t *testing.T, args ...string) (code int, out string) {
	t.Helper()
	c := exec.Command(h.cmd.Args[3], append(args, "-config", h.file)...)
	c.Env = append(os.Environ(), "HTTPS_PROXY="+h.lab.Proxy.URL())
	printed, err := c.CombinedOutput()
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return c.ProcessState.ExitCode(), strings.Join(strings.Fields(string(printed)), " ")
}

// started waits until the daemon has started, and checks that it answers. The log
// must have so many lines about why it could not.
func (h *held) started(t *testing.T, lines int) {
	t.Helper()
	h.notified(t, "STATUS=")
	h.notified(t, "READY=1")
	if reply := h.query(t); !strings.HasPrefix(reply, "OK secure match=mx1.one.test") {
		t.Errorf("after the start: %q", reply)
	}
	h.stop(t)
	if log := h.stderr.String(); errorLines(log) != lines || strings.Count(log, "cannot start yet") != lines {
		t.Errorf("the log has not %d errors:\n%s", lines, log)
	}
}

func TestADaemonWithABrokenFileAnswersTEMPWithTheLineAndStartsOnceItIsCorrected(t *testing.T) {
	for _, bySystemd := range []bool{false, true} {
		t.Run(fmt.Sprintf("systemd %t", bySystemd), func(t *testing.T) {
			var good []byte
			h := hold(t, bySystemd, "", func(h *held) {
				good, _ = os.ReadFile(h.file)
				writeFile(t, h.file, string(good)+"[lookup2]\n")
			})
			mistake := fmt.Sprintf("TEMP %s:%d: lookup2: there is no such key", h.file, strings.Count(string(good), "\n")+1)
			if reply := h.query(t); !strings.HasPrefix(reply, mistake) {
				t.Errorf("got %q, want %q", reply, mistake)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if _, err := control.NewClient(filepath.Join(h.dir, "control.sock")).Health(ctx); err == nil ||
				!strings.Contains(err.Error(), "the daemon says: it cannot start yet: "+h.file) {
				t.Errorf("a command is told %v", err)
			}
			h.notified(t, "WATCHDOG=1")
			h.notified(t, "WATCHDOG=1")
			// Another mistake is said too.
			writeFile(t, h.file, "listen = oops\n"+string(good))
			for mistake = "TEMP " + h.file + ":1: listen: "; !strings.HasPrefix(h.query(t), mistake); {
				if ctx.Err() != nil {
					t.Fatalf("got %q, want %q", h.query(t), mistake)
				}
			}
			writeFile(t, h.file, string(good))
			h.started(t, 2)
		})
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestADaemonWithoutWhatItNeedsAnswersTEMP has what is not in the file: the first
// two need a restart, the others are noticed.
// errorLines counts the errors in a log, without those of the watchdog: on a busy machine
// it may wait too long for its own lookup.
func errorLines(log string) int {
	return strings.Count(log, "level=ERROR") - strings.Count(log, "lookups are not being answered")
}

func TestADaemonWithoutWhatItNeedsAnswersTEMP(t *testing.T) {
	for _, c := range []struct {
		name, env, reply string
		spoil            func(h *held) (mend func())
	}{
		{"a proxy that is none", "HTTPS_PROXY=::garbage", "TEMP HTTPS_PROXY is not the URL of a proxy", func(*held) func() { return nil }},
		{"no authorities", "SSL_CERT_FILE=/dev/null", "TEMP no certificate authorities to trust: the system has none", func(h *held) func() {
			t.Setenv("SSL_CERT_DIR", t.TempDir())
			writeFile(t, h.file, "control = \"unix:control.sock\"\nlisten = [\"unix:"+h.at.Address+"\"]\n[cache]\npath = \"cache.db\"\n")
			return nil
		}},
		{"a file of authorities that is gone", "", "TEMP %s:", func(h *held) func() {
			pem := filepath.Join(h.dir, "lab.pem")
			if err := os.Rename(pem, pem+".away"); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := os.Rename(pem+".away", pem); err != nil {
					t.Error(err)
				}
			}
		}},
		{"a cache in use", "", "TEMP the cache cannot be opened: open the cache: cache %s/cache.db: another process has it open", func(h *held) func() {
			store, err := cache.Open(filepath.Join(h.dir, "cache.db"), cache.Options{})
			if err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := store.Close(); err != nil {
					t.Error(err)
				}
			}
		}},
		{"a folder in the place of the cache", "", "TEMP the cache cannot be opened: %s/cache.db is a folder; name a file", func(h *held) func() {
			if err := os.Mkdir(filepath.Join(h.dir, "cache.db"), 0o755); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := os.Remove(filepath.Join(h.dir, "cache.db")); err != nil {
					t.Error(err)
				}
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var mend func()
			h := hold(t, false, c.env, func(h *held) { mend = c.spoil(h) })
			want := strings.Replace(c.reply, "%s:", h.file+":", 1)
			want = strings.Replace(want, "%s/", h.dir+"/", 1)
			if reply := h.query(t); !strings.HasPrefix(reply, want) {
				t.Errorf("got %q, want %q", reply, want)
			}
			if mend == nil {
				h.stop(t)
				if log := h.stderr.String(); !strings.Contains(log, "; then restart the daemon\"") || strings.Contains(log, "tried again") {
					t.Errorf("the log does not ask for a restart, or promises more:\n%s", log)
				}
				return
			}
			mend()
			h.started(t, 1)
		})
	}
}

// spoilTop puts lines before the rest of the file. A line of the same key goes.
func (h *held) spoilTop(t *testing.T, lines ...string) {
	t.Helper()
	text, err := os.ReadFile(h.file)
	if err != nil {
		t.Fatal(err)
	}
	rest := strings.SplitAfter(string(text), "\n")
	for _, line := range lines {
		key, _, _ := strings.Cut(line, " ")
		rest = slices.DeleteFunc(rest, func(l string) bool { return strings.HasPrefix(l, key+" ") })
	}
	writeFile(t, h.file, strings.Join(lines, "\n")+"\n"+strings.Join(rest, ""))
}

func TestADaemonAnswersLookupsWithoutASocketThatCannotBeOpened(t *testing.T) {
	taken := "inet:" + listenAt(t, "tcp", "127.0.0.1:0").Addr().String()
	metrics := func(h *held) { h.spoilTop(t, fmt.Sprintf("metrics = %q", taken)) }
	const runs = "socket: the daemon runs without it: "
	for _, c := range []struct {
		name       string
		bySystemd  bool
		spoil      func(h *held)
		log, check string
	}{
		{"the port of metrics is taken", false, metrics, "metrics: listen at " + taken, "note " + runs + "metrics: listen at " + taken},
		{"the same, and systemd passed the others", true, metrics, "metrics: listen at " + taken, "note " + runs + "metrics: listen at " + taken},
		{"no folder for control", false, func(h *held) { h.spoilTop(t, `control = "unix:nofolder/control.sock"`) },
			"control: control socket: listen at unix:", "failed control: lookups are answered, but nothing listens at "},
		{"no folder for one listener", false, func(h *held) {
			h.spoilTop(t, fmt.Sprintf(`listen = ["unix:nofolder/map.sock", %q]`, h.at))
		}, "listen: listen at unix:", "failed " + runs + "listen: listen at unix:"},
		{"a name of systemd's that is not known", true, func(h *held) { h.names = "socketmap:console" },
			`systemd passed 1 sockets named \"console\"`, "failed control: nothing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := hold(t, c.bySystemd, "", c.spoil)
			if reply := h.query(t); !strings.HasPrefix(reply, "OK secure match=mx1.one.test") {
				t.Errorf("got %q", reply)
			}
			if h.names == "socketmap:control" { // otherwise -check does not find the daemon
				if code, out := h.command(t, "-check"); code != exitNotFound && strings.HasPrefix(c.check, "failed") || !strings.Contains(out, c.check) {
					t.Errorf("-check exits with %d and has no %q:\n%s", code, c.check, out)
				}
			}
			h.stop(t)
			const line = `level=ERROR msg="the daemon runs without a socket" err="`
			if log := h.stderr.String(); strings.Count(log, line) != 1 || !strings.Contains(log, line+c.log) ||
				!strings.Contains(log, "; then restart the daemon\"") {
				t.Errorf("the log has not one error with %q:\n%s", c.log, log)
			}
		})
	}
}

func TestADaemonThatHasHeldMailStartsWithoutASocketThatCannotBeOpened(t *testing.T) {
	taken := "inet:" + listenAt(t, "tcp", "127.0.0.1:0").Addr().String()
	h := hold(t, false, "", func(h *held) { h.spoilTop(t, "lookup2 = 1") })
	if reply := h.query(t); !strings.HasPrefix(reply, "TEMP ") {
		t.Errorf("got %q", reply)
	}
	h.spoilTop(t, fmt.Sprintf("metrics = %q", taken), "lookup2 = 1")
	text, err := os.ReadFile(h.file)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, h.file, strings.Replace(string(text), "lookup2 = 1\n", "", 1))
	h.notified(t, "STATUS=")
	h.notified(t, "READY=1")
	if reply := h.query(t); !strings.HasPrefix(reply, "OK secure") {
		t.Errorf("after the start: %q", reply)
	}
	h.stop(t)
	if log := h.stderr.String(); !strings.Contains(log, `msg="the daemon runs without a socket" err="metrics: listen at `+taken) {
		t.Errorf("the log:\n%s", log)
	}
}

// TestASyntaxErrorLeavesTheSocketsAboveIt also ends the daemon on hold, which removes
// its sockets.
func TestASyntaxErrorLeavesTheSocketsAboveIt(t *testing.T) {
	line := 0
	h := hold(t, false, "", func(h *held) {
		good, err := os.ReadFile(h.file)
		if err != nil {
			t.Fatal(err)
		}
		line = strings.Count(string(good), "\n") + 1
		writeFile(t, h.file, string(good)+"foo = = 3\n")
	})
	if reply, want := h.query(t), fmt.Sprintf("TEMP %s:%d: lookup.foo: ", h.file, line); !strings.HasPrefix(reply, want) {
		t.Errorf("got %q, want %q", reply, want)
	}
	code, out := h.command(t, "-check")
	if want := "failed daemon: it cannot start, and answers every lookup TEMP: " + h.file; code != exitFailed || !strings.Contains(out, want) ||
		!strings.HasSuffix(out, "wrong verdict: the configuration is wrong, and all mail waits") {
		t.Errorf("-check exits with %d, and has no %q:\n%s", code, want, out)
	}
	h.stop(t)
	for _, path := range []string{h.at.Address, filepath.Join(h.dir, "control.sock")} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
}

func TestADaemonOnHoldEndsWhenALookupSocketFails(t *testing.T) {
	dir, cfg := t.TempDir(), config.Default()
	cfg.Listen = []endpoint.Endpoint{{Network: "unix", Address: filepath.Join(dir, "map.sock")}}
	cfg.Control.Address = filepath.Join(dir, "control.sock")
	s := &service{cfg: cfg, log: slog.New(slog.DiscardHandler), own: make(map[socket]net.Listener), failed: make(chan error, 1)}
	defer s.closeOwn()
	s.failed <- errors.New("accept failed")
	ended := make(chan error, 1)
	go func() {
		_, err := s.hold(nil, filepath.Join(dir, "none.toml"), errors.New("oops"))
		ended <- err
	}()
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "oops") || !strings.Contains(err.Error(), "accept failed") {
			t.Errorf("got %v", err)
		}
	case <-time.After(patience):
		t.Fatal("it goes on")
	}
}

func TestCommandsSayThatAllMailWaitsWhileTheDaemonCannotStart(t *testing.T) {
	h := hold(t, false, "", func(h *held) {
		store, err := cache.Open(filepath.Join(h.dir, "cache.db"), cache.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { store.Close() })
	})
	const reason = "the cache cannot be opened: open the cache: cache "
	_, out := h.command(t, "-explain", "one.test")
	if !strings.Contains(out, "one.test The daemon cannot start, and all mail waits: "+reason) || !strings.Contains(out, "file reply every map reply TEMP "+reason) ||
		strings.Contains(out, "reply NOTFOUND") || strings.Contains(out, "reply OK") {
		t.Errorf("-explain:\n%s", out)
	}
	if code, out := h.command(t, "-query", "one.test"); code != exitFailed || !strings.HasPrefix(out, "sts-tlsmap: the daemon replies TEMP: "+reason) || strings.Contains(out, "hint") {
		t.Errorf("-query exits with %d:\n%s", code, out)
	}
	if code, out := h.command(t, "-check"); code != exitNotFound || !strings.Contains(out, "failed daemon: the daemon says: it cannot start yet: "+reason) {
		t.Errorf("-check exits with %d:\n%s", code, out)
	}
	h.stop(t)
}

// TestFewDescriptorsCostNoProtection has a daemon with 64 descriptors, 200 idle
// connections, a hundred new domains whose DNS is silent for ten seconds, and more
// honest ones than it can look for at once.
func TestFewDescriptorsCostNoProtection(t *testing.T) {
	lab := testlab.New(t)
	server := lab.PolicyServer("")
	var domains []string
	for i := range 40 {
		domains = append(domains, lab.Domain(fmt.Sprintf("d%d.test", i), testlab.With{Server: server}).Name)
	}
	const silent = 100
	for i := range silent {
		lab.DNS.Break(fmt.Sprintf("_mta-sts.s%d.test", i), "TXT", testlab.Silent)
	}
	dir := t.TempDir()
	exe, err := exec.LookPath("sts-tlsmap")
	if err == nil {
		err = lab.CA.WritePEM(filepath.Join(dir, "lab.pem"))
	}
	if err != nil {
		t.Fatal(err)
	}
	d, err := testlab.NewDaemon(exe, dir, testlab.DaemonConfig{DNS: lab.DNS.Addr, CA: "lab.pem"})
	if err != nil {
		t.Fatal(err)
	}
	d.Wrapper = []string{"/bin/sh", "-c", `ulimit -n 64; exec "$0" "$@"`}
	d.Env = append(testlab.WithoutProxies(os.Environ()), "HTTPS_PROXY="+lab.Proxy.URL())
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	if err := d.Start(ctx); err != nil {
		t.Fatal(err)
	}
	defer d.Kill() // if the test fails before it ends
	for range 200 {
		idle, err := net.Dial("tcp", d.Address)
		if err != nil {
			t.Fatal(err)
		}
		defer idle.Close()
	}
	at := endpoint.Endpoint{Network: "tcp", Address: d.Address}
	var strangers sync.WaitGroup
	while, end := context.WithCancel(ctx)
	defer end()
	for i := range silent {
		strangers.Go(func() { _, _ = socketmap.Query(while, at, "postfix", fmt.Sprintf("s%d.test", i)) })
	}
	if err := lab.Await(ctx, func() bool {
		asked := 0
		for i := range silent {
			asked += min(1, lab.DNS.Asked(fmt.Sprintf("_mta-sts.s%d.test", i), "TXT"))
		}
		return asked >= 16
	}); err != nil {
		t.Fatal(err)
	}
	soon, cancel := context.WithTimeout(ctx, 7*time.Second)
	defer cancel()
	// An honest client asks again when it is told TEMP, or when its connection had
	// to make room.
	var asking sync.WaitGroup
	for _, domain := range domains {
		asking.Go(func() {
			for {
				reply, err := socketmap.Query(soon, at, "postfix", domain)
				switch {
				case soon.Err() != nil:
					t.Errorf("%s: no answer: %q, %v", domain, reply, err)
					return
				case err == nil && strings.HasPrefix(reply, "OK secure"):
					return
				case err == nil && !strings.HasPrefix(reply, "TEMP "):
					t.Errorf("%s: got %q", domain, reply)
					return
				}
			}
		})
	}
	asking.Wait()
	end()
	strangers.Wait()
	if err := d.Stop(); err != nil {
		t.Error(err)
	}
	for _, want := range []string{
		`msg="fewer connections are held than max_connections" max_connections=4096 held=32`,
		`msg="too few file descriptors for the concurrency of discoveries" concurrency=256 at_once=16`,
	} {
		if !strings.Contains(d.Log(), want) {
			t.Errorf("the log has no %s", want)
		}
	}
}

func TestDiscoveriesGetHalfOfTheDescriptorsThatConnectionsLeave(t *testing.T) {
	cfg := config.Default()
	for descriptors, want := range map[int]int{1: 1, 64: 16, 1024: 256, 16384: 6144, 1 << 20: 1<<19 - 2048} {
		if got := discoveries(cfg, descriptors); got != want {
			t.Errorf("of %d: %d, want %d", descriptors, got, want)
		}
	}
}
