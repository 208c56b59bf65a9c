//go:build e2e

package test

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

const (
	inet   = "socketmap:inet:127.0.0.1:8461:postfix"
	chroot = "socketmap:unix:sts-tlsmap/socketmap.sock:postfix"

	queueDir   = "/var/spool/postfix"
	socket     = queueDir + "/sts-tlsmap/socketmap.sock"
	configFile = "/etc/sts-tlsmap/sts-tlsmap.toml"
	cacheFile  = "/var/lib/sts-tlsmap/cache.db"
	labCA      = "/etc/ssl/lab.pem"

	honest  = "honest.test" // enforced policy
	plain   = "plain.test"  // no policy
	forged  = "forged.test" // enforced policy and a host without a valid certificate
	secured = "secure match=mx1.honest.test servername=hostname"

	// restarts of the daemon under load.
	restarts = 10
)

// config is the administrator's configuration file.
const config = `# A comment of the administrator.
[fetch]
ca_file = "` + labCA + `"
allow_private = true
`

// A relay is a machine with Postfix and the package in a small internet.
type relay struct {
	*machine
	lab    *testlab.T
	before []string // files before the installation

	measured []figure
}

// A figure is a measurement for the report.
type figure struct{ what, value string }

func (r *relay) measure(what, format string, args ...any) {
	r.measured = append(r.measured, figure{what, fmt.Sprintf(format, args...)})
}

// report logs the figures in one block.
func (r *relay) report(t *testing.T) {
	var b strings.Builder
	fmt.Fprintf(&b, "figures of %s on %s:\n", t.Name(), runtime.GOARCH)
	for _, f := range r.measured {
		fmt.Fprintf(&b, "  %-40s %s\n", f.what, f.value)
	}
	t.Log(b.String())
}

// newRelay boots a root and starts an internet around it.
func newRelay(t *testing.T, root string) *relay {
	t.Helper()
	lab := stage.NewLab(t)
	lab.Domain(honest, testlab.With{})
	lab.Domain(plain, testlab.With{NoPolicy: true})
	lab.Domain(forged, testlab.With{MailCert: testlab.CertSelfSigned})
	r := &relay{machine: boot(t, root), lab: lab}
	r.root.Write(t, labCA, string(lab.CA.PEM()))
	r.before = r.files(t)
	return r
}

// A step is a part of a package's life.
type step struct {
	name string
	do   func(*relay, *testing.T)
}

// live does the steps in order. Each depends on those before it.
func (r *relay) live(t *testing.T, steps []step) {
	for _, s := range steps {
		if !t.Run(s.name, func(t *testing.T) { s.do(r, t) }) {
			t.Fatalf("later steps depend on this one")
		}
	}
}

func (r *relay) wantActive(t *testing.T) {
	t.Helper()
	for _, unit := range []string{"sts-tlsmap.service", "sts-tlsmap.socket", "sts-tlsmap-postfix.socket", "sts-tlsmap-control.socket"} {
		if state := r.property(t, unit, "ActiveState"); state != "active" {
			t.Errorf("%s is %s", unit, state)
		}
	}
}

// wantUpgraded checks that the newer program runs with the old configuration.
func (r *relay) wantUpgraded(t *testing.T) {
	t.Helper()
	if out := r.run(t, "sts-tlsmap", "-version"); !strings.Contains(out, newer) {
		t.Errorf("-version: %s", out)
	}
	exe := r.run(t, "readlink", "/proc/"+r.property(t, "sts-tlsmap.service", "MainPID")+"/exe")
	if strings.TrimSpace(exe) != "/usr/sbin/sts-tlsmap" {
		t.Errorf("the daemon that runs is %s", exe)
	}
	if text := r.run(t, "cat", configFile); text != config {
		t.Errorf("the configuration is now:\n%s", text)
	}
}

// wantWarning checks that a removal warns of a Postfix that still asks.
func wantWarning(t *testing.T, out string) {
	t.Helper()
	if !strings.Contains(out, "WARNING: Postfix still asks sts-tlsmap") || !strings.Contains(out, "    /etc/postfix/main.cf\n") {
		t.Errorf("the removal does not warn that Postfix still asks:\n%s", out)
	}
}

// wantRemoved checks that nothing answers, and which files remain.
func (r *relay) wantRemoved(t *testing.T, gone, kept []string) {
	t.Helper()
	for _, path := range append(gone, "/run/sts-tlsmap", "/usr/sbin/sts-tlsmap", queueDir+"/sts-tlsmap", queueDir+"/sts-tlsmap-tlsrpt") {
		if r.has(path) {
			t.Errorf("%s is still there", path)
		}
	}
	for _, path := range kept {
		if !r.has(path) {
			t.Errorf("%s is gone", path)
		}
	}
	if _, err := (&keptConnection{endpoint: r.overTCP()}).ask(honest); err == nil {
		t.Error("a server still answers")
	}
}

// wantNothingLeft checks for files that the package left, except those for which
// expected returns true.
func (r *relay) wantNothingLeft(t *testing.T, expected func(path string) bool) {
	t.Helper()
	var left []string
	for _, f := range r.files(t) {
		if !slices.Contains(r.before, f) && !expected(f) {
			left = append(left, f)
		}
	}
	if len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}

func (r *relay) wantOwnUser(t *testing.T) {
	t.Helper()
	uid := strings.TrimSpace(r.run(t, "id", "-u", "sts-tlsmap"))
	if got := strings.Fields(r.daemonStatus(t, "Uid")); uid == "0" || !slices.Equal(got, []string{uid, uid, uid, uid}) {
		t.Errorf("the daemon runs as user %q, want %s", got, uid)
	}
	if caps := r.daemonStatus(t, "CapPrm"); strings.Trim(caps, "0") != "" {
		t.Errorf("the daemon has the capabilities %s", caps)
	}
}

func (r *relay) overTCP() [2]string { return [2]string{"tcp", stage.Endpoint} }

func (r *relay) overUnix() [2]string { return [2]string{"unix", r.root.Path(socket)} }

// underLoad calls do while clients ask without pause.
func (r *relay) underLoad(t *testing.T, what string, do func(*load)) {
	l := startLoad([]question{
		{honest, "OK " + secured},
		{plain, "NOTFOUND "},
		{"[192.0.2.1]", "NOTFOUND "},
	}, r.overTCP(), r.overUnix())
	do(l)
	l.end(t, what)
	r.measure("lookups lost or wrong in "+what, "%d of %d", len(l.wrong), l.answered.Load()+int64(len(l.wrong)))
}

// files lists the machine's files without those that change during the test:
// queues, logs, the machine's state and the packages.
func (r *relay) files(t *testing.T) []string {
	t.Helper()
	out := r.run(t, "find", "/", "-xdev",
		"(", "-path", "/proc", "-o", "-path", "/sys", "-o", "-path", "/dev", "-o", "-path", "/tmp", "-o", "-path", "/root",
		"-o", "-path", "/var/log", "-o", "-path", "/var/tmp", "-o", "-path", "/var/lib/dpkg", "-o", "-path", "/var/lib/systemd", "-o", "-path", "/var/lib/postfix",
		"-o", "-path", queueDir+"/*",
		")", "-prune", "-o", "-print")
	out += r.run(t, "find", "/run", queueDir, "/var/lib/systemd", "/var/lib/dpkg/info", "-name", "*sts-tlsmap*")
	return strings.Split(strings.TrimSpace(out), "\n")
}
