package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

// TestSocketsThatSystemdPassesReplaceTheConfiguredOnes starts the program as
// systemd does: descriptors from 3 on, named in the environment.
func TestSocketsThatSystemdPassesReplaceTheConfiguredOnes(t *testing.T) {
	lab := testlab.New(t)
	lab.Domain("one.test", testlab.With{})
	// The daemon could not listen at these two: the directory does not exist.
	dir, file := writeConfig(t, lab, testlab.DaemonConfig{Listen: "unix:/nowhere/map.sock", Control: "unix:/nowhere/control.sock"})
	inet, unixMap, unixControl := listenTCP(t), listenUnix(t, dir, "map.sock"), listenUnix(t, dir, "passed.sock")
	env := []string{"LISTEN_FDS=3", "LISTEN_FDNAMES=socketmap:socketmap-chroot:control", "HTTPS_PROXY=" + lab.Proxy.URL()}
	p := startProgram(t, dir, env, "-config", file, inet.file, unixMap.file, unixControl.file)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, e := range []endpoint.Endpoint{{Network: "tcp", Address: inet.addr}, {Network: "unix", Address: unixMap.addr}} {
		reply, err := socketmap.Query(ctx, e, "postfix", "one.test")
		if err != nil || reply != "OK secure match=mx1.one.test servername=hostname" {
			t.Errorf("%s: got %q, %v", e, reply, err)
		}
	}
	h, err := control.NewClient(unixControl.addr).Health(ctx)
	if want := []string{"inet:" + inet.addr, "unix:" + unixMap.addr}; err != nil || !slices.Equal(h.Listeners, want) {
		t.Errorf("got %v, %v; want %v", h.Listeners, err, want)
	}

	p.stop(t)
	for _, path := range []string{unixMap.addr, unixControl.addr} { // they are systemd's
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
}

// TestKeysThatSystemdsSocketsReplaceAreNamed has an administrator write a key
// that does nothing, and pass a socket that everybody can reach.
func TestKeysThatSystemdsSocketsReplaceAreNamed(t *testing.T) {
	lab := testlab.New(t)
	dir, file := writeConfig(t, lab, testlab.DaemonConfig{})
	open, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	inet := passedTCP(t, open)
	unixControl := listenUnix(t, dir, "control.sock")
	env := []string{"LISTEN_FDS=2", "LISTEN_FDNAMES=socketmap:control"}
	p := startProgram(t, dir, env, "-config", file, inet.file, unixControl.file)
	check := func(listen string) string {
		t.Helper()
		other := filepath.Join(dir, "other.toml")
		if err := writeLabConfig(other, lab.Lab, testlab.DaemonConfig{Listen: listen}); err != nil {
			t.Fatal(err)
		}
		exe, err := exec.LookPath("sts-tlsmap")
		if err != nil {
			t.Fatal(err)
		}
		out, _ := exec.Command(exe, "-check", "-config", other).CombinedOutput() // a Postfix here would ask elsewhere
		return string(out)
	}
	ignored := "listen: inet:127.0.0.1:8642 in the file has no effect, since systemd holds the sockets: inet:" + open.Addr().String()
	if out := check("inet:127.0.0.1:8642"); !strings.Contains(out, "note    configuration: "+ignored) || !strings.Contains(out, "systemctl edit sts-tlsmap.socket") {
		t.Errorf("-check:\n%s", out)
	}
	// The address of the file is loopback; the one that is open is not.
	reached := "listen: inet:" + open.Addr().String() + " can be reached from the network"
	if out := check("inet:127.0.0.1:8461"); !strings.Contains(out, "note    configuration: "+reached) || strings.Contains(out, "does not count") {
		t.Errorf("-check:\n%s", out)
	}
	p.stop(t)
	if log := p.stderr.String(); !strings.Contains(log, reached) || !strings.Contains(log, "listen: inet:127.0.0.1:0 in the file has no effect") {
		t.Errorf("at the start:\n%s", log)
	}
}

// TestTheDaemonOpensNoSocketInThePlaceOfAMaskedOne passes some of the sockets
// only, as systemd does when the others are masked.
func TestTheDaemonOpensNoSocketInThePlaceOfAMaskedOne(t *testing.T) {
	lab := testlab.New(t)
	lab.Domain("one.test", testlab.With{})
	for _, c := range []struct {
		name, passed string
		file         func(dir string) passed
		metrics      string // of the configuration
	}{
		{"TCP alone", "socketmap", func(string) passed { return listenTCP(t) }, ""},
		{"the chroot's alone", "socketmap-postfix", func(dir string) passed { return listenUnix(t, dir, "map.sock") }, ""},
		{"and metrics of the file", "socketmap", func(string) passed { return listenTCP(t) }, "inet:127.0.0.1:0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			// The daemon could not listen at either, and would not start.
			dir, file := writeConfig(t, lab, testlab.DaemonConfig{
				Listen: "unix:/nowhere/map.sock", Control: "unix:/nowhere/control.sock", Top: fmt.Sprintf("metrics = %q", c.metrics),
			})
			l := c.file(dir)
			p := startProgram(t, dir, []string{"LISTEN_FDS=1", "LISTEN_FDNAMES=" + c.passed, "HTTPS_PROXY=" + lab.Proxy.URL()}, "-config", file, l.file)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			e := endpoint.Endpoint{Network: "tcp", Address: l.addr}
			if strings.HasPrefix(l.addr, "/") {
				e.Network = "unix"
			}
			if reply, err := socketmap.Query(ctx, e, "postfix", "one.test"); err != nil || !strings.HasPrefix(reply, "OK secure") {
				t.Errorf("got %q, %v", reply, err)
			}
			p.stop(t)
			log := p.stderr.String()
			if !strings.Contains(log, `level=WARN msg="systemd passed no control socket`) {
				t.Errorf("the log does not say that there is no control socket:\n%s", log)
			}
			if strings.Contains(log, "metrics=[inet:127.0.0.1:") != (c.metrics != "") {
				t.Errorf("the metrics:\n%s", log)
			}
		})
	}
}

