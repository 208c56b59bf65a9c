//go:build slow

// Package clock tests what the real daemon answers when the clock of its machine
// jumps. The daemon is built over a time.Now with an offset that is read from a file;
// the clock of the machine that runs the test stays as it is.
package clock

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

const (
	day      = 24 * time.Hour
	oneReply = 15 * time.Second // a lookup must be answered within
)

// A machine has a daemon, its internet and its clock.
type machine struct {
	*testlab.Daemon
	lab   *testlab.T
	clock testlab.Clock
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	dir, lab := t.TempDir(), testlab.New(t)
	program, err := testlab.BuildDaemonWithClock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(dir, "ca.pem")
	if err := lab.CA.WritePEM(ca); err != nil {
		t.Fatal(err)
	}
	d, err := testlab.NewDaemon(program, dir, testlab.DaemonConfig{DNS: lab.DNS.Addr, CA: ca})
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{Daemon: d, lab: lab, clock: testlab.Clock(filepath.Join(dir, "offset"))}
	m.Env = append(testlab.WithoutProxies(os.Environ()), "HTTPS_PROXY="+lab.Proxy.URL(), m.clock.Env())
	m.start(t)
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the log:\n%s", d.Log())
		}
	})
	return m
}

func (m *machine) start(t *testing.T) {
	t.Helper()
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// set sets the clock, ahead of the right time.
func (m *machine) set(t *testing.T, ahead time.Duration) {
	t.Helper()
	if err := m.clock.Set(ahead); err != nil {
		t.Fatal(err)
	}
}

// wants looks domains up, which have replies that begin so.
func (m *machine) wants(t *testing.T, when, reply string, domains ...string) {
	t.Helper()
	for _, domain := range domains {
		ctx, cancel := context.WithTimeout(t.Context(), oneReply)
		got, err := socketmap.Query(ctx, endpoint.Endpoint{Network: "tcp", Address: m.Address}, "postfix", domain)
		cancel()
		if err != nil || !strings.HasPrefix(got, reply) {
			t.Errorf("%s: %s is answered %q, %v; want %s", when, domain, got, err, reply)
		}
	}
}

// says runs the program in a mode and returns its output.
func (m *machine) says(t *testing.T, args ...string) (text string, code int) {
	t.Helper()
	stdout, stderr, code, err := m.Run(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return stdout + stderr, code
}

// checks says whether -check tells of the condition.
func (m *machine) checks(t *testing.T, when string, inDoubt bool) {
	t.Helper()
	text, code := m.says(t, "-check")
	if strings.Contains(text, "failed  clock: the clock says") != inDoubt || inDoubt && code != 1 {
		t.Errorf("%s: -check exits with %d and says:\n%s", when, code, text)
	}
}

func TestJumpsOfTheClockCostNoDomainItsProtection(t *testing.T) {
	m := newMachine(t)
	for _, domain := range []string{"held.test", "exempt.test", "new1.test", "new2.test"} {
		m.lab.Domain(domain, testlab.With{NoMail: true})
	}
	const ok, temp, notFound = "OK secure match=", "TEMP ", "NOTFOUND "
	m.wants(t, "before", ok, "held.test", "exempt.test")
	if text, code := m.says(t, "-exempt", "exempt.test", "-for", "4h"); code != 0 {
		t.Fatal(text)
	}
	m.wants(t, "before", notFound, "exempt.test")
	m.checks(t, "before", false)

	m.set(t, 8*day)
	m.lab.DNS.Break("*", "", testlab.ServFail)
	m.wants(t, "8 days ahead", ok, "held.test")
	m.wants(t, "8 days ahead", notFound, "exempt.test") // its four hours have not passed
	m.checks(t, "8 days ahead", true)
	if text, _ := m.says(t, "-cache"); !strings.Contains(text, "held.test") || strings.Contains(text, "expired") {
		t.Errorf("8 days ahead, -cache:\n%s", text)
	}

	m.set(t, 11*365*day)
	m.lab.DNS.Mend("*", "")
	m.wants(t, "11 years ahead", ok, "held.test")
	m.wants(t, "11 years ahead", temp, "new1.test")
	m.checks(t, "11 years ahead", true)
	if text, _ := m.says(t, "-explain", "new1.test"); !strings.Contains(text, "the clock of this machine has moved") || strings.Contains(text, "NOTFOUND") {
		t.Errorf("11 years ahead, -explain:\n%s", text)
	}

	m.set(t, 0)
	m.wants(t, "right again", ok, "held.test", "new1.test")
	m.checks(t, "right again", false)

	m.set(t, -8*day)
	m.wants(t, "8 days behind", ok, "held.test")
	m.wants(t, "8 days behind", temp, "new2.test")
	m.checks(t, "8 days behind", true)

	// Whoever starts with a clock that is behind has not seen it move.
	if err := m.Stop(); err != nil {
		t.Fatal(err)
	}
	m.start(t)
	m.wants(t, "started 8 days behind", ok, "held.test")
	m.wants(t, "started 8 days behind", temp, "new2.test")
	m.checks(t, "started 8 days behind", true)
	m.set(t, 3*time.Hour)
	m.wants(t, "set after the start", ok, "held.test", "new2.test")
	m.checks(t, "set after the start", false)
}
