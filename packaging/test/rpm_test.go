//go:build e2e

package test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestTheRPM installs the package with Debian's rpm. Its database does not know
// the system, so the test compares the requirements and does not enforce them.
func TestTheRPM(t *testing.T) {
	newRelay(t, "booted-bookworm").live(t, []step{
		{"it requires what it needs", (*relay).rpmRequires},
		{"it installs, and is started by one command", (*relay).rpmInstall},
		{"an administrator's configuration is taken by a restart", (*relay).configure},
		{"Postfix asks over TCP and inside its chroot", (*relay).ask},
		{"root and members of the group look, others do not", (*relay).look},
		{"an upgrade loses no lookup, no policy and no configuration", (*relay).rpmUpgrade},
		{"removal stops it, and keeps configuration and cache", (*relay).rpmRemove},
	})
}

func (r *relay) rpmRequires(t *testing.T) {
	out := r.run(t, "rpm", "-qp", "--requires", r.bring(t, packageFile(t, older, ".rpm")))
	var got []string
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		if name := strings.TrimSpace(line); !strings.HasPrefix(name, "rpmlib(") {
			got = append(got, name)
		}
	}
	slices.Sort(got)
	if got = slices.Compact(got); !slices.Equal(got, []string{"/bin/sh", "ca-certificates", "systemd"}) {
		t.Errorf("the package requires %q", got)
	}
}

// rpm runs Debian's rpm, which needs an option to act on the system.
func (r *relay) rpm(t *testing.T, args ...string) {
	t.Helper()
	r.run(t, "rpm", append([]string{"--force-debian", "--nodeps"}, args...)...)
}

func (r *relay) rpmInstall(t *testing.T) {
	r.rpm(t, "--install", r.bring(t, packageFile(t, older, ".rpm")))
	if state := r.property(t, "sts-tlsmap.service", "ActiveState"); state != "inactive" {
		t.Errorf("the service is %s before its start", state)
	}
	r.run(t, "systemctl", "enable", "--now", "sts-tlsmap")
	for _, unit := range []string{"sts-tlsmap.service", "sts-tlsmap.socket", "sts-tlsmap-postfix.socket", "sts-tlsmap-control.socket"} {
		if state := r.property(t, unit, "ActiveState"); state != "active" {
			t.Errorf("%s is %s", unit, state)
		}
	}
	r.wantOwnUser(t)
}

func (r *relay) rpmUpgrade(t *testing.T) {
	r.lab.DNS.Forget()
	r.underLoad(t, "an upgrade with rpm", func(*load) {
		r.rpm(t, "--upgrade", r.bring(t, packageFile(t, newer, ".rpm")))
	})
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
	if n := r.lab.DNS.Asked("mta-sts."+honest, "A"); n != 0 {
		t.Errorf("the policy was fetched %d times", n)
	}
}

func (r *relay) rpmRemove(t *testing.T) {
	r.rpm(t, "--erase", "sts-tlsmap")
	for _, gone := range []string{"/run/sts-tlsmap", "/usr/sbin/sts-tlsmap", queueDir + "/sts-tlsmap"} {
		if r.has(gone) {
			t.Errorf("%s is still there", gone)
		}
	}
	for _, kept := range []string{configFile + ".rpmsave", cacheFile} {
		if !r.has(kept) {
			t.Errorf("%s is gone", kept)
		}
	}
	if _, err := (&keptConnection{endpoint: r.overTCP()}).ask(honest); err == nil {
		t.Error("a server still answers")
	}
	// Nothing else remains, neither directories nor systemd's links.
	var left []string
	for _, f := range r.files(t) {
		kept := strings.HasPrefix(f, filepath.Dir(configFile)) || strings.HasPrefix(f, filepath.Dir(cacheFile)) || strings.HasPrefix(f, "/var/lib/rpm")
		if f == "/usr/share/licenses" {
			continue // RPM distributions have it
		}
		if !kept && !slices.Contains(r.before, f) {
			left = append(left, f)
		}
	}
	if len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}
