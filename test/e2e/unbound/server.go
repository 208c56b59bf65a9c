// Package unbound runs Debian's unbound as a real validating resolver with
// zones that the test creates and signs, and may tamper with afterwards.
// Nothing leaves the machine. Its own tests check internal/resolver and
// internal/dane with its answers.
//
// It needs the Debian packages unbound and ldnsutils, but not root. The
// system's unbound service is not used.
package unbound

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// startTime limits the time until the first answer.
const startTime = 20 * time.Second

// Options configure an unbound.
type Options struct {
	Dir   string // for its configuration
	Addr  netip.AddrPort
	Zones []*Zone // read as auth-zones; at least one

	// Forward is the DNS server for names below test, which are unsigned. If
	// set, unbound does not cache, because tests change the records. No zone
	// may be below test.
	Forward netip.AddrPort

	NoValidator bool // do not validate
}

// A Server is an unbound.
type Server struct {
	options Options
	cmd     *exec.Cmd
	ended   chan struct{} // closed when cmd has ended
	log     bytes.Buffer
}

// errEnded means that unbound ended before it answered, as when another process
// has its port.
var errEnded = errors.New("unbound ended before it answered")

// Start starts an unbound and waits until it answers. The end of the test stops
// it.
func Start(t *testing.T, o Options) *Server {
	t.Helper()
	s, err := tryStart(t, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func tryStart(t *testing.T, o Options) (*Server, error) {
	t.Helper()
	s := &Server{options: o}
	t.Cleanup(func() {
		s.Stop()
		if t.Failed() {
			t.Logf("unbound:\n%s", &s.log)
		}
	})
	return s, s.restart(t.Context(), o.NoValidator)
}

// Restart restarts the server with or without its validator and waits until it
// answers.
func (s *Server) Restart(t *testing.T, noValidator bool) {
	t.Helper()
	if err := s.restart(t.Context(), noValidator); err != nil {
		t.Fatal(err)
	}
}

func (s *Server) restart(ctx context.Context, noValidator bool) error {
	s.Stop()
	s.options.NoValidator = noValidator
	conf := filepath.Join(s.options.Dir, "unbound.conf")
	if err := os.WriteFile(conf, []byte(s.options.configuration()), 0o644); err != nil {
		return err
	}
	s.cmd = exec.Command("unbound", "-d", "-p", "-c", conf)
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return fmt.Errorf("starting unbound (Debian package unbound): %w", err)
	}
	ended := make(chan struct{})
	s.ended = ended
	go func(cmd *exec.Cmd) {
		cmd.Wait() // killed, or the log says why
		close(ended)
	}(s.cmd)
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	question := new(dns.Msg).SetQuestion(dns.Fqdn(s.options.Zones[0].Name), dns.TypeSOA)
	hasEnded := func() bool {
		select {
		case <-ended:
			return true
		default:
			return false
		}
	}
	err := stage.Await(ctx, func() bool {
		if hasEnded() {
			return true
		}
		answer, err := dns.ExchangeContext(ctx, question, s.options.Addr.String())
		return err == nil && answer.Rcode == dns.RcodeSuccess
	})
	switch {
	case hasEnded(): // another process may have answered
		return errEnded
	case err != nil:
		return fmt.Errorf("unbound does not answer: %w", err)
	}
	return nil
}

// Stop ends the server and returns when its port is free.
func (s *Server) Stop() {
	if s.cmd != nil && s.cmd.Process != nil {
		s.cmd.Process.Kill() // it may have ended already
		<-s.ended
	}
}

// configuration makes unbound resolve from auth-zones and validate them.
func (o *Options) configuration() string {
	modules := "validator iterator"
	if o.NoValidator {
		modules = "iterator"
	}
	var b strings.Builder
	fmt.Fprintf(&b, `server:
	directory: "%s"
	interface: %s
	port: %d
	do-daemonize: no
	username: ""
	chroot: ""
	pidfile: ""
	use-syslog: no
	verbosity: 1
	val-log-level: 2
	num-threads: 1
	module-config: "%s"
	trust-anchor-signaling: no
`, o.Dir, o.Addr.Addr(), o.Addr.Port(), modules)
	if o.Forward.IsValid() {
		// unbound has a built-in empty zone test.
		b.WriteString("\tcache-max-ttl: 0\n\tcache-max-negative-ttl: 0\n\tdo-not-query-localhost: no\n\tlocal-zone: \"test.\" nodefault\n")
	}
	for _, z := range o.Zones {
		if z.anchor != "" {
			fmt.Fprintf(&b, "\ttrust-anchor-file: \"%s\"\n", z.anchor)
		}
	}
	b.WriteString("remote-control:\n\tcontrol-enable: no\n")
	for _, z := range o.Zones {
		fmt.Fprintf(&b, "auth-zone:\n\tname: \"%s\"\n\tzonefile: \"%s\"\n\tfor-downstream: no\n\tfor-upstream: yes\n\tfallback-enabled: no\n", z.Name, z.file)
	}
	if o.Forward.IsValid() {
		fmt.Fprintf(&b, "forward-zone:\n\tname: \"test.\"\n\tforward-addr: %s@%d\n", o.Forward.Addr(), o.Forward.Port())
	}
	return b.String()
}
