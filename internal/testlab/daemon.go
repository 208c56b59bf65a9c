package testlab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Limits and poll interval of a Daemon's start and stop.
const (
	daemonStart = time.Minute
	daemonStop  = 15 * time.Second
	daemonPoll  = time.Millisecond
)

// BuildDaemon builds the program with the flags of a release, and others, and returns
// its path in dir.
func BuildDaemon(ctx context.Context, dir string, others ...string) (path string, err error) {
	path = filepath.Join(dir, "sts-tlsmap")
	args := append([]string{"build", "-trimpath", "-ldflags", "-s -w", "-o", path}, others...)
	c := exec.CommandContext(ctx, "go", append(args, "github.com/sts-tlsmap/sts-tlsmap/cmd/sts-tlsmap")...)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the daemon: %w\n%s", err, out)
	}
	return path, nil
}

// A DaemonConfig holds the settings of a daemon's configuration file. All are
// optional.
type DaemonConfig struct {
	Listen  string // endpoint of the socketmap listener; default an ephemeral port
	Also    string // endpoint of a second listener; default none
	Control string // endpoint of the control socket; default in the daemon's directory
	Cache   string // path of the cache file; default in the daemon's directory
	DNS     string // address and port of the resolver; default /etc/resolv.conf
	CA      string // file of the authorities for policy hosts; default the system's
	Top     string // TOML lines before the first table
	Fetch   string // TOML lines for [fetch]
	Tables  string // TOML tables at the end
}

// Write writes the configuration file of a daemon whose files are in dir, which
// may be "": the directory of the configuration file.
func (c DaemonConfig) Write(file, dir string) error {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	if c.Listen == "" {
		c.Listen = "inet:127.0.0.1:0"
	}
	if c.Control == "" {
		c.Control = "unix:" + filepath.Join(dir, "control.sock")
	}
	if c.Cache == "" {
		c.Cache = filepath.Join(dir, "cache.db")
	}
	listeners := []string{c.Listen}
	if c.Also != "" {
		listeners = append(listeners, c.Also)
	}
	line("listen = [\"%s\"]", strings.Join(listeners, `", "`))
	line("control = %q", c.Control)
	line("%s\n[cache]\npath = %q", c.Top, c.Cache)
	if c.DNS != "" {
		line("[dns]\nservers = [%q]", c.DNS)
	}
	line("[fetch]\nallow_private = true")
	if c.CA != "" {
		line("ca_file = %q", c.CA)
	}
	line("%s\n%s", c.Fetch, c.Tables)
	return os.WriteFile(file, []byte(b.String()), 0o644)
}

// A Daemon is the real program in its own process, with its files in one
// directory.
type Daemon struct {
	Program string
	Config  string            // the configuration file
	Control string            // path of the control socket
	LogFile string            // standard output and standard error
	Wrapper []string          // command that runs the program, such as strace with its flags
	Env     []string          // environment; nil: the caller's without proxy variables
	Tweak   func(c *exec.Cmd) // changes the command before it starts; may be nil
	Address string            // of the first socketmap listener; set by Start
	Began   time.Time         // just before exec
	PID     int

	exited chan error // receives the process's end; nil if none runs
}

// NewDaemon writes the configuration into dir. It does not start the daemon.
func NewDaemon(program, dir string, c DaemonConfig) (*Daemon, error) {
	d := &Daemon{
		Program: program,
		Config:  filepath.Join(dir, "sts-tlsmap.toml"),
		Control: filepath.Join(dir, "control.sock"),
		LogFile: filepath.Join(dir, "sts-tlsmap.log"),
	}
	return d, c.Write(d.Config, dir)
}

