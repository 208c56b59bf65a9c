package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
)

const (
	startWithin = time.Minute      // until a daemon accepts connections
	startEvery  = time.Millisecond // between looks
)

// A daemon is the real program, in a process of its own.
type daemon struct {
	*process
	began   time.Time // just before exec
	control string    // its control socket
	log     string    // the file that it logs to
}

// A daemonConfig is how a row wants its daemon. What is left open is as the
// program has it.
type daemonConfig struct {
	cache string // path
	lab   *labProcess
	more  string // lines at the end of the configuration file
}

// startDaemon starts the daemon and waits until it accepts connections. What
// it logs goes to a file, which costs about what the journal does.
func (b *bench) startDaemon(c daemonConfig) (*daemon, error) {
	program, err := b.shop.program()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(b.shop.dir, "daemon-")
	if err != nil {
		return nil, err
	}
	d := &daemon{control: filepath.Join(dir, "control.sock"), log: filepath.Join(dir, "log")}
	config := fmt.Sprintf(`listen  = ["inet:127.0.0.1:0"]
control = "unix:%s"

[cache]
path = %q

[dns]
servers = [%q]

[fetch]
ca_file = %q
allow_private = true
%s`, d.control, c.cache, c.lab.dns, c.lab.roots, c.more)
	file := filepath.Join(dir, "sts-tlsmap.toml")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		return nil, err
	}
	log, err := os.Create(d.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()

	cmd := exec.CommandContext(b.ctx, program, "-config", file)
	cmd.Stderr, cmd.Env = log, withoutProxies(os.Environ())
	d.began = time.Now()
	if d.process, err = b.start(cmd); err != nil {
		return nil, err
	}
	if err := d.accepts(b.ctx); err != nil {
		return nil, fmt.Errorf("the daemon did not start: %w\n%s", err, d.lastLog())
	}
	return d, nil
}

// withoutProxies leaves out HTTPS_PROXY and the like.
func withoutProxies(env []string) []string {
	var kept []string
	for _, e := range env {
		if name, _, _ := strings.Cut(e, "="); !strings.HasSuffix(strings.ToLower(name), "_proxy") {
			kept = append(kept, e)
		}
	}
	return kept
}

// accepts waits until the daemon is there, and asks it for its port: the kernel
// has chosen that, so that nobody else can have taken it.
func (d *daemon) accepts(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	client := control.NewClient(d.control)
	defer client.Close()
	for {
		h, err := client.Health(ctx)
		if err == nil {
			d.address = strings.TrimPrefix(h.Listeners[0], "inet:")
			return nil
		}
		select {
		case <-time.After(startEvery):
		case <-ctx.Done():
			return err
		}
	}
}

// lastLog is what the daemon logged last.
func (d *daemon) lastLog() []byte {
	const most = 2000
	text, _ := os.ReadFile(d.log) // what is missing there is missing in an error
	return text[max(0, len(text)-most):]
}

// keeperStats asks the daemon for the numbers of its keeper.
func (d *daemon) keeperStats(ctx context.Context) (keeper.Stats, error) {
	client := control.NewClient(d.control)
	defer client.Close()
	text, err := client.Stats(ctx)
	if err != nil {
		return keeper.Stats{}, err
	}
	var all struct{ Keeper keeper.Stats }
	err = json.Unmarshal(text, &all)
	return all.Keeper, err
}

// newCache makes a cache file that holds the policies of the domains, fetched
// now, and returns its path.
func (b *bench) newCache(domains ...string) (path string, err error) {
	dir, err := os.MkdirTemp(b.shop.dir, "cache-")
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, "cache.db")
	store, err := cache.Open(path, cache.Options{})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	for _, domain := range domains {
		r, err := recordOf(domain, time.Now(), millionDueIn)
		if err != nil {
			return "", err
		}
		if _, err := store.Write([]cache.Op{{Put: r}}); err != nil {
			return "", err
		}
	}
	return path, nil
}