// writeConfig writes a configuration into a new directory.
func writeConfig(t *testing.T, lab *testlab.T, c testlab.DaemonConfig) (dir, file string) {
	t.Helper()
	dir = t.TempDir()
	if err := lab.CA.WritePEM(filepath.Join(dir, "lab.pem")); err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(dir, "sts-tlsmap.toml")
	if err := writeLabConfig(file, lab.Lab, c); err != nil {
		t.Fatal(err)
	}
	return dir, file
}

// A program is a running one.
type program struct {
	cmd    *exec.Cmd
	notify *net.UnixConn
	stderr bytes.Buffer
	ended  chan error
}

// startProgram starts the program with arguments that are strings, and passes
// it those that are files. It returns when the program is ready.
func startProgram(t *testing.T, dir string, env []string, args ...any) *program {
	t.Helper()
	socket := filepath.Join(dir, "notify.sock")
	if err := os.RemoveAll(socket); err != nil { // of an earlier one
		t.Fatal(err)
	}
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { notify.Close() })
	exe, err := exec.LookPath("sts-tlsmap") // testscript.Main puts it there
	if err != nil {
		t.Fatal(err)
	}
	p := &program{notify: notify, ended: make(chan error, 1)}
	p.cmd = exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, exe)
	for _, a := range args {
		switch a := a.(type) {
		case string:
			p.cmd.Args = append(p.cmd.Args, a)
		case *os.File:
			p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, a)
		}
	}
	p.cmd.Env = append(append(os.Environ(), env...), "NOTIFY_SOCKET="+notify.LocalAddr().String())
	p.cmd.Stderr = &p.stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.cmd.Process.Kill() })
	go func() { p.ended <- p.cmd.Wait() }()
	p.notified(t, "READY=1")
	return p
}

// notified waits until the program has told systemd what begins with the words.
func (p *program) notified(t *testing.T, words string) {
	t.Helper()
	p.notify.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 1024)
	for {
		n, err := p.notify.Read(buf)
		if err != nil {
			t.Fatalf("systemd was not told %s: %v", words, err)
		}
		if strings.HasPrefix(string(buf[:n]), words) {
			return
		}
	}
}

