//go:build e2e

package delivery

import (
	"compress/gzip"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/reporting"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

const (
	fleetSessions = 10_000
	fleetDomains  = 20
)

// A relay is a daemon of a fleet. All have one clock.
type relay struct {
	*testlab.Daemon
	*world
}

// A team is a fleet with its engine and a web server that takes the reports.
type team struct {
	relays []*relay
	clock  testlab.Clock
	cli    []string // the words of the engine's own client

	mu      sync.Mutex
	reports []report.Report // as they came
	victims []int           // processes of relays, one of which may be killed while a report comes
	kills   int
}

func newTeam(t *testing.T, lab *testlab.T, program, engine string) *team {
	t.Helper()
	n := 5
	if text := os.Getenv("STS_TLSMAP_E2E_RELAYS"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	root := stage.MountRoot(t, program)
	server := exec.Command("chroot", string(root), "/usr/bin/"+engine, "--bind", "127.0.0.1", "--save", "", "--dir", "/tmp")
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })
	stage.AddNetwork(t, "5.5.5.0/24")
	lab.Set(hook + ". 300 IN A " + hookAddr)
	m := &team{clock: testlab.Clock(stage.Path("clock")), cli: []string{"timeout", "20", "chroot", string(root), "/usr/bin/" + strings.TrimSuffix(engine, "server") + "cli"}}
	m.receive(t, lab)

	key := stage.Path("fleet.key")
	text, err := exec.Command(stage.Path("sts-tlsmap"), "-fleet-key").Output()
	if err == nil {
		err = os.WriteFile(key, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	ca := stage.WriteCA(t, lab)
	for i := range n {
		dir := stage.Path(fmt.Sprintf("mx%d", i))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		d, err := testlab.NewDaemon(stage.Path("sts-tlsmap"), dir, testlab.DaemonConfig{CA: ca, Tables: strings.Join([]string{
			"[fleet]", `url = "valkey://127.0.0.1:6379"`, `key_file = "` + key + `"`, fmt.Sprintf(`name = "mx%d"`, i),
			"[tlsrpt]", `organization = "Company-X"`, `contact = "` + contact + `"`, `sender = "` + sender + `"`, `path = "` + dir + `/reports.db"`,
			`window = "1m"`, `postfix_socket = "unix:` + dir + `/tlsrpt.sock"`,
		}, "\n")})
		if err != nil {
			t.Fatal(err)
		}
		d.Env = append(testlab.WithoutProxies(os.Environ()), m.clock.Env())
		m.relays = append(m.relays, &relay{d, &world{lab: lab, clock: m.clock, daemon: &stage.Daemon{Daemon: d}, sessions: dir + "/tlsrpt.sock"}})
	}
	t.Cleanup(func() {
		m.end(t)
		for i, r := range m.relays {
			if t.Failed() && i < 2 {
				t.Logf("the log of mx%d:\n%s", i, r.Log())
			}
		}
	})
	return m
}

// receive takes reports on HTTPS.
func (m *team) receive(t *testing.T, lab *testlab.T) {
	t.Helper()
	pair := pairFor(t, lab, testlab.CertGood, hook)
	cert, err := tls.X509KeyPair(pair, pair)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", hookAddr+":443")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var got report.Report
		z, err := gzip.NewReader(r.Body)
		if err == nil {
			err = json.NewDecoder(z).Decode(&got)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if err != nil { // of a relay that was killed
			return
		}
		m.reports = append(m.reports, got)
		if n := len(m.victims); n > 0 && rand.IntN(4) == 0 { // perhaps the one that sends
			i := rand.IntN(n)
			_ = syscall.Kill(m.victims[i], syscall.SIGKILL)
			m.victims = append(m.victims[:i], m.victims[i+1:]...)
			m.kills++
		}
	})}
	go func() { _ = server.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}})) }()
	t.Cleanup(func() { _ = server.Close() })
}

// end kills all relays.
func (m *team) end(t *testing.T) {
	t.Helper()
	for _, r := range m.relays {
		_ = r.Kill() // may be dead already
	}
}

// night kills all relays and starts them at another time, again and again until cond holds.
func (m *team) night(t *testing.T, ahead time.Duration, kill bool, cond func(*relay) bool) {
	t.Helper()
	for range 20 {
		m.mu.Lock()
		m.victims = nil
		m.mu.Unlock()
		m.end(t)
		if err := m.clock.Set(ahead); err != nil {
			t.Fatal(err)
		}
		var starting sync.WaitGroup
		for _, r := range m.relays {
			starting.Go(func() {
				if err := r.Start(t.Context()); err != nil {
					t.Error(err)
				}
				m.mu.Lock()
				defer m.mu.Unlock()
				if kill {
					m.victims = append(m.victims, r.PID)
				}
			})
		}
		starting.Wait()
		left := 0
		for end := time.Now().Add(hurry); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			left = 0
			for _, r := range m.relays {
				if !cond(r) {
					left++
				}
			}
			if left == 0 {
				return
			}
		}
		t.Logf("%d relays are to be started again", left)
	}
	t.Fatal("it does not happen")
}

// all returns a relay's deliveries; ok is false if the relay does not answer.
func (r *relay) all(t *testing.T) (all []reporting.Delivery, ok bool) {
	out, _, code, err := r.Daemon.Run(t.Context(), "-report", "-json")
	if err != nil || code > 1 {
		return nil, false
	}
	for line := range strings.Lines(out) {
		var v reporting.View
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatal(err)
		}
		all = append(all, v.Deliveries...)
	}
	return all, true
}

