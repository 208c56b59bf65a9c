// Package unbound runs Debian's unbound as a real validating resolver, with
// zones that are made and signed in the test, some of them tampered with
// afterwards. Nothing leaves the machine. Its own tests hold internal/resolver
// and internal/dane against its answers.
//
// It needs the Debian packages unbound and ldnsutils, and no root. The
// system's own unbound plays no part; it may be masked.
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

// startTime is for unbound to give its first answer.
const startTime = 20 * time.Second

// Options say what an unbound resolves.
type Options struct {
	Dir   string // for its configuration
	Addr  netip.AddrPort
	Zones []*Zone // resolved from their files as if these were name servers; at least one

	// Forward is the name server for the names below test, which are not
	// signed. If it is set, nothing is cached: the tests change the world as
	// they go. None of the zones may be below test: this unbound would ask
	// the name server for it.
	Forward netip.AddrPort

	NoValidator bool // take everything as it comes
}

// A Server is an unbound.
type Server struct {
	options Options
	cmd     *exec.Cmd
	ended   chan struct{} // closed when cmd has ended
	log     bytes.Buffer
}

// errEnded says that an unbound has ended before it gave an answer, as one does
// that cannot have its port.
var errEnded = errors.New("unbound ended before it answered")

// Start starts an unbound, and returns when it answers. It ends with the test,
// if not before.
func Start(t *testing.T, o Options) *Server {
	t.Helper()
	s, err := tryStart(t, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// tryStart is Start, and returns an error when the server does not answer.
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

// Restart starts the server anew, with or without its validator, and returns
// when it answers.
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
		cmd.Wait() // it is killed, or has said why in its log
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
	case hasEnded(): // and whoever has its port may have answered
		return errEnded
	case err != nil:
		return fmt.Errorf("unbound does not answer: %w", err)
	}
	return nil
}

// Stop ends the server, and returns when its port is free.
func (s *Server) Stop() {
	if s.cmd != nil && s.cmd.Process != nil {
		s.cmd.Process.Kill() // it may have ended before
		<-s.ended
	}
}

// configuration has unbound resolve from the zones as it would from their name
// servers: what it reads from them it validates.
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
		// unbound has a zone test of its own, without any names in it.
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
