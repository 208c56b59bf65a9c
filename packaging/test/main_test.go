//go:build e2e

// Package test installs the packages where they are meant to be: on a Debian
// with a systemd that has really booted, beside Debian's own Postfix, and with
// rpm. It shows that they install, run, restart, upgrade and go as an operator
// expects, and that no lookup is lost meanwhile.
//
// Left out: what the daemon answers in which case; test/e2e has that.
package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// packages, in the environment, is the folder with the packages under test, in
// one folder for each version. Without it they are built.
const packages = "STS_TLSMAP_E2E_PACKAGES"

// The versions that an upgrade goes from and to.
const (
	older = "0.1.0~a"
	newer = "0.1.0~b"
)

// TestMain builds the packages, while there is a network, and then enters the
// stage.
func TestMain(m *testing.M) {
	if os.Getenv(packages) != "" {
		stage.Main(m)
	}
	// A folder of this run's own: two checkouts on one machine must not test
	// each other's packages.
	dir, err := os.MkdirTemp("", "sts-tlsmap-packages-")
	if err == nil {
		err = buildPackages(dir)
	}
	if err != nil {
		os.RemoveAll(dir)
		fmt.Fprintf(os.Stderr, "packaging/test: building the packages: %v\n", err)
		os.Exit(1)
	}
	os.Setenv(packages, dir)
	stage.Main(m, func() { os.RemoveAll(dir) })
}

// upgradeFrom, in the environment, is a commit. The older package is built from
// it, so that the upgrade test takes over the files of that program; without it
// both packages are built from this tree.
const upgradeFrom = "STS_TLSMAP_E2E_UPGRADE_FROM"

func buildPackages(dir string) error {
	tree := "../.."
	if commit := os.Getenv(upgradeFrom); commit != "" {
		tree = filepath.Join(dir, "source")
		if out, err := exec.Command("git", "worktree", "add", "--detach", tree, commit).CombinedOutput(); err != nil {
			return fmt.Errorf("checking out %s: %w\n%s", commit, err, out)
		}
		defer exec.Command("git", "worktree", "remove", "--force", tree).Run()
	}
	for version, source := range map[string]string{older: tree, newer: "../.."} {
		c := exec.Command(filepath.Join(source, "packaging/build"), "-a", runtime.GOARCH, filepath.Join(dir, version))
		c.Env = append(os.Environ(), "VERSION="+version)
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
	}
	return nil
}

// packageFile is the one package of that version with that suffix.
func packageFile(t *testing.T, version, suffix string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(os.Getenv(packages), version, "*"+suffix))
	if err != nil || len(found) != 1 {
		t.Fatalf("version %s has the packages %q, want one (%v)", version, found, err)
	}
	return found[0]
}