func TestAFleetSendsOneReportADomainThroughRedis7(t *testing.T) {
	testFleet(t, "redis-bookworm", "redis-server")
}

func TestAFleetSendsOneReportADomainThroughValkey8(t *testing.T) {
	testFleet(t, "valkey-trixie", "valkey-server")
}

// Relays are killed when they have stored their sessions, in the night, and while they deliver.
// The engine's leases last half an hour by the right clock: on a machine so busy that the engine
// does not answer a relay in time, the night of some seconds is too short.
func testFleet(t *testing.T, program, engine string) {
	if os.Getenv("STS_TLSMAP_E2E_RELAYS") == "" {
		t.Skip("runs in make nightly: STS_TLSMAP_E2E_RELAYS is not set")
	}
	lab := newLab(t)
	m := newTeam(t, lab, program, engine)
	for i := range fleetDomains {
		asks(lab, fmt.Sprintf("d%d.test", i), "https://"+hook+"/")
	}
	if err := m.clock.Set(on(1)); err != nil {
		t.Fatal(err)
	}
	want := map[string]report.Summary{}
	for i, r := range m.relays {
		r.daemon.Start(t)
		m.feed(t, r, fleetSessions*(i+1)/len(m.relays)-fleetSessions*i/len(m.relays), want)
	}

	m.night(t, on(0)-time.Hour+11*time.Minute, false, func(r *relay) bool {
		all, ok := r.all(t)
		return ok && len(all) == fleetDomains
	})
	// A relay that has not put its sessions when they are added up sends a report of its own.
	m.night(t, on(0)-time.Hour+12*time.Minute, false, func(*relay) bool { return m.shared() })
	settled := func(r *relay) bool {
		all, ok := r.all(t)
		for _, d := range all {
			ok = ok && d.State == tlsrpt.Accepted && d.Reason == ""
		}
		return ok && len(all) == fleetDomains
	}
	for at := on(0) + 15*time.Minute; ; at += 15 * time.Minute {
		m.night(t, at, at < on(0)+time.Hour, func(r *relay) bool {
			all, ok := r.all(t)
			for _, d := range all { // delivered, or waits for another relay
				ok = ok && (d.State == tlsrpt.Accepted || d.Next.After(time.Now().Add(at)))
			}
			return ok
		})
		left := 0
		for _, r := range m.relays {
			if !settled(r) {
				left++
			}
		}
		if t.Logf("%s: %d relays do not know of all reports", tlsrpt.DayOf(time.Now().Add(at)), left); left == 0 {
			break
		}
		if at > on(0)+90*time.Minute {
			t.Fatal("not all reports are delivered in time")
		}
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	seen, got, count := map[string]int{}, map[string]report.Summary{}, map[string]int{}
	for _, r := range m.reports {
		if seen[r.ID]++; seen[r.ID] > 1 {
			continue
		}
		domain := strings.Split(r.ID[9:], ".test.")[0] + ".test"
		count[domain]++
		sum := got[domain]
		for _, p := range r.Policies {
			sum.Successful, sum.Failed = sum.Successful+p.Summary.Successful, sum.Failed+p.Summary.Failed
		}
		got[domain] = sum
	}
	for domain, sum := range want {
		if count[domain] != 1 || got[domain] != sum {
			t.Errorf("%s: %d reports, %+v; want %+v", domain, count[domain], got[domain], sum)
		}
	}
	t.Logf("%d relays, %d sessions: %d reports, %d of them once more with the same id; %d relays were killed while a report came", len(m.relays), fleetSessions, len(seen), len(m.reports)-len(seen), m.kills)
}

// shared says whether all relays have put their sessions with all domains to the engine.
func (m *team) shared() bool {
	for i := range fleetDomains {
		out, err := exec.Command(m.cli[0], append(m.cli[1:len(m.cli):len(m.cli)], "HLEN", fmt.Sprintf("sts-tlsmap:r:{%s:d%d.test}", dayOf(on(1)), i))...).Output()
		if err != nil || strings.TrimSpace(string(out)) != fmt.Sprint(len(m.relays)) {
			return false
		}
	}
	return true
}

// feed has Postfix tell a relay of n sessions, which are in its store when feed returns.
func (m *team) feed(t *testing.T, r *relay, n int, want map[string]report.Summary) {
	t.Helper()
	var conn net.Conn
	r.await(t, func() bool {
		var err error
		conn, err = net.Dial("unixgram", r.sessions)
		return err == nil
	})
	defer conn.Close()
	for range n {
		domain, outcome := fmt.Sprintf("d%d.test", rand.IntN(fleetDomains)), `"t":0,"f":0`
		sum := want[domain]
		if rand.IntN(10) > 0 {
			sum.Successful++
		} else {
			sum.Failed++
			outcome = `"failure-details":[{"c":204,"s":"192.0.2.1","n":"mx.` + domain + `"}],"t":1,"f":1`
		}
		want[domain] = sum
		if _, err := fmt.Fprintf(conn, `{"dpv":"1","d":"%s","pr":"v=TLSRPTv1;","policies":[{"policy-type":9,"policy-domain":"%s",%s}]}`, domain, domain, outcome); err != nil {
			t.Fatal(err)
		}
	}
	r.await(t, func() bool {
		stored := 0
		for _, v := range r.views(t) {
			for _, p := range v.Policies {
				stored += int(p.Summary.Successful + p.Summary.Failed)
			}
		}
		return stored == n
	})
}
