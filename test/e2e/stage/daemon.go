package stage

import (
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// Where the daemon listens, and its cache.
const (
	Endpoint  = "127.0.0.1:8461"
	CacheFile = dir + "/cache/cache.db"
)

const (
	binary   = dir + "/sts-tlsmap"
	filesDir = dir + "/daemon" // configuration, control socket and log
)

// A Daemon is the real program on the stage.
type Daemon struct{ *testlab.Daemon }

// StartDaemon starts the daemon with a configuration and waits until it
// answers. It listens at Endpoint and uses CacheFile.
func StartDaemon(t *testing.T, config testlab.DaemonConfig) *Daemon {
	t.Helper()
	d := NewDaemon(t, config)
	d.Start(t)
	return d
}

// NewDaemon is StartDaemon without the start.
func NewDaemon(t *testing.T, config testlab.DaemonConfig) *Daemon {
	t.Helper()
	for _, old := range []string{filesDir, CacheFile} { // of an earlier test
		if err := os.RemoveAll(old); err != nil {
			t.Fatal(err)
		}
	}
	for _, folder := range []string{filesDir, filepath.Dir(CacheFile)} {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	config.Listen, config.Cache = "inet:"+Endpoint, CacheFile
	inner, err := testlab.NewDaemon(binary, filesDir, config)
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{inner}
	t.Cleanup(func() {
		d.Stop(t)
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", d.Log())
		}
	})
	return d
}

// In makes the daemon run on the machine of an MTA, with its users, groups and programs.
// Paths in dir stay the same there.
func (d *Daemon) In(t *testing.T, root Root) {
	t.Helper()
	if err := unix.Mount(dir, root.Path(dir), "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("mounting %s in %s: %v", dir, root, err)
	}
	d.Wrapper = []string{"chroot", string(root)}
}

// Start starts the daemon and waits until it answers.
func (d *Daemon) Start(t *testing.T) {
	t.Helper()
	if err := d.Daemon.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Kill sends SIGKILL and waits for the process to end.
func (d *Daemon) Kill(t *testing.T) {
	t.Helper()
	if err := d.Daemon.Kill(); err != nil {
		t.Fatal(err)
	}
}

// Stop sends SIGTERM if the daemon runs. It must exit with 0.
func (d *Daemon) Stop(t *testing.T) {
	t.Helper()
	if err := d.Daemon.Stop(); err != nil {
		t.Error(err)
	}
}

// Pause stops the daemon's process: its connections stay open and new ones are
// queued, but nothing is answered until Resume.
func (d *Daemon) Pause(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(d.PID, syscall.SIGSTOP); err != nil {
		t.Fatalf("pausing the daemon: %v", err)
	}
}

func (d *Daemon) Resume(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(d.PID, syscall.SIGCONT); err != nil {
		t.Fatalf("resuming the daemon: %v", err)
	}
}

// Run runs the program in one of its modes with the daemon's configuration, and
// returns its output and exit code.
func (d *Daemon) Run(t *testing.T, args ...string) (stdout string, code int) {
	t.Helper()
	stdout, stderr, code, err := d.Daemon.Run(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	if stderr != "" {
		t.Logf("%v: %s", args, stderr)
	}
	return stdout, code
}

// NewLab starts a lab on the real ports with its DNS server at Resolver.
func NewLab(t *testing.T) *testlab.T {
	t.Helper()
	return testlab.NewWith(t, testlab.Options{
		DNS:        Resolver + ":53",
		Net:        netip.MustParsePrefix("127.1.0.0/16"),
		PolicyPort: 443,
		MailPort:   25,
	})
}

// WriteCA writes the lab's root certificate to a file and returns its path.
func WriteCA(t *testing.T, lab *testlab.T) string {
	t.Helper()
	path := Path("lab.pem")
	if err := lab.CA.WritePEM(path); err != nil {
		t.Fatal(err)
	}
	return path
}
