// Package stage is where the end-to-end tests play: namespaces of its own for
// each test binary, a real MTA in a Debian root, and the real daemon.
//
// Nothing of it outlives the test binary, however that ends: processes, mounts
// and network live in namespaces, and the kernel takes those down with the
// first process in them. So there is no cleaning up, and none to forget.
//
// Left out: booted systemd (the packages' tests do that), and any network but
// loopback.
package stage

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Resolver is the address of the DNS server that everything on the stage
// asks. The tests have their testlab listen there.
const Resolver = "127.0.0.53"

// onStage marks the copy of the test binary that runs in the namespaces; its
// value is where the program under test is.
const onStage = "STS_TLSMAP_E2E_STAGE"

// underTest, if set, is the program to test instead of one built here: that of
// an installed package, say.
const underTest = "STS_TLSMAP_E2E_PROGRAM"

// dir is a tmpfs that only this test binary sees. /run is there on every
// Linux, and nothing of the machine's own /run is wanted on the stage.
const dir = "/run"

// Path is the path of a file with that name in memory, which only this test
// binary sees.
func Path(name string) string { return filepath.Join(dir, name) }

// Main is the TestMain of every package of end-to-end tests. It runs the test
// binary once more, as the first process of new network, mount and process
// namespaces, and exits with that one's code. Outside, atEnd is called before.
func Main(m *testing.M, atEnd ...func()) {
	if program := os.Getenv(onStage); program != "" {
		if err := furnish(program); err != nil {
			fmt.Fprintf(os.Stderr, "e2e: furnishing the namespaces: %v\n", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	code, err := enter()
	if err != nil {
		fmt.Fprintf(os.Stderr, "e2e: making the stage (this needs root): %v\n", err)
	}
	for _, f := range atEnd {
		f()
	}
	os.Exit(code)
}

// enter runs the test binary in its namespaces, with the same arguments.
func enter() (code int, err error) {
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
		if program, err = buildDaemon(dir); err != nil {
			return 1, err
		}
	}
	// Pdeathsig is sent when the thread ends that started the process, not
	// when the program does.
	runtime.LockOSThread()
	c := exec.Command(self, os.Args[1:]...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.Env = append(os.Environ(), onStage+"="+program)
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	err = c.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil // -1 is a signal
	}
	if err != nil {
		return 1, err
	}
	return 0, nil
}

// furnish makes the new namespaces fit to live in.
func furnish(program string) error {
	// Nothing that is mounted here may be seen outside.
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

// copyProgram puts the program where the tests start it.
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

// resolvConf is the resolv.conf of the stage. With trust-ad, libc passes on the
// resolver's AD bit.
const resolvConf = "nameserver " + Resolver + "\noptions trust-ad\n"

// SetResolvConf has the daemon, which reads the stage's, find another
// resolv.conf. Postfix has one of its own. It is as before when the test ends.
func SetResolvConf(t *testing.T, text string) {
	t.Helper()
	write := func(text string) {
		// The file that is mounted there cannot be replaced, only changed.
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

// loopbackUp brings up the one interface of a new network namespace, with all
// of 127.0.0.0/8.
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
