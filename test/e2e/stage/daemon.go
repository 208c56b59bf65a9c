package stage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// Where the daemon listens, and where its cache is.
const (
	Endpoint  = "127.0.0.1:8461"
	CacheFile = dir + "/cache/cache.db"
)

const (
	binary     = dir + "/sts-tlsmap"
	configFile = dir + "/sts-tlsmap.toml"
	daemonLog  = dir + "/sts-tlsmap.log"

	startTime = 30 * time.Second // the daemon must answer within
	stopTime  = 15 * time.Second // it drains for 10 s at most
)

// buildDaemon builds the program as it is released, for the copy of the test
// binary on the stage, where there is no network. Each run has a place of its
// own in dir for it: two checkouts on one machine must not test each other's.
func buildDaemon(dir string) (path string, err error) {
	path = filepath.Join(dir, "sts-tlsmap")
	c := exec.Command("go", "build", "-trimpath", "-o", path, "github.com/sts-tlsmap/sts-tlsmap/cmd/sts-tlsmap")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the daemon: %w\n%s", err, out)
	}
	return path, nil
}

// A Daemon is the real binary with a configuration file.
type Daemon struct {
	Trace []string // if set, a command that runs the daemon: strace and its flags

	running *exec.Cmd
	exited  chan error
}

// StartDaemon starts the daemon with that configuration, and returns when it
// answers. listen, control and cache.path are set already.
func StartDaemon(t *testing.T, config string) *Daemon {
	t.Helper()
	d := NewDaemon(t, config)
	d.Start(t)
	return d
}

// NewDaemon is StartDaemon without the start.
func NewDaemon(t *testing.T, config string) *Daemon {
	t.Helper()
	config = fmt.Sprintf("listen = [\"inet:%s\"]\ncontrol = \"unix:%s/control.sock\"\n%s\n[cache]\npath = %q\n",
		Endpoint, dir, config, CacheFile)
	if err := os.WriteFile(configFile, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, old := range []string{daemonLog, CacheFile} { // of an earlier test
		if err := os.RemoveAll(old); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(CacheFile), 0o700); err != nil {
		t.Fatal(err)
	}
	d := new(Daemon)
	t.Cleanup(func() {
		if d.running != nil {
			d.Stop(t)
		}
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", d.Log(t))
		}
	})
	return d
}

// Start starts the daemon, and returns when it takes connections.
func (d *Daemon) Start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(daemonLog, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close() // the daemon has its own
	command := append(d.Trace[:len(d.Trace):len(d.Trace)], binary, "-config", configFile)
	c := exec.Command(command[0], command[1:]...)
	c.Stdout, c.Stderr = log, log
	if err := c.Start(); err != nil {
		t.Fatalf("starting the daemon: %v", err)
	}
	exited := make(chan error, 1)
	go func() { exited <- c.Wait() }()
	d.running, d.exited = c, exited

	ctx, cancel := context.WithTimeout(t.Context(), startTime)
	defer cancel()
	err = Await(ctx, func() bool {
		conn, err := net.Dial("tcp", Endpoint)
		if err == nil {
			conn.Close()
		}
		return err == nil || len(exited) > 0
	})
	if err != nil || len(exited) > 0 {
		t.Fatalf("the daemon does not answer at %s", Endpoint)
	}
}

// Kill kills the daemon as kill -9 does, and returns when it is gone.
func (d *Daemon) Kill(t *testing.T) {
	t.Helper()
	if err := d.running.Process.Kill(); err != nil {
		t.Fatalf("killing the daemon: %v", err)
	}
	<-d.exited
	d.running = nil
}

// Stop stops the daemon as an init system does; it must exit in good order.
func (d *Daemon) Stop(t *testing.T) {
	t.Helper()
	c := d.running
	d.running = nil
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("stopping the daemon: %v", err)
	}
	select {
	case err := <-d.exited:
		if err != nil {
			t.Errorf("the daemon stopped with: %v", err)
		}
	case <-time.After(stopTime):
		c.Process.Kill()
		t.Errorf("the daemon did not stop within %s", stopTime)
	}
}

// Run runs the program with one of its modes, "-cache" say, and the daemon's
// configuration. It returns what it printed and its exit code.
func (d *Daemon) Run(t *testing.T, args ...string) (stdout string, code int) {
	t.Helper()
	c := exec.Command(binary, append([]string{"-config", configFile}, args...)...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatalf("running %v: %v", args, err)
	}
	if errs.Len() > 0 {
		t.Logf("%v: %s", args, errs.String())
	}
	return out.String(), c.ProcessState.ExitCode()
}

// Log returns what the daemon has logged so far.
func (d *Daemon) Log(t *testing.T) string {
	t.Helper()
	log, err := os.ReadFile(daemonLog)
	if err != nil {
		t.Fatal(err)
	}
	return string(log)
}
