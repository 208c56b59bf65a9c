//go:build e2e

package test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// packages is the environment variable for the directory of the packages under
// test, one subdirectory for each version. If unset, they are built.
const packages = "STS_TLSMAP_E2E_PACKAGES"

// The versions of the upgrade.
const (
	older = "0.1.0~a"
	newer = "0.1.0~b"
)

// TestMain builds the packages, while there is a network, and then enters the
// stage.
func TestMain(m *testing.M) {
	// Booted machines share one tree of control groups: one at a time.
	flag.Parse()
	if err := flag.Set("test.parallel", "1"); err != nil {
		panic(err)
	}
	if os.Getenv(packages) != "" {
		stage.Main(m)
	}
	// Its own directory, so that two checkouts on one machine do not interfere.
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

// upgradeFrom is the environment variable for the commit of the older package,
// so that an upgrade takes over that program's files. If unset, both packages
// are from this tree.
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

// packageFile returns the only package of a version with that suffix.
func packageFile(t *testing.T, version, suffix string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(os.Getenv(packages), version, "*"+suffix))
	if err != nil || len(found) != 1 {
		t.Fatalf("version %s has the packages %q, want one (%v)", version, found, err)
	}
	return found[0]
}