// endpoint asks the program where it listens.
func (p *program) endpoint(ctx context.Context, t *testing.T, dir string) endpoint.Endpoint {
	t.Helper()
	h, err := control.NewClient(filepath.Join(dir, "control.sock")).Health(ctx)
	if err != nil {
		t.Fatal(err)
	}
	e, err := endpoint.Parse(h.Listeners[0])
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// stop ends the program.
func (p *program) stop(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.wait(t)
}

// wait waits until the program has ended, which it must do in good order.
func (p *program) wait(t *testing.T) {
	t.Helper()
	select {
	case err := <-p.ended:
		if err != nil {
			t.Errorf("%v; %s", err, p.stderr.String())
		}
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
}

// A passed is a listening socket to pass.
type passed struct {
	file *os.File
	addr string
}

func listenTCP(t *testing.T) passed {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return passedTCP(t, l)
}

func passedTCP(t *testing.T, l net.Listener) passed {
	t.Helper()
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return passed{f, l.Addr().String()}
}

func listenUnix(t *testing.T, dir, name string) passed {
	t.Helper()
	path := filepath.Join(dir, name)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	f, err := l.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return passed{f, path}
}

// TestALookupDuringSIGTERMIsAnsweredAndItsPolicyKept ends the program
// while a policy host takes its time.
func TestALookupDuringSIGTERMIsAnsweredAndItsPolicyKept(t *testing.T) {
	lab := testlab.New(t)
	d := lab.Domain("slow.test", testlab.With{})
	gate := d.Policy.Hold()
	dir, file := writeConfig(t, lab, testlab.DaemonConfig{})
	env := []string{"HTTPS_PROXY=" + lab.Proxy.URL()}
	p := startProgram(t, dir, env, "-config", file)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	at := p.endpoint(ctx, t, dir)

	type answer struct {
		reply string
		err   error
	}
	answered := make(chan answer, 1)
	go func() {
		reply, err := socketmap.Query(ctx, at, "postfix", "slow.test")
		answered <- answer{reply, err}
	}()
	if err := lab.Await(ctx, func() bool { return gate.Waiting() > 0 }); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.notified(t, "STOPPING=1")
	gate.Open()
	if a := <-answered; a.err != nil || a.reply != "OK secure match=mx1.slow.test servername=hostname" {
		t.Errorf("got %q, %v", a.reply, a.err)
	}
	p.wait(t)
	d.RemoveRecord() // from here on only the file knows the policy
	p = startProgram(t, dir, env, "-config", file)
	if reply, err := socketmap.Query(ctx, p.endpoint(ctx, t, dir), "postfix", "slow.test"); err != nil || !strings.HasPrefix(reply, "OK secure") {
		t.Errorf("after a start: got %q, %v", reply, err)
	}
	p.stop(t)
}

// atOnce bounds an answer that nothing holds up. A find that cannot be written
// is answered all the same when the keeper has waited two seconds for the disk:
// a bound above that would see nothing.
const atOnce = 1500 * time.Millisecond

// TestAStalledControlClientBlocksNoLookup lets a listing of the cache
// stall in its middle, with the real program, while new domains are asked for.
func TestAStalledControlClientBlocksNoLookup(t *testing.T) {
	lab := testlab.New(t)
	server := lab.PolicyServer("")
	mail := lab.MailHost("mx.test", "")
	// More than the 64 policies that a listing reads at once, each near the
	// limit of 64 KiB: more than the socket holds. The listing is in order, so
	// that the fresh ones would come with a later page.
	long := testlab.PolicyText("enforce", time.Hour, "mx.test") + strings.Repeat("x: "+strings.Repeat("y", 100)+"\r\n", 600)
	domains := func(name string, n int) (list []string) {
		for i := range n {
			d := lab.Domain(fmt.Sprintf("%s%d.test", name, i), testlab.With{Server: server, Policy: long, Mail: []*testlab.MailHost{mail}})
			list = append(list, d.Name)
		}
		return list
	}
	held, fresh := domains("held", 70), domains("zfresh", 12)

	dir, file := writeConfig(t, lab, testlab.DaemonConfig{})
	p := startProgram(t, dir, []string{"HTTPS_PROXY=" + lab.Proxy.URL()}, "-config", file)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	at := p.endpoint(ctx, t, dir)
	ask := func(domains []string, within time.Duration) {
		t.Helper()
		for _, d := range domains {
			ctx, cancel := context.WithTimeout(ctx, within)
			reply, err := socketmap.Query(ctx, at, "postfix", d)
			cancel()
			if err != nil || !strings.HasPrefix(reply, "OK secure") {
				t.Fatalf("%s: got %q, %v", d, reply, err)
			}
		}
	}
	ask(held, patience)
	stalled, err := net.Dial("unix", filepath.Join(dir, "control.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer stalled.Close()
	stalled.SetDeadline(time.Now().Add(2 * patience))
	fmt.Fprint(stalled, "GET /v1/cache HTTP/1.1\r\nHost: x\r\n\r\n")
	listing := bufio.NewReader(stalled)
	if _, err := listing.Peek(1); err != nil { // it has begun
		t.Fatal(err)
	}

	ask(fresh, atOnce)
	ask(held, atOnce)
	// The listing had stalled in its first page all the while: what was asked
	// for meanwhile is in the next.
	res, err := http.ReadResponse(listing, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range fresh {
		if !bytes.Contains(text, []byte(`"domain":"`+d+`"`)) {
			t.Errorf("the listing of %d bytes was done before %s was asked for", len(text), d)
		}
	}
	p.stop(t)
}

// logFile returns an empty file to log to, and what JOURNAL_STREAM is where it
// is the journal.
func logFile(t *testing.T) (f *os.File, stream string) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	sys := st.Sys().(*syscall.Stat_t)
	return f, fmt.Sprintf("%d:%d", sys.Dev, sys.Ino)
}

func TestLogLinesHaveNoTimeWhereTheJournalAddsIt(t *testing.T) {
	f, this := logFile(t)
	for stream, journal := range map[string]bool{
		"": false, "1:2": false, this: true, this + "0": false, "nonsense": false,
	} {
		t.Setenv("JOURNAL_STREAM", stream)
		if err := f.Truncate(0); err != nil {
			t.Fatal(err)
		}
		f.Seek(0, 0)
		text.NewLogger(f, slog.LevelInfo).Info("hello", "time", "kept")
		line, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(string(line), "<6>level=INFO msg=hello ") != journal || bytes.HasPrefix(line, []byte("<")) != journal {
			t.Errorf("%q: got %q", stream, line)
		}
	}
}

func TestEveryLineInTheJournalHasThePriorityOfItsLevel(t *testing.T) {
	f, journal := logFile(t)
	t.Setenv("JOURNAL_STREAM", journal)
	log := text.NewLogger(f, slog.LevelDebug).With("a", 1).WithGroup("g")
	log.Debug("d")
	log.Info("i")
	log.Warn("w")
	log.Error("two\nlines", "k", 2)
	(&app{flags: &flags{}, stderr: f}).fail(hint(fmt.Errorf("one\ntwo"), "three"))
	(&app{flags: &flags{mode: &modes[0]}, stderr: f}).fail(fmt.Errorf("for people"))
	got, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	want := `<7>level=DEBUG msg=d a=1
<6>level=INFO msg=i a=1
<4>level=WARN msg=w a=1
<3>level=ERROR msg="two\nlines" a=1 g.k=2
<3>sts-tlsmap: one
<3>sts-tlsmap: two
<3>sts-tlsmap: hint: three
sts-tlsmap: for people
`
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestAReloadNamesWhatNeedsARestart(t *testing.T) {
	was, is := config.Default(), config.Default()
	is.LogLevel, is.Exempt.Domains = slog.LevelDebug, []string{"a.test"}
	if got := needRestart(was, is, nil); len(got) != 0 {
		t.Errorf("got %v", got)
	}
	is.Listen = nil
	is.Cache.MaxSize++
	is.Maps[0].Enforce = false
	if got := strings.Join(needRestart(was, is, nil), " "); got != "listen cache.max_size [map.postfix]" {
		t.Errorf("got %s", got)
	}
	if got := strings.Join(needRestart(was, is, []string{keyListen, keyControl}), " "); got != "cache.max_size [map.postfix]" {
		t.Errorf("with systemd's sockets: got %s", got)
	}
}
