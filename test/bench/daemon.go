package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// A daemon is the real program in its own process.
type daemon struct {
	*process
	*testlab.Daemon
}

// A daemonConfig is what rows configure. The rest has the program's defaults.
type daemonConfig struct {
	cache string // path
	lab   *labProcess
	more  string // tables at the end of the configuration file
}

// startDaemon starts the daemon and waits until it answers. Its log is a file,
// which costs about as much as the journal.
func (b *bench) startDaemon(c daemonConfig) (*daemon, error) {
	program, err := b.shop.program()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(b.shop.dir, "daemon-")
	if err != nil {
		return nil, err
	}
	d, err := testlab.NewDaemon(program, dir, testlab.DaemonConfig{Cache: c.cache, DNS: c.lab.dns, CA: c.lab.roots, Tables: c.more})
	if err != nil {
		return nil, err
	}
	d.Tweak = dieWithParent
	b.atEnd(func() { d.Kill() })
	if err := d.Start(b.ctx); err != nil {
		return nil, err
	}
	return &daemon{&process{address: d.Address, pid: d.PID}, d}, nil
}

// dieWithParent makes the kernel kill the command when the bench ends.
func dieWithParent(c *exec.Cmd) { c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// fetches returns how many refresh fetches succeeded and failed.
func (d *daemon) fetches(ctx context.Context) (done, failed int, err error) {
	metrics, err := d.Get(ctx, "/metrics")
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(metrics)) {
		labels, number, _ := strings.Cut(strings.TrimSpace(line), " ")
		if !strings.HasPrefix(labels, "sts_tlsmap_attempts_total{") || !strings.Contains(labels, `step="fetch"`) {
			continue
		}
		n, err := strconv.Atoi(number)
		if err != nil {
			return 0, 0, err
		}
		if strings.Contains(labels, `result="ok"`) {
			done += n
		} else {
			failed += n
		}
	}
	return done, failed, nil
}

// newCache creates a cache file with the policies of the domains, fetched now,
// and returns its path.
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
