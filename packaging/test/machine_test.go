//go:build e2e

package test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

const (
	bootTime    = 3 * time.Minute // generous, for a busy machine
	commandTime = 3 * time.Minute
	haltTime    = 30 * time.Second

	// sigHalt makes systemd as the first process power off (systemd(1)).
	sigHalt = syscall.Signal(34 + 4)
)

// A machine is a root with a booted systemd. It uses the network of the stage.
type machine struct {
	root   stage.Root
	leader int // PID of its first process
	log    bytes.Buffer
	nspawn *exec.Cmd
	exited chan error
}

// boot boots the root of test/e2e/setup with that name.
func boot(t *testing.T, name string) *machine {
	t.Helper()
	m := &machine{root: stage.MountRoot(t, name), exited: make(chan error, 1)}
	// systemd-nspawn mounts its own and fails silently if one is mounted.
	if err := unix.Unmount(m.root.Path("/proc"), 0); err != nil {
		t.Fatal(err)
	}
	m.root.Write(t, "/etc/resolv.conf", "nameserver "+stage.Resolver+"\n")
	m.root.Write(t, "/etc/hostname", "relay\n")
	m.root.Write(t, "/etc/hosts", "127.0.0.1 localhost relay\n")
	m.nspawn = exec.Command("systemd-nspawn", "--quiet", "--directory="+string(m.root), "--boot", "--register=no", "--keep-unit",
		"--console=pipe", "--resolv-conf=off", "--timezone=off", "--link-journal=no")
	m.nspawn.Stdout, m.nspawn.Stderr = &m.log, &m.log
	if err := m.nspawn.Start(); err != nil {
		t.Fatalf("starting systemd-nspawn: %v", err)
	}
	go func() { m.exited <- m.nspawn.Wait() }()
	t.Cleanup(func() { m.halt(t) })

	ctx, cancel := context.WithTimeout(t.Context(), bootTime)
	defer cancel()
	if err := stage.Await(ctx, func() bool { return len(m.exited) > 0 || m.findLeader() && m.booted() }); err != nil || len(m.exited) > 0 {
		t.Fatalf("%s did not boot: %v\n%s", name, err, m.log.String())
	}
	return m
}

// findLeader finds the only child of systemd-nspawn.
func (m *machine) findLeader() bool {
	pid := m.nspawn.Process.Pid
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return false
	}
	children := strings.Fields(string(text))
	if len(children) == 0 {
		return false
	}
	m.leader, err = strconv.Atoi(children[0])
	return err == nil
}

func (m *machine) booted() bool {
	out, _ := m.command("systemctl", "is-system-running").Output()
	state := strings.TrimSpace(string(out))
	return state == "running" || state == "degraded"
}

func (m *machine) halt(t *testing.T) {
	if t.Failed() && m.leader != 0 {
		out, _ := m.command("journalctl", "--no-pager", "-u", "sts-tlsmap*", "-u", "postfix*", "-n", "200").CombinedOutput()
		t.Logf("the journal:\n%s", out)
	}
	if m.leader != 0 {
		_ = syscall.Kill(m.leader, sigHalt)
	}
	select {
	case <-m.exited:
	case <-time.After(haltTime):
		_ = m.nspawn.Process.Kill()
		<-m.exited
	}
}

// command returns a command on the machine.
func (m *machine) command(name string, args ...string) *exec.Cmd {
	c := exec.Command("nsenter", append([]string{"--target", strconv.Itoa(m.leader), "--all", "--", name}, args...)...)
	c.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive", "HOME=/root"}
	c.WaitDelay = commandTime
	return c
}

// try runs a command on the machine and returns its output and exit code.
func (m *machine) try(t *testing.T, name string, args ...string) (out string, code int) {
	t.Helper()
	c := m.command(name, args...)
	text, err := c.CombinedOutput()
	if c.ProcessState == nil {
		t.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
	return string(text), c.ProcessState.ExitCode()
}

// run is try for commands that must succeed.
func (m *machine) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, code := m.try(t, name, args...)
	if code != 0 {
		t.Fatalf("%s %s: exit %d\n%s", name, strings.Join(args, " "), code, out)
	}
	return out
}

// has reports whether a file exists on the machine.
func (m *machine) has(path string) bool {
	_, err := os.Lstat(m.root.Path(path))
	return err == nil
}

// bring copies a file to the machine's /root.
func (m *machine) bring(t *testing.T, from string) (inside string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	inside = "/root/" + filepath.Base(from)
	m.root.Write(t, inside, string(text))
	return inside
}

// property returns a unit's property from systemctl show.
func (m *machine) property(t *testing.T, unit, name string) string {
	t.Helper()
	return strings.TrimSpace(m.run(t, "systemctl", "show", "--property="+name, "--value", unit))
}

// daemonStatus returns a field of the daemon's /proc/PID/status.
func (m *machine) daemonStatus(t *testing.T, field string) string {
	t.Helper()
	pid := m.property(t, "sts-tlsmap.service", "MainPID")
	for line := range strings.Lines(m.run(t, "cat", "/proc/"+pid+"/status")) {
		if name, value, _ := strings.Cut(line, ":"); name == field {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("/proc/%s/status has no %s", pid, field)
	return ""
}
