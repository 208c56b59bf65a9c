//go:build e2e

// Package fleet tests the client of a fleet with real servers from Debian: Redis 7.0 and
// Valkey 8.1, alone, under Sentinel and as a Cluster. The servers are started by each test on
// a unix socket or on loopback, out of the roots that ../setup makes.
package fleet

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/fleet"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

var programs = map[string]struct{ root, server string }{
	"Redis7":  {"redis-bookworm", "redis"},
	"Valkey8": {"valkey-trixie", "valkey"},
}

// eachProgram runs a test with Redis and with Valkey.
func eachProgram(t *testing.T, test func(t *testing.T, program string)) {
	for name := range programs {
		t.Run(name, func(t *testing.T) { test(t, name) })
	}
}

// command runs a program of a root without entering the root.
func command(ctx context.Context, t *testing.T, program, tool string, args ...string) *exec.Cmd {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	p := programs[program]
	root := filepath.Join(cache, "sts-tlsmap", "e2e", p.root)
	loaders, _ := filepath.Glob(filepath.Join(root, "lib64/ld-linux*"))
	libraries, _ := filepath.Glob(filepath.Join(root, "usr/lib/*-linux-gnu"))
	if len(loaders) != 1 || len(libraries) != 1 {
		t.Fatalf("%s is not there: run test/e2e/setup %s", root, p.root)
	}
	binary := filepath.Join(root, "usr/bin", p.server+"-"+tool)
	return exec.CommandContext(ctx, loaders[0], append([]string{"--argv0", p.server + "-" + tool, "--library-path", libraries[0], binary}, args...)...)
}

// A server is one process of an engine.
type server struct {
	t        *testing.T
	program  string
	cmd      *exec.Cmd
	port     string
	at       []string // how redis-cli reaches it
	out      *logBuffer
	arranged []string
}

// start starts a server; it is killed when the test ends.
func start(t *testing.T, program string, args ...string) *server {
	t.Helper()
	s := &server{t: t, program: program, out: new(logBuffer), arranged: args}
	s.begin()
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		if _ = s.cmd.Wait(); t.Failed() {
			t.Log(s.out)
		}
	})
	return s
}

func (s *server) begin() {
	s.t.Helper()
	s.cmd = command(context.Background(), s.t, s.program, "server", s.arranged...)
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
}

// cli runs a command with the engine's own client.
func (s *server) cli(args ...string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out, err := command(ctx, s.t, s.program, "cli", append(append([]string{}, s.at...), args...)...).CombinedOutput()
	if err != nil {
		return err.Error() + ": " + string(out)
	}
	return strings.TrimSpace(string(out))
}

// await waits for a condition.
func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(45 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited for: %s", what)
		}
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// onSocket starts a server on a unix socket, and returns its url.
func onSocket(t *testing.T, program string, args ...string) (*server, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "fleet") // short, for the socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	s := start(t, program, append([]string{"--port", "0", "--unixsocket", socket, "--save", "", "--dir", dir}, args...)...)
	s.at = []string{"-s", socket}
	await(t, "the server answers", func() bool { _, err := net.Dial("unix", socket); return err == nil })
	return s, "unix://" + socket
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

type memoryStore struct{}

func (memoryStore) FleetStamps() ([]byte, error)  { return nil, nil }
func (memoryStore) WriteFleetStamps([]byte) error { return nil }

// A relay is one member of the fleet.
type relay struct {
	*fleet.Fleet
	log     *logBuffer
	ordered chan string
}

var key = fleet.NewKey()

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// join runs a relay.
func join(t *testing.T, name, url string, bend func(*fleet.Options)) *relay {
	t.Helper()
	r := &relay{log: new(logBuffer), ordered: make(chan string, 100)}
	o := fleet.Options{
		URL: url, KeyFile: file(t, key+"\n"), Prefix: "sts-tlsmap:", Name: name, Version: "1", Now: time.Now, Store: memoryStore{},
		Log: slog.New(slog.NewTextHandler(r.log, nil)),
		Orders: fleet.Orders{
			Exempt:  func(domain string, until time.Time, by string) error { r.ordered <- "exempt " + domain; return nil },
			Forget:  func(_ context.Context, domain string, _ time.Time) error { r.ordered <- "forget " + domain; return nil },
			Refresh: func(_ context.Context, domain string) error { r.ordered <- "refresh " + domain; return nil },
		},
	}
	if bend != nil {
		bend(&o)
	}
	var err error
	if r.Fleet, err = fleet.New(o); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); r.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	return r
}

