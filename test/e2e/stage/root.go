package stage

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A Root is a Debian root of test/e2e/setup under a writable layer in memory,
// so that tests can change it and the original stays intact.
type Root string

// MountRoot mounts the root of setup with that name.
func MountRoot(t *testing.T, name string) Root {
	t.Helper()
	lower := filepath.Join(cacheDir(t), name)
	lockShared(t, lower+".lock")
	if _, err := os.Stat(filepath.Join(lower, "etc/e2e-recipe")); err != nil {
		t.Fatalf("missing root %s: run test/e2e/setup %s first (%v)", name, name, err)
	}
	base, err := os.MkdirTemp(dir, name) // each test of a binary has its own layer
	if err != nil {
		t.Fatal(err)
	}
	var (
		upper  = filepath.Join(base, "upper")
		work   = filepath.Join(base, "work")
		merged = filepath.Join(base, "root")
	)
	for _, d := range []string{upper, work, merged} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	layers := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work)
	if err := unix.Mount("overlay", merged, "overlay", 0, layers); err != nil {
		t.Fatalf("mounting an overlay on %s: %v", lower, err)
	}
	if err := unix.Mount("proc", filepath.Join(merged, "proc"), "proc", 0, ""); err != nil {
		t.Fatalf("mounting /proc in %s: %v", merged, err)
	}
	return Root(merged)
}

// cacheDir returns the directory of the roots.
func cacheDir(t *testing.T) string {
	t.Helper()
	d, err := os.UserCacheDir() // $XDG_CACHE_HOME, or $HOME/.cache
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(d, "sts-tlsmap", "e2e")
}

// lockShared prevents setup from replacing the root until the test ends.
func lockShared(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatalf("missing roots: run test/e2e/setup first (%v)", err)
	}
	t.Cleanup(func() { f.Close() })
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != nil {
		t.Fatalf("locking %s: %v", path, err)
	}
}

// Command returns a command inside the root; path is inside the root, too.
func (r Root) Command(path string, args ...string) *exec.Cmd {
	c := exec.Command(path, args...)
	c.Dir = "/"
	c.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	c.SysProcAttr = &syscall.SysProcAttr{Chroot: string(r)}
	return c
}

// Path returns the path outside the root.
func (r Root) Path(inside string) string { return filepath.Join(string(r), inside) }

// Write writes a file inside the root and creates its directories.
func (r Root) Write(t *testing.T, inside, text string) {
	t.Helper()
	p := r.Path(inside)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// program returns a command that runs the program under test inside the root.
func (r Root) program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	const path = "/usr/sbin/sts-tlsmap"
	text, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	r.Write(t, path, string(text))
	if err := os.Chmod(r.Path(path), 0o755); err != nil {
		t.Fatal(err)
	}
	return r.Command(path, args...)
}
