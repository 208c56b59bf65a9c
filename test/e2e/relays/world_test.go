//go:build e2e

// Package relays runs the daemons of a fleet, each in a network namespace of its own, with
// one small internet and one Redis or Valkey from Debian. Package fleet (../fleet) tests the
// client with TLS, Sentinel and Cluster.
package relays

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

func TestMain(m *testing.M) { stage.Main(m) }

// The addresses. The lab's are local to the namespace of the test.
const (
	router   = "10.9.0.1" // of the test; the lab's DNS is there
	engineAt = "10.9.0.2"
	labNet   = "10.8.0.0/16"

	patience = 2 * time.Minute // for each wait: what is awaited comes in seconds
)

// relayCount is how many relays the fleet has: STS_TLSMAP_E2E_RELAYS, or 5.
func relayCount(t *testing.T) int {
	text := os.Getenv("STS_TLSMAP_E2E_RELAYS")
	if text == "" {
		return 5
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 2 || n > 200 {
		t.Fatalf("STS_TLSMAP_E2E_RELAYS=%q", text)
	}
	return n
}

// A world is a lab, an engine, relays that share through it, and one that is alone.
type world struct {
	lab    *testlab.T
	engine *engine
	relays []*relay
	alone  *relay
	key    string // file
	other  string // file with another key
}

// run runs a command that must succeed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// addHost makes a network namespace with an address on the test's bridge.
func addHost(t *testing.T, name, address string) {
	t.Helper()
	for _, line := range []string{
		"netns add " + name,
		"link add " + name + " type veth peer name eth0 netns " + name,
		"link set " + name + " master fleet up",
		"-n " + name + " addr add " + address + "/16 dev eth0",
		"-n " + name + " link set lo up",
		"-n " + name + " link set eth0 up",
		"-n " + name + " route add default via " + router,
	} {
		run(t, "ip", strings.Fields(line)...)
	}
}

// in returns the words that run a command in a namespace.
func in(host string) []string { return []string{"nsenter", "--net=/run/netns/" + host, "--"} }

// newWorld starts the engine and the relays.
func newWorld(t *testing.T, root, server string) *world {
	t.Helper()
	for _, line := range []string{
		"link add fleet type bridge", "addr add " + router + "/16 dev fleet", "link set fleet up", "route add local " + labNet + " dev lo",
	} {
		run(t, "ip", strings.Fields(line)...)
	}
	w := &world{key: stage.Path("fleet.key"), other: stage.Path("other.key")}
	w.lab = testlab.NewWith(t, testlab.Options{DNS: router + ":53", Net: netip.MustParsePrefix(labNet), PolicyPort: 443, MailPort: 25})
	for _, file := range []string{w.key, w.other} {
		key := run(t, stage.Path("sts-tlsmap"), "-fleet-key")
		if err := os.WriteFile(file, []byte(key), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(stage.Path("fleet.password"), []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	addHost(t, "engine", engineAt)
	w.engine = startEngine(t, root, server)
	ca := stage.WriteCA(t, w.lab)
	for i := range relayCount(t) {
		w.relays = append(w.relays, newRelay(t, fmt.Sprintf("mx%d", i+1), fmt.Sprintf("10.9.1.%d", i+1), ca, w.key))
	}
	w.alone = newRelay(t, "alone", "10.9.2.1", ca, "")
	for _, r := range append(w.relays, w.alone) {
		r.start(t)
	}
	return w
}

// A relay is a real daemon in its namespace.
type relay struct {
	*testlab.Daemon
	name, ca, key string
	began         int // of the log, in bytes: where what is looked at begins
}

func newRelay(t *testing.T, name, address, ca, key string) *relay {
	t.Helper()
	addHost(t, name, address)
	r := &relay{name: name, ca: ca, key: key}
	r.configure(t)
	t.Cleanup(func() {
		if err := r.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the log of %s:\n%s", name, r.Log())
		}
	})
	return r
}

// configure writes the configuration of a relay that does not run.
func (r *relay) configure(t *testing.T) {
	t.Helper()
	c := testlab.DaemonConfig{Listen: "unix:" + r.socket(), CA: r.ca, Tables: fmt.Sprintf("[dns]\nservers = [%q]\n[refresh]\nrecheck = \"1s\"\n", router+":53")}
	if r.key != "" {
		c.Tables += fmt.Sprintf("[fleet]\nurl = \"valkey://relay@%s:6379\"\npassword_file = %q\nkey_file = %q\nname = %q\n",
			engineAt, stage.Path("fleet.password"), r.key, r.name)
	}
	dir := stage.Path(r.name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := testlab.NewDaemon(stage.Path("sts-tlsmap"), dir, c)
	if err != nil {
		t.Fatal(err)
	}
	d.Wrapper = in(r.name)
	r.Daemon = d
}

func (r *relay) start(t *testing.T) {
	t.Helper()
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (r *relay) restart(t *testing.T) {
	t.Helper()
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	r.start(t)
}

// must runs the program, which must exit with the code.
func (r *relay) must(t *testing.T, code int, args ...string) string {
	t.Helper()
	out, complaint, got, err := r.Run(t.Context(), args...)
	if err != nil || got != code {
		t.Fatalf("%s: %v: exit code %d, want %d: %v\n%s%s", r.name, args, got, code, err, out, complaint)
	}
	return out
}

// protects says whether the relay answers a lookup OK secure.
func (r *relay) protects(t *testing.T, domain string) bool {
	t.Helper()
	out, complaint, code, err := r.Run(t.Context(), "-query", domain)
	if err != nil || code > 1 || code == 0 && !strings.HasPrefix(out, "secure match=") {
		t.Errorf("%s: -query %s: exit code %d, %v\n%s%s", r.name, domain, code, err, out, complaint)
	}
	return code == 0
}

// socket is where the relay's MTA asks.
func (r *relay) socket() string { return stage.Path(r.name + ".sock") }

// An mta is a connection of Postfix.
type mta struct {
	*relay
	net.Conn
	in *bufio.Reader
}

func (r *relay) dial(t *testing.T) *mta {
	t.Helper()
	c, err := net.Dial("unix", r.socket())
	if err != nil {
		t.Fatal(err)
	}
	return &mta{r, c, bufio.NewReader(c)}
}

func (m *mta) close(t *testing.T) {
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

// wantSecure looks a domain up, which must be OK secure, and returns how long that took.
func (m *mta) wantSecure(t *testing.T, domain string) time.Duration {
	t.Helper()
	begun := time.Now()
	_ = m.SetDeadline(begun.Add(patience)) // the connection is open
	request := "postfix " + domain
	if _, err := fmt.Fprintf(m, "%d:%s,", len(request), request); err != nil {
		t.Fatalf("%s: %v", m.name, err)
	}
	reply, err := m.in.ReadString(',')
	if err != nil || !strings.Contains(reply, ":OK secure match=") {
		t.Errorf("%s answers %s: %q, %v", m.name, domain, reply, err)
	}
	return time.Since(begun)
}

// since returns the log since mark was called.
func (r *relay) since() string { return r.Log()[r.began:] }

func (r *relay) mark() { r.began = len(r.Log()) }

// fleet returns what -fleet -json prints.
func (r *relay) fleet(t *testing.T) (f control.Fleet) {
	t.Helper()
	out, complaint, _, err := r.Run(t.Context(), "-fleet", "-json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &f)
	}
	if err != nil {
		t.Fatalf("%s: -fleet -json: %v\n%s%s", r.name, err, out, complaint)
	}
	return f
}

// ask asks all relays for a domain at once, and returns the longest time, with that of
// starting the program.
func (w *world) ask(t *testing.T, domain string, want bool, relays []*relay) (longest time.Duration) {
	t.Helper()
	var mu sync.Mutex
	var asking sync.WaitGroup
	for _, r := range relays {
		asking.Go(func() {
			begun := time.Now()
			if r.protects(t, domain) != want {
				t.Errorf("%s answers %s: secure %t, want %t", r.name, domain, !want, want)
			}
			mu.Lock()
			defer mu.Unlock()
			longest = max(longest, time.Since(begun))
		})
	}
	asking.Wait()
	return longest
}

// A domain is one of the lab whose policy host can be taken away.
type domain struct {
	*testlab.Domain
	server *testlab.PolicyServer
	lab    *testlab.T
}

func (w *world) domain(t *testing.T, name string) *domain {
	t.Helper()
	server := w.lab.PolicyServer("")
	return &domain{w.lab.Domain(name, testlab.With{Server: server, MX: []string{"mx1." + name}, NoMail: true}), server, w.lab}
}

// takeAway breaks the domain's DNS and its policy host.
func (d *domain) takeAway(t *testing.T, how testlab.How) {
	t.Helper()
	for _, name := range []string{"_mta-sts.", "mta-sts."} {
		d.lab.DNS.Break(name+d.Name, "", how)
	}
	if err := d.server.Down(); err != nil {
		t.Fatal(err)
	}
}

func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := stage.Await(ctx, cond); err != nil {
		t.Fatalf("not within %s: %s", patience, what)
	}
}

// An engine is a Redis or Valkey server in the namespace "engine".
type engine struct {
	root   stage.Root
	server string // "redis" or "valkey"
	cmd    *exec.Cmd
}

// accessList is the line of docs/fleet.md for the user of the relays.
func accessList(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "fleet.md"))
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^ +(user relay on >PASSWORD .*)$`).FindSubmatch(page)
	if line == nil {
		t.Fatal("docs/fleet.md has no line for the user of the relays")
	}
	return strings.Replace(string(line[1]), "PASSWORD", "secret", 1)
}

func startEngine(t *testing.T, root, server string) *engine {
	t.Helper()
	e := &engine{root: stage.MountRoot(t, root), server: server}
	e.root.Write(t, "/etc/engine.conf", "bind "+engineAt+"\nport 6379\nprotected-mode no\nunixsocket /run/engine.sock\nsave \"\"\ndir /tmp\n"+accessList(t)+"\n")
	e.start(t)
	t.Cleanup(func() { e.stop() })
	return e
}

func (e *engine) command(program string, args ...string) *exec.Cmd {
	words := append(append(in("engine"), "chroot", string(e.root), "/usr/bin/"+e.server+"-"+program), args...)
	return exec.Command(words[0], words[1:]...)
}

func (e *engine) start(t *testing.T) {
	t.Helper()
	e.cmd = e.command("server", "/etc/engine.conf")
	if err := e.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "the engine answers", func() bool {
		out, _ := e.command("cli", "-s", "/run/engine.sock", "PING").CombinedOutput()
		return strings.HasPrefix(string(out), "PONG")
	})
}

// stop ends the engine, which has nothing on disk.
func (e *engine) stop() {
	_ = e.cmd.Process.Kill()
	_ = e.cmd.Wait()
}

func (e *engine) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := e.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// do has the engine do a command, as its administrator.
func (e *engine) do(t *testing.T, args ...string) string {
	t.Helper()
	out, err := e.command("cli", append([]string{"-s", "/run/engine.sock"}, args...)...).CombinedOutput()
	if err != nil || strings.HasPrefix(string(out), "ERR") {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}