// serves waits until the engine serves the relay.
func (r *relay) serves(t *testing.T) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Log(r.log)
		}
	}()
	await(t, "the engine serves", func() bool { s := r.Stats(); return s.Trouble == "" && s.Latency > 0 })
}

func found(domain string) *keeper.Foreign {
	text := fmt.Sprintf("version: STSv1\nmode: enforce\nmx: mx.%s\nmax_age: 86400\n", domain)
	now := time.Now().Truncate(time.Second)
	return &keeper.Foreign{Domain: domain, ID: "1", Text: []byte(text), Fetched: now, Expires: now.Add(86400 * time.Second)}
}

// share has one relay announce a policy and another find it.
func share(t *testing.T, from, to *relay, domain string) {
	t.Helper()
	from.Announce(found(domain))
	await(t, domain+" is found", func() bool {
		f, ok := to.Find(t.Context(), domain)
		return ok && f.Domain == domain && f.ID == "1" && strings.Contains(string(f.Text), "mx."+domain)
	})
}

// load has a relay find, announce and lease as eight lookups at once do, until end is called,
// which says how long the questions took and how many of the policies another relay finds: what
// the killed primary has not told its replica is lost, until some relay brings it again.
func (r *relay) load(t *testing.T) (end func(t *testing.T, other *relay) string) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var mu sync.Mutex
	var took []time.Duration
	var domains []string
	for n := range 8 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				domain := fmt.Sprintf("load%d-%d.example", n, i)
				begun := time.Now()
				r.Find(t.Context(), domain)
				asked := time.Since(begun)
				begun = time.Now()
				r.Lease(t.Context(), keeper.LeaseFetch, domain, time.Minute)
				leased := time.Since(begun)
				r.Announce(found(domain))
				mu.Lock()
				took, domains = append(took, asked, leased), append(domains, domain)
				mu.Unlock()
				time.Sleep(50 * time.Millisecond)
			}
		})
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	return func(t *testing.T, other *relay) string {
		t.Helper()
		cancel()
		wg.Wait()
		await(t, "all policies were sent", func() bool { return r.Stats().Pending == 0 })
		share(t, r, other, "last.example")
		kept := 0
		for _, domain := range domains {
			if _, ok := other.Find(t.Context(), domain); ok {
				kept++
			}
		}
		slices.Sort(took)
		return fmt.Sprintf("of %d questions meanwhile, p50 %s, p99 %s, the longest %s; %d of %d policies are there",
			len(took), took[len(took)/2].Round(10*time.Microsecond), took[len(took)*99/100].Round(100*time.Microsecond), took[len(took)-1].Round(time.Millisecond), kept, len(domains))
	}
}

