//go:build e2e

// Package probe runs -probe with a list of ten thousand domains, in a small internet on
// the real ports, and measures what it costs.
package probe

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

func TestMain(m *testing.M) { stage.Main(m) }

const (
	mostMemory   = 256 << 10 // KiB, resident
	mostSessions = 64        // at once
)

func TestTenThousandDomainsAreProbedWithinBounds(t *testing.T) {
	lab := stage.NewLab(t)
	t.Setenv("SSL_CERT_FILE", stage.WriteCA(t, lab))
	policies := lab.PolicyServer("")
	var hosters []*testlab.MailHost
	for i := range 10 {
		hosters = append(hosters, lab.MailHost(fmt.Sprintf("mx.hoster%d.test", i), ""))
	}
	plain := lab.MailHost("mx.plain.test", "")
	var list strings.Builder
	for i := range 10_000 {
		with := testlab.With{Server: policies}
		switch {
		case i < 10: // enforced, with a bad host
			with.MailCert = testlab.CertSelfSigned
		case i < 1000: // enforced, with a host of its own
		case i < 2000: // enforced, at a hoster
			with.Mail = []*testlab.MailHost{hosters[i%len(hosters)]}
		case i < 2500: // testing, one in a hundred with a bad host
			with.Mode = "testing"
			if i%100 == 0 {
				with.MailFault = testlab.NoSTARTTLS
			}
		default:
			with = testlab.With{NoPolicy: true, Mail: []*testlab.MailHost{plain}}
		}
		d := lab.Domain(fmt.Sprintf("d%04d.test", i), with)
		fmt.Fprintln(&list, d.Name)
	}
	file := stage.Path("list")
	if err := os.WriteFile(file, []byte(list.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	d := stage.NewDaemon(t, testlab.DaemonConfig{CA: stage.Path("lab.pem")}) // it does not run

	ended := make(chan struct{})
	most := make(chan int)
	go func() {
		n := 0
		for tick := time.NewTicker(10 * time.Millisecond); ; {
			select {
			case <-tick.C:
				n = max(n, sessions())
			case <-ended:
				most <- n
				return
			}
		}
	}()
	began := time.Now()
	c := exec.CommandContext(t.Context(), d.Program, "-config", d.Config, "-probe", file, "-map", "postfix-tlsrpt")
	out, err := c.Output()
	close(ended)
	atOnce, usage := <-most, c.ProcessState.SysUsage().(*syscall.Rusage)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Fatalf("%v\n%s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	const want = "domains: 10000; 2000 enforced, 500 testing, 0 with DANE; 10 would wait, 0 unknown; 5 more would wait if testing policies were enforced"
	if got := lines[len(lines)-1]; got != want || len(lines) != 16 {
		t.Errorf("%d lines, the last one %q\nwant 16, %q", len(lines), got, want)
	}
	if n := plain.Connections(); n != 0 {
		t.Errorf("%d connections to the host of domains without a policy", n)
	}
	for _, h := range hosters {
		if n := h.Connections(); n != 1 {
			t.Errorf("%d connections to %s, which many domains share", n, h.Name)
		}
	}
	if atOnce > mostSessions || usage.Maxrss > mostMemory {
		t.Errorf("%d sessions at once, %d KiB of memory", atOnce, usage.Maxrss)
	}
	t.Logf("%s, %s CPU, %d MiB resident at most, %d sessions at once at most", time.Since(began).Round(time.Second),
		(c.ProcessState.UserTime() + c.ProcessState.SystemTime()).Round(time.Second), usage.Maxrss>>10, atOnce)
}

// sessions counts the open connections to port 25.
func sessions() (n int) {
	table, _ := os.ReadFile("/proc/net/tcp")
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if len(f) > 3 && strings.HasSuffix(f[2], ":0019") && f[3] == "01" {
			n++
		}
	}
	return n
}
