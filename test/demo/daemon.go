package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

const (
	startWithin = 10 * time.Second      // until the daemon accepts connections
	stopWithin  = 12 * time.Second      // after SIGTERM: its drain, and a little more
	startEvery  = 20 * time.Millisecond // between looks
)

// A daemon is the program under its generated configuration, in a directory
// of its own.
type daemon struct {
	bin        string
	dir        string
	config     string
	listen     string // address and port; the kernel chooses the port at each start
	postmap    string // Postfix's postmap; empty where there is none
	postfixDir string // with a main.cf for it
	proxy      string

	cmd    *exec.Cmd
	exited chan error
}

// newDaemon writes the configuration.
func newDaemon(bin string, lab *testlab.Lab) (*daemon, error) {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(bin); err != nil {
		return nil, fmt.Errorf("%w; run \"make build\" first", err)
	}
	dir, err := os.MkdirTemp("", "sts-tlsmap-demo-")
	if err != nil {
		return nil, err
	}
	d := &daemon{bin: bin, dir: dir, config: filepath.Join(dir, "sts-tlsmap.toml"), postfixDir: filepath.Join(dir, "postfix"), proxy: lab.Proxy.URL()}
	for _, name := range []string{"postmap", "/usr/sbin/postmap"} { // sbin is not in everybody's PATH
		if d.postmap, err = exec.LookPath(name); err == nil {
			break
		}
		d.postmap = ""
	}
	if err := d.writeFiles(lab); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	return d, nil
}

func (d *daemon) controlSocket() string { return filepath.Join(d.dir, "control.sock") }

func (d *daemon) writeFiles(lab *testlab.Lab) error {
	ca := filepath.Join(d.dir, "ca.pem")
	if err := lab.CA.WritePEM(ca); err != nil {
		return err
	}
	config := fmt.Sprintf(`listen  = ["inet:127.0.0.1:0"]
control = "unix:%s"

[cache]
path = %q

[dns]
servers = [%q]

[fetch]
ca_file = %q
allow_private = true
`, d.controlSocket(), filepath.Join(d.dir, "cache.db"), lab.DNS.Addr, ca)
	if err := os.WriteFile(d.config, []byte(config), 0o644); err != nil {
		return err
	}
	if err := os.Mkdir(d.postfixDir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(d.postfixDir, "main.cf"), []byte("compatibility_level = 2\n"), 0o644)
}

// env is the environment of the program: the lab's proxy and no other.
func (d *daemon) env() []string {
	var env []string
	for _, e := range os.Environ() {
		if name, _, _ := strings.Cut(e, "="); !strings.HasSuffix(strings.ToLower(name), "_proxy") {
			env = append(env, e)
		}
	}
	return append(env, "HTTPS_PROXY="+d.proxy)
}

// start starts the daemon, waits until it is there, and asks it where it
// listens. What it logs goes to a file.
func (d *daemon) start(ctx context.Context) error {
	log, err := os.OpenFile(d.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	d.cmd = exec.Command(d.bin, "-config", d.config)
	d.cmd.Env, d.cmd.Stdout, d.cmd.Stderr = d.env(), log, log
	if err := d.cmd.Start(); err != nil {
		return err
	}
	d.exited = make(chan error, 1)
	go func(cmd *exec.Cmd, exited chan error) { exited <- cmd.Wait() }(d.cmd, d.exited)

	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	client := control.NewClient(d.controlSocket())
	defer client.Close()
	for {
		if h, err := client.Health(ctx); err == nil {
			d.listen = strings.TrimPrefix(h.Listeners[0], "inet:")
			return nil
		}
		select {
		case err := <-d.exited:
			d.cmd = nil
			return fmt.Errorf("the daemon ended: %v\n%s", err, d.logged())
		case <-ctx.Done():
			return fmt.Errorf("the daemon does not answer at %s: %w\n%s", d.controlSocket(), ctx.Err(), d.logged())
		case <-time.After(startEvery):
		}
	}
}

func (d *daemon) logFile() string { return filepath.Join(d.dir, "log") }

func (d *daemon) logged() string {
	b, err := os.ReadFile(d.logFile())
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// kill ends the daemon as a crash would.
func (d *daemon) kill() error {
	if err := d.cmd.Process.Kill(); err != nil {
		return err
	}
	<-d.exited
	d.cmd = nil
	return nil
}

// remove ends the daemon and removes its files; its log is shown first if
// something went wrong.
func (d *daemon) remove(failed bool) error {
	err := d.stop()
	if failed || err != nil {
		fmt.Fprintf(os.Stderr, "\nThe daemon's log:\n%s\n", d.logged())
	}
	return errors.Join(err, os.RemoveAll(d.dir))
}

// stop ends the daemon with SIGTERM, and for good if that is not enough.
func (d *daemon) stop() error {
	if d.cmd == nil {
		return nil
	}
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case err := <-d.exited:
		if err != nil {
			return fmt.Errorf("the daemon ended with SIGTERM: %w", err)
		}
		return nil
	case <-time.After(stopWithin):
		return errors.Join(errors.New("the daemon did not end with SIGTERM"), d.kill())
	}
}
