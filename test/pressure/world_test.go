//go:build e2e

package pressure

import (
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// The listeners of the daemon.
var (
	overTCP  = endpoint.Endpoint{Network: "tcp", Address: stage.Endpoint}
	overUnix = endpoint.Endpoint{Network: "unix", Address: stage.Path("lookup.sock")}
)

// Domains that are made when somebody asks for them: "f1.honest". Each is a
// registrable domain of its own.
const (
	honest = "honest" // an enforced policy, see hostOf
	stalls = "stalls" // its policy host, at the address of honest ones, does not answer after TLS
	quiet  = "quiet"  // its DNS does not answer
)

// silence is a name for which the DNS never answers.
const silence = "silence.test"

// awaitTime bounds every wait for the lab.
const awaitTime = 30 * time.Second

// hosters is the number of addresses of policy hosts. Those that stall are at the
// first, and those of honest domains whose names begin with shared.
const (
	hosters = 4
	shared  = "shared"
)

// A world is a lab with honest and hostile domains.
type world struct {
	*testlab.T
	hosts []*testlab.PolicyServer

	hold    chan struct{} // until it is closed, the policy hosts of new honest domains do not answer; nil: they do
	waiting atomic.Int64  // requests that wait for it
}

func newWorld(t *testing.T) *world {
	w := &world{T: stage.NewLab(t)}
	// The daemon's probe finds that the resolver validates.
	for _, name := range []string{".", "com", "org", "home.arpa", "10.in-addr.arpa"} {
		w.Set(dns.Fqdn(name) + " 300 IN SOA a. b. 1 1 1 1 1")
	}
	w.DNS.Sign(".", true)
	w.DNS.Sign("arpa", false)
	w.DNS.Break(silence, "", testlab.Silent)
	for range hosters {
		s := w.PolicyServer("")
		s.Fallback(func(name string) *testlab.PolicyHost { return w.host(s, name) })
		w.hosts = append(w.hosts, s)
	}
	w.DNS.Func(honest, w.records(w.hostOf))
	w.DNS.Func(stalls, w.records(func(string) *testlab.PolicyServer { return w.hosts[0] }))
	w.DNS.Func(quiet, func(name string, _ uint16) []dns.RR { return record(name + " 300 IN CNAME " + silence + ".") })
	return w
}

// host makes a policy host when a client comes.
func (w *world) host(s *testlab.PolicyServer, name string) *testlab.PolicyHost {
	domain := strings.TrimPrefix(name, "mta-sts.")
	h := s.NewHost(name)
	if err := h.Present(testlab.CertGood); err != nil {
		return nil // the handshake fails, and with it the test
	}
	h.SetPolicy(policyOf(domain))
	switch {
	case strings.HasSuffix(domain, "."+stalls):
		h.Behave(testlab.StallRequest)
	case w.hold != nil:
		h.Handle(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
			w.waiting.Add(1)
			select {
			case <-w.hold:
				out.Header().Set("Content-Type", "text/plain")
				io.WriteString(out, policyOf(domain))
			case <-r.Context().Done():
			}
		}))
	}
	return h
}

func policyOf(domain string) string { return testlab.PolicyText("enforce", 24*time.Hour, "mx."+domain) }

// hostOf returns where the policy host of an honest domain is.
func (w *world) hostOf(domain string) *testlab.PolicyServer {
	if strings.HasPrefix(domain, shared) {
		return w.hosts[0]
	}
	return w.hosts[1+crc32.ChecksumIEEE([]byte(domain))%(hosters-1)]
}

// records returns a function that makes the records of domains with a policy at a
// server.
func (w *world) records(at func(domain string) *testlab.PolicyServer) func(string, uint16) []dns.RR {
	return func(name string, qtype uint16) []dns.RR {
		label, domain, _ := strings.Cut(name, ".")
		switch {
		case label == "_mta-sts" && qtype == dns.TypeTXT:
			return record(name + ` 300 IN TXT "v=STSv1; id=1;"`)
		case label == "mta-sts" && qtype == dns.TypeA:
			return record(name + " 300 IN A " + at(domain).Addr.String())
		}
		return []dns.RR{}
	}
}

func record(text string) []dns.RR {
	rr, err := dns.NewRR(text)
	if err != nil {
		return nil
	}
	return []dns.RR{rr}
}

// slowDANE makes a domain with an enforced policy and authenticated MX and address
// records, whose TLSA questions get no answer at any port.
func (w *world) slowDANE(name string) {
	w.Domain(name, testlab.With{Signed: true, NoMail: true, Server: w.hosts[1]})
	w.DNS.Func("_tcp.mx1."+name, func(name string, _ uint16) []dns.RR { return record(name + " 300 IN CNAME " + silence + ".") })
}

// signedDANE makes a domain with an enforced policy and DANE.
func (w *world) signedDANE(t *testing.T, name string) {
	t.Helper()
	made := w.Domain(name, testlab.With{Signed: true, Server: w.hosts[2]})
	tlsa, err := made.Mail[0].TLSA(3, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	w.Set(tlsa)
}

// await waits for an event of the lab or of an attack.
func (w *world) await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), awaitTime)
	defer cancel()
	if err := stage.Await(ctx, cond); err != nil {
		t.Fatalf("waited in vain: %s", what)
	}
}

// A daemon is the program under test, with the memory and the descriptors that the
// packages give it.
type daemon struct {
	*stage.Daemon
	group *cgroup
}

// startDaemon starts a daemon and has it learn the domains.
func (w *world) startDaemon(t *testing.T, mapName string, domains ...string) *daemon {
	t.Helper()
	group := newCgroup(t)
	inner := stage.NewDaemon(t, testlab.DaemonConfig{CA: stage.WriteCA(t, w.T), Also: overUnix.String()})
	inner.Wrapper = group.wrapper()
	inner.Env = append(testlab.WithoutProxies(os.Environ()), goMemLimit)
	t.Cleanup(func() { inner.Kill(t) }) // a stop would wait for the lookups under way
	inner.Start(t)
	d := &daemon{inner, group}
	var found tally
	c := &relay{at: overUnix}
	defer c.close()
	for _, domain := range domains {
		found.ask(t.Context(), c, mapName, domain)
	}
	if found.ok < len(domains) {
		t.Fatalf("before the attack, %s\n%s", &found, found.others())
	}
	return d
}

// report logs the figures of a test in one line, and fails it unless the daemon
// lives.
func (d *daemon) report(t *testing.T, figures string) {
	t.Helper()
	state := "the daemon lives"
	if d.group.kills(t) > 0 {
		state = "the daemon was KILLED for memory"
	} else if _, err := d.Get(t.Context(), "/v1/health"); err != nil {
		state = "the daemon does NOT answer: " + err.Error()
	}
	t.Logf("FIGURES %s; %d MiB at most; %s", figures, d.group.peak(t)>>20, state)
	if state != "the daemon lives" {
		t.Error(state)
	}
}

// goroutines returns how many goroutines the daemon has.
func (d *daemon) goroutines(t *testing.T) int64 {
	t.Helper()
	text, err := d.Get(t.Context(), "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	return number(t, text, `(?m)^go_goroutines (\S+)`)
}

// anonymous returns the bytes of the process that no file backs.
func (d *daemon) anonymous(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.PID))
	if err != nil {
		t.Fatal(err)
	}
	return number(t, text, `(?m)^RssAnon:\s+(\d+) kB`) << 10
}

// files returns how many descriptors the daemon has open.
func (d *daemon) files(t *testing.T) int {
	t.Helper()
	open, err := os.ReadDir(filepath.Join("/proc", fmt.Sprint(d.PID), "fd"))
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}
