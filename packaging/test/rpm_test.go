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
		{"it requires the right packages", (*relay).rpmRequires},
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
func (r *relay) rpm(t *testing.T, args ...string) string {
	t.Helper()
	return r.run(t, "rpm", append([]string{"--force-debian", "--nodeps"}, args...)...)
}

func (r *relay) rpmInstall(t *testing.T) {
	r.rpm(t, "--install", r.bring(t, packageFile(t, older, ".rpm")))
	if state := r.property(t, "sts-tlsmap.service", "ActiveState"); state != "inactive" {
		t.Errorf("the service is %s before its start", state)
	}
	r.run(t, "systemctl", "enable", "--now", "sts-tlsmap")
	r.wantActive(t)
	r.wantOwnUser(t)
}

func (r *relay) rpmUpgrade(t *testing.T) {
	r.lab.DNS.Forget()
	r.underLoad(t, "an upgrade with rpm", func(*load) {
		r.rpm(t, "--upgrade", r.bring(t, packageFile(t, newer, ".rpm")))
	})
	r.wantUpgraded(t)
	if n := r.lab.DNS.Asked("mta-sts."+honest, "A"); n != 0 {
		t.Errorf("the policy was fetched %d times", n)
	}
}

func (r *relay) rpmRemove(t *testing.T) {
	r.run(t, "postconf", "smtp_tls_policy_maps = "+inet)
	wantWarning(t, r.rpm(t, "--erase", "sts-tlsmap"))
	r.wantRemoved(t, nil, []string{configFile + ".rpmsave", cacheFile})
	// Nothing else remains, neither directories nor systemd's links. RPM
	// distributions have /usr/share/licenses.
	r.wantNothingLeft(t, func(path string) bool {
		return strings.HasPrefix(path, filepath.Dir(configFile)) || strings.HasPrefix(path, filepath.Dir(cacheFile)) ||
			strings.HasPrefix(path, "/var/lib/rpm") || path == "/usr/share/licenses"
	})
}