func TestTwoRelaysShareThroughOneServer(t *testing.T) {
	eachProgram(t, func(t *testing.T, program string) {
		s, url := onSocket(t, program)
		a, b := join(t, "mx1", url, nil), join(t, "mx2", url, nil)
		a.serves(t)
		b.serves(t)
		share(t, a, b, "a.example")
		if ttl, _ := strconv.Atoi(s.cli("TTL", "sts-tlsmap:p:{a.example}")); ttl < 86000 || ttl > 86400 {
			t.Errorf("lives %d s", ttl)
		}
		older := found("a.example")
		older.ID, older.Fetched = "0", older.Fetched.Add(-time.Hour)
		written := b.Stats().Written
		b.Announce(older)
		await(t, "the older one was sent", func() bool { return b.Stats().Written > written })
		if f, ok := a.Find(t.Context(), "a.example"); !ok || f.ID != "1" {
			t.Errorf("the older one replaced the newer: %+v", f)
		}

		release, ours := a.Lease(t.Context(), keeper.LeaseCheck, "a.example", time.Minute)
		if _, theirs := b.Lease(t.Context(), keeper.LeaseCheck, "a.example", time.Minute); !ours || theirs {
			t.Errorf("leases: %t, %t", ours, theirs)
		}
		release()
		if _, theirs := b.Lease(t.Context(), keeper.LeaseCheck, "a.example", time.Minute); !theirs {
			t.Error("a lease given back is not to be had")
		}

		for _, order := range []func(context.Context, string, string) error{a.Forget, a.Refresh, func(ctx context.Context, domain, user string) error { return a.Exempt(ctx, domain, time.Hour, user) }} {
			if err := order(t.Context(), "b.example", "root"); err != nil {
				t.Fatal(err)
			}
		}
		for _, r := range []*relay{a, b} {
			got := map[string]bool{<-r.ordered: true, <-r.ordered: true, <-r.ordered: true}
			if len(got) != 3 {
				t.Errorf("ordered %v", got)
			}
		}
		if relays, err := b.Relays(t.Context()); err != nil || len(relays) != 2 {
			t.Errorf("relays %v, %v", relays, err)
		}

		if err := a.PutReport(t.Context(), "r", "2026-11-30", "c.example", "id-a", "1", time.Hour); err != nil {
			t.Fatal(err)
		}
		for range 2 { // a retry counts nothing twice
			if err := b.PutReport(t.Context(), "r", "2026-11-30", "c.example", "id-b", "2", time.Hour); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := a.Report(t.Context(), "r", "2026-11-30", "c.example"); err != nil || len(got) != 2 || got["id-a"] != "1" || got["id-b"] != "2" {
			t.Errorf("counts %v, %v", got, err)
		}
		mine, err := a.LeaseDelivery(t.Context(), "2026-11-30", "c.example", "id-a", time.Minute)
		yours, err2 := b.LeaseDelivery(t.Context(), "2026-11-30", "c.example", "id-b", time.Minute)
		again, err3 := a.LeaseDelivery(t.Context(), "2026-11-30", "c.example", "id-a", time.Minute)
		if !mine || yours || !again || err != nil || err2 != nil || err3 != nil {
			t.Errorf("%t %t %t, %v %v %v", mine, yours, again, err, err2, err3)
		}
		if a.log.String() != "" && strings.Contains(a.log.String(), "level=ERROR") {
			t.Error(a.log)
		}
	})
}

// The commands and keys that an ACL user needs.
const acl = "~sts-tlsmap:* -@all +get +set +del +hset +hgetall +hdel +pexpire +eval +time"

func TestAUserLimitedToThePrefixOverTLSWithAnOwnCA(t *testing.T) {
	eachProgram(t, func(t *testing.T, program string) {
		ca, other := newCA(t), newCA(t)
		cert, privateKey := issue(t, ca, "localhost")
		port, plain := freePort(t), freePort(t)
		acls := filepath.Join(t.TempDir(), "users.acl")
		if err := os.WriteFile(acls, []byte("user default off\nuser relay on >secret "+acl+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		start(t, program, "--port", plain, "--tls-port", port, "--save", "", "--dir", t.TempDir(), "--tls-auth-clients", "no",
			"--tls-cert-file", file(t, cert), "--tls-key-file", file(t, privateKey), "--tls-ca-cert-file", file(t, string(ca.PEM())),
			"--aclfile", acls)
		url := "valkeys://relay@localhost:" + port
		with := func(password string, ca *testlab.CA) func(*fleet.Options) {
			return func(o *fleet.Options) {
				o.PasswordFile, o.CAFile = file(t, password+"\n"), file(t, string(ca.PEM()))
			}
		}
		a := join(t, "mx1", url, with("secret", ca))
		b := join(t, "mx2", url, with("secret", ca))
		a.serves(t)
		b.serves(t)
		share(t, a, b, "a.example")
		if err := a.Forget(t.Context(), "b.example", "root"); err != nil {
			t.Error(err)
		}
		if err := a.PutReport(t.Context(), "r", "2026-11-30", "c.example", "id", "1", time.Hour); err != nil {
			t.Error(err)
		}

		for name, bend := range map[string]func(*fleet.Options){
			"WRONGPASS": with("wrong", ca), "certificate": with("secret", other),
			"NOPERM": func(o *fleet.Options) { with("secret", ca)(o); o.Prefix = "other:" },
		} {
			c := join(t, "mx3", url, bend)
			await(t, name, func() bool { return strings.Contains(c.Stats().Trouble, name) })
			if _, ok := c.Find(t.Context(), "a.example"); ok {
				t.Errorf("%s: found", name)
			}
			if n := strings.Count(c.log.String(), "level=ERROR"); n != 1 {
				t.Errorf("%s: %d error lines\n%s", name, n, c.log)
			}
		}
	})
}

func newCA(t *testing.T) *testlab.CA {
	t.Helper()
	ca, err := testlab.NewCA("the fleet's")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func issue(t *testing.T, ca *testlab.CA, name string) (cert, key string) {
	t.Helper()
	pair, err := ca.Issue(testlab.CertGood, name)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	text := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return text("CERTIFICATE", pair.Certificate[0]), text("PRIVATE KEY", der)
}

// errors says how many error lines a relay has written.
func (r *relay) errors() int { return strings.Count(r.log.String(), "level=ERROR") }

// Each trouble is one error line and a condition; nothing waits longer than 100 ms, leases are
// ours, and when the engine is back it gets what was learned meanwhile.
func TestEachTroubleOfAServerIsOneLineAndEndsWithoutARestart(t *testing.T) {
	for name, trouble := range map[string]func(t *testing.T, s *server) (end func()){
		"down": func(t *testing.T, s *server) func() {
			_ = s.cmd.Process.Kill()
			_ = s.cmd.Wait()
			return s.begin
		},
		"hung": func(t *testing.T, s *server) func() {
			_ = s.cmd.Process.Signal(syscall.SIGSTOP)
			return func() { _ = s.cmd.Process.Signal(syscall.SIGCONT) }
		},
		"full": func(t *testing.T, s *server) func() {
			s.cli("CONFIG", "SET", "maxmemory", "1")
			return func() { s.cli("CONFIG", "SET", "maxmemory", "0") }
		},
		"read-only": func(t *testing.T, s *server) func() {
			s.cli("REPLICAOF", "127.0.0.1", "1")
			return func() { s.cli("REPLICAOF", "NO", "ONE") }
		},
		"loading": func(t *testing.T, s *server) func() {
			s.cli("CONFIG", "SET", "min-replicas-to-write", "1")
			return func() { s.cli("CONFIG", "SET", "min-replicas-to-write", "0") }
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachProgram(t, func(t *testing.T, program string) {
				s, url := onSocket(t, program)
				a, b := join(t, "mx1", url, nil), join(t, "mx2", url, nil)
				a.serves(t)
				b.serves(t)
				share(t, a, b, "before.example")

				end := trouble(t, s)
				await(t, "the trouble is seen", func() bool {
					a.Find(t.Context(), "before.example")
					return a.Stats().Trouble != ""
				})
				begun := time.Now()
				for range 100 {
					a.Find(t.Context(), "before.example")
					if _, ours := a.Lease(t.Context(), keeper.LeaseFetch, "before.example", time.Minute); !ours {
						t.Error("a lease is not ours")
					}
				}
				if took := time.Since(begun); took > 5*time.Second { // 100 ms each would be 20 s
					t.Errorf("200 questions took %s", took)
				}
				a.Announce(found("meanwhile.example"))
				await(t, "it is told", func() bool { return a.errors() == 1 })
				end()

				a.serves(t)
				b.serves(t)
				await(t, "what was learned meanwhile is found", func() bool { _, ok := b.Find(t.Context(), "meanwhile.example"); return ok })
				if n := a.errors(); n != 1 {
					t.Errorf("%d error lines\n%s", n, a.log)
				}
			})
		})
	}
}

func TestAServerThatIsDownAtTheStartDelaysNothing(t *testing.T) {
	dir := t.TempDir()
	begun := time.Now()
	a := join(t, "mx1", "unix://"+dir+"/s", nil)
	if took := time.Since(begun); took > time.Second {
		t.Errorf("joining took %s", took)
	}
	a.Announce(found("early.example"))
	await(t, "it is told", func() bool { return a.Stats().Trouble != "" })
	s := start(t, "Valkey8", "--port", "0", "--unixsocket", dir+"/s", "--save", "", "--dir", dir)
	_ = s
	a.serves(t)
	await(t, "what was learned is found", func() bool { _, ok := a.Find(t.Context(), "early.example"); return ok })
}

func TestUnderSentinelAKilledPrimaryIsReplaced(t *testing.T) {
	eachProgram(t, func(t *testing.T, program string) {
		var servers []*server
		for i := range 3 {
			port := freePort(t)
			args := []string{"--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", t.TempDir(), "--repl-diskless-sync-delay", "0"}
			if i > 0 {
				args = append(args, "--replicaof", "127.0.0.1 "+servers[0].port)
			}
			s := start(t, program, args...)
			s.port, s.at = port, []string{"-p", port}
			await(t, "a server answers", func() bool { return s.cli("PING") == "PONG" })
			servers = append(servers, s)
		}
		await(t, "the replicas are there", func() bool { return strings.Count(servers[0].cli("INFO", "replication"), "state=online") == 2 })
		var sentinels []string
		for range 3 {
			port := freePort(t)
			config := file(t, fmt.Sprintf("port %s\nbind 127.0.0.1\ndir %s\nsentinel monitor fleet 127.0.0.1 %s 2\nsentinel down-after-milliseconds fleet 1000\nsentinel failover-timeout fleet 10000\n",
				port, t.TempDir(), servers[0].port))
			s := start(t, program, config, "--sentinel")
			s.at = []string{"-p", port}
			await(t, "a Sentinel answers", func() bool { return s.cli("PING") == "PONG" })
			sentinels = append(sentinels, "127.0.0.1:"+port)
			if len(sentinels) == 3 {
				await(t, "the Sentinels know each other", func() bool { return strings.Contains(s.cli("SENTINEL", "ckquorum", "fleet"), "OK 3") })
			}
		}
		url := "sentinel://" + strings.Join(sentinels, ",") + "/fleet"
		a, b := join(t, "mx1", url, nil), join(t, "mx2", url, nil)
		a.serves(t)
		b.serves(t)
		share(t, a, b, "before.example")
		load := a.load(t)
		begun := time.Now()
		_ = servers[0].cmd.Process.Kill()
		a.Announce(found("meanwhile.example"))
		await(t, "the new primary has it", func() bool { _, ok := b.Find(t.Context(), "meanwhile.example"); return ok })
		t.Logf("%s after the kill; %s", time.Since(begun).Round(100*time.Millisecond), load(t, b))
		share(t, b, a, "after.example")
	})
}

func TestAClusterOfSixFollowsItsSlotsAndAKilledPrimary(t *testing.T) {
	eachProgram(t, func(t *testing.T, program string) {
		var servers []*server
		var addresses []string
		for range 6 {
			port := freePort(t)
			s := start(t, program, "--port", port, "--cluster-port", freePort(t), "--bind", "127.0.0.1", "--save", "", "--dir", t.TempDir(), "--cluster-enabled", "yes",
				"--cluster-config-file", filepath.Join(t.TempDir(), "nodes.conf"), "--cluster-node-timeout", "2000", "--repl-diskless-sync-delay", "0")
			s.port, s.at = port, []string{"-p", port}
			await(t, "a server answers", func() bool { return s.cli("PING") == "PONG" })
			servers, addresses = append(servers, s), append(addresses, "127.0.0.1:"+port)
		}
		if out := servers[0].cli(append([]string{"--cluster", "create", "--cluster-replicas", "1", "--cluster-yes"}, addresses...)...); !strings.Contains(out, "All 16384 slots covered") {
			t.Fatal(out)
		}
		await(t, "the Cluster is complete", func() bool {
			for _, s := range servers {
				if !strings.Contains(s.cli("CLUSTER", "INFO"), "cluster_state:ok") || strings.Count(s.cli("CLUSTER", "NODES"), "slave") != 3 {
					return false
				}
			}
			return true
		})
		url := "cluster://" + strings.Join(addresses[:3], ",")
		a, b := join(t, "mx1", url, nil), join(t, "mx2", url, nil)
		a.serves(t)
		b.serves(t)
		for i := range 100 {
			share(t, a, b, fmt.Sprintf("d%d.example", i))
		}
		await(t, "the replicas have it", func() bool {
			for _, s := range servers {
				if info := s.cli("INFO", "replication"); strings.Contains(info, "role:slave") && !strings.Contains(info, "master_link_status:up") {
					return false
				}
			}
			return true
		})
		load := a.load(t)
		begun := time.Now()
		_ = servers[0].cmd.Process.Kill()
		for i := range 100 {
			domain := fmt.Sprintf("d%d.example", i)
			await(t, domain+" is found after the kill", func() bool { _, ok := b.Find(t.Context(), domain); return ok })
		}
		t.Logf("%s after the kill; %s", time.Since(begun).Round(100*time.Millisecond), load(t, b))
		for i := range 100 {
			share(t, b, a, fmt.Sprintf("after%d.example", i))
		}
	})
}
