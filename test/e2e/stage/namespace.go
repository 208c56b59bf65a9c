// Package stage runs the end-to-end tests: each test has its own namespaces, a
// real MTA in a Debian root, and the real daemon.
//
// The kernel removes processes, mounts and network with the first process of
// the namespaces, so nothing outlives a test and no test cleans up.
//
// Left out: a booted systemd (packaging/test has that), and any network but
// loopback.
package stage

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// Resolver is the address of the DNS server for everything on the stage. Tests
// start their testlab there.
const Resolver = "127.0.0.53"

// onStage marks the copy of the test binary inside the namespaces. Its value is
// the path of the program under test.
const onStage = "STS_TLSMAP_E2E_STAGE"

// underTest may name a program to test, such as an installed one, instead of a
// newly built one.
const underTest = "STS_TLSMAP_E2E_PROGRAM"

// dir is a tmpfs for this test only. Every Linux has /run, and the stage needs
// nothing in it.
const dir = "/run"

// Path returns the path of a file in dir.
func Path(name string) string { return filepath.Join(dir, name) }

// Main is the TestMain of the end-to-end tests. It runs each test in a copy of
// the test binary, the first process of new network, mount and process
// namespaces, as many at once as -parallel says, and exits with the worst code. Outside the
// namespaces it calls atEnd before it exits.
func Main(m *testing.M, atEnd ...func()) {
	if program := os.Getenv(onStage); program != "" {
		if err := furnish(program); err != nil {
			fmt.Fprintf(os.Stderr, "e2e: furnishing the namespaces: %v\n", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	flag.Parse()
	if flag.Lookup("test.list").Value.String() != "" {
		os.Exit(m.Run()) // only lists the tests
	}
	code, err := playAll()
	if err != nil {
		fmt.Fprintf(os.Stderr, "e2e: making the stage (this needs root): %v\n", err)
	}
	for _, f := range atEnd {
		f()
	}
	os.Exit(code)
}

// playAll runs each selected test on its own stage.
func playAll() (code int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 1, err
	}
	program := os.Getenv(underTest)
	if program == "" {
		dir, err := os.MkdirTemp("", "sts-tlsmap-e2e-")
		if err != nil {
			return 1, err
		}
		defer os.RemoveAll(dir)
		if program, err = testlab.BuildDaemon(context.Background(), dir); err != nil {
			return 1, err
		}
	}
	selected, subtests, _ := strings.Cut(flag.Lookup("test.run").Value.String(), "/")
	list, err := exec.Command(self, "-test.list", cmp.Or(selected, ".")).Output()
	if err != nil {
		return 1, fmt.Errorf("listing the tests: %w", err)
	}
	parallel, err := strconv.Atoi(flag.Lookup("test.parallel").Value.String())
	if err != nil {
		return 1, err
	}
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(parallel)
	for name := range strings.FieldsSeq(string(list)) {
		if !strings.HasPrefix(name, "Test") {
			continue
		}
		run := "^" + name + "$"
		if subtests != "" {
			run += "/" + subtests
		}
		group.Go(func() error {
			out, c, err := play(self, program, run)
			mu.Lock()
			defer mu.Unlock()
			os.Stdout.Write(out)
			code = max(code, c)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return 1, err
	}
	return code, nil
}

// play runs the test binary in new namespaces with its own flags except for the
// selection of tests. It returns the output.
func play(self, program, run string) (out []byte, code int, err error) {
	// Pdeathsig is sent when the thread that started the process ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c := exec.Command(self, append(os.Args[1:len(os.Args):len(os.Args)], "-test.run="+run)...)
	c.Env = append(os.Environ(), onStage+"="+program)
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	out, err = c.CombinedOutput()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return out, max(exit.ExitCode(), 1), nil // -1 means a signal
	}
	return out, 0, err
}

// furnish prepares the new namespaces.
func furnish(program string) error {
	// Mounts must not be visible outside.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making the mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	// Before /run is covered: resolv.conf is often a link into it.
	if err := useResolver("/etc/resolv.conf"); err != nil {
		return err
	}
	if err := unix.Mount("e2e", dir, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mounting a tmpfs on %s: %w", dir, err)
	}
	if err := unix.Sethostname([]byte("relay")); err != nil {
		return fmt.Errorf("setting the host name: %w", err)
	}
	if err := copyProgram(program); err != nil {
		return fmt.Errorf("copying the program under test: %w", err)
	}
	return loopbackUp()
}

// copyProgram copies the program to where the tests start it.
func copyProgram(from string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(binary, text, 0o755)
}

// useResolver covers the machine's resolv.conf with one that names Resolver.
func useResolver(path string) error {
	f, err := os.CreateTemp("", "resolv.conf")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // the mount keeps the file
	defer f.Close()
	if err := errors.Join(f.Chmod(0o644), writeString(f, resolvConf)); err != nil {
		return err
	}
	if err := unix.Mount(f.Name(), path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mounting a resolv.conf on %s: %w", path, err)
	}
	return nil
}

// resolvConf is the stage's resolv.conf. With trust-ad, libc passes on the
// resolver's AD bit.
const resolvConf = "nameserver " + Resolver + "\noptions trust-ad\n"

// SetResolvConf changes the resolv.conf of the daemon until the test ends.
// Postfix has its own.
func SetResolvConf(t *testing.T, text string) {
	t.Helper()
	write := func(text string) {
		// A mounted file cannot be replaced.
		if err := os.WriteFile("/etc/resolv.conf", []byte(text), 0o644); err != nil {
			t.Error(err)
		}
	}
	write(text)
	t.Cleanup(func() { write(resolvConf) })
}

func writeString(f *os.File, s string) error {
	_, err := f.WriteString(s)
	return err
}

// loopbackUp brings up the loopback interface with all of 127.0.0.0/8.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bringing lo up: %w", err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bringing lo up: %w", err)
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("bringing lo up: %w", err)
	}
	return nil
}