// Start starts the daemon and waits until its control socket answers.
func (d *Daemon) Start(ctx context.Context) error {
	log, err := os.OpenFile(d.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close() // the process has a copy
	c := d.command(context.WithoutCancel(ctx), "-config", d.Config)
	c.Stdout, c.Stderr = log, log
	d.Began = time.Now()
	if err := c.Start(); err != nil {
		return fmt.Errorf("starting the daemon: %w", err)
	}
	exited := make(chan error, 1)
	go func() { exited <- c.Wait() }()
	d.exited, d.PID = exited, c.Process.Pid

	ctx, cancel := context.WithTimeout(ctx, daemonStart)
	defer cancel()
	for {
		listeners, err := d.listeners(ctx)
		if err == nil {
			d.Address = strings.TrimPrefix(listeners[0], "inet:")
			return nil
		}
		select {
		case err := <-exited:
			d.exited = nil
			return fmt.Errorf("the daemon exited while starting: %w\n%s", errors.Join(err), d.Log())
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("the daemon does not answer: %w\n%s", err, d.Log()), d.Kill())
		case <-time.After(daemonPoll):
		}
	}
}

// Get fetches a path, such as "/metrics", through the control socket.
func (d *Daemon) Get(ctx context.Context, path string) ([]byte, error) {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", d.Control)
	}
	client := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost"+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	return io.ReadAll(response.Body)
}

// listeners asks the daemon for its listeners' addresses.
func (d *Daemon) listeners(ctx context.Context) ([]string, error) {
	text, err := d.Get(ctx, "/v1/health")
	if err != nil {
		return nil, err
	}
	var health struct {
		Listeners []string `json:"listeners"`
	}
	if err := json.Unmarshal(text, &health); err != nil {
		return nil, err
	}
	if len(health.Listeners) == 0 {
		return nil, errors.New("the daemon has no listener")
	}
	return health.Listeners, nil
}

// Kill sends SIGKILL and waits for the process to end.
func (d *Daemon) Kill() error {
	if d.exited == nil {
		return nil
	}
	err := syscall.Kill(d.PID, syscall.SIGKILL)
	<-d.exited
	d.exited = nil
	return err
}

// Stop sends SIGTERM, as an init system does. The daemon must exit with 0.
func (d *Daemon) Stop() error {
	if d.exited == nil {
		return nil
	}
	if err := syscall.Kill(d.PID, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	select {
	case err := <-d.exited:
		d.exited = nil
		if err != nil {
			return fmt.Errorf("the daemon stopped with: %w", err)
		}
		return nil
	case <-time.After(daemonStop):
		return errors.Join(fmt.Errorf("the daemon did not stop within %s", daemonStop), d.Kill())
	}
}

// Run runs the program in one of its modes with the daemon's configuration. A
// non-zero exit code is not an error.
func (d *Daemon) Run(ctx context.Context, args ...string) (stdout, stderr string, code int, err error) {
	c := d.command(ctx, append([]string{"-config", d.Config}, args...)...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err = c.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = nil
	}
	if err != nil {
		return "", "", 0, fmt.Errorf("running %v: %w", args, err)
	}
	return out.String(), errs.String(), c.ProcessState.ExitCode(), nil
}

func (d *Daemon) command(ctx context.Context, args ...string) *exec.Cmd {
	line := append(append(d.Wrapper[:len(d.Wrapper):len(d.Wrapper)], d.Program), args...)
	c := exec.CommandContext(ctx, line[0], line[1:]...)
	if c.Env = d.Env; c.Env == nil {
		c.Env = WithoutProxies(os.Environ())
	}
	if d.Tweak != nil {
		d.Tweak(c)
	}
	return c
}

// Log returns the daemon's log so far.
func (d *Daemon) Log() string {
	text, err := os.ReadFile(d.LogFile)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// WithoutProxies removes HTTPS_PROXY and similar variables from an environment.
func WithoutProxies(env []string) []string {
	var kept []string
	for _, e := range env {
		if name, _, _ := strings.Cut(e, "="); !strings.HasSuffix(strings.ToLower(name), "_proxy") {
			kept = append(kept, e)
		}
	}
	return kept
}
