package main

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
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

// A daemon is the real program in a process of its own.
type daemon struct {
	*process
	began   time.Time // just before exec
	control string    // its control socket
	log     func() string
}

// lastLog returns what the daemon logged last.
func (d *daemon) lastLog() string {
	const most = 2000
	text := d.log()
	return text[max(0, len(text)-most):]
}

// A daemonConfig is how a row wants its daemon. The rest has the program's
// defaults.
type daemonConfig struct {
	cache string // path
	lab   *labProcess
	more  string // tables at the end of the configuration file
}

// startDaemon starts the daemon and waits until it answers. It logs to a file,
// which costs about what the journal does.
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
	return &daemon{process: &process{address: d.Address, pid: d.PID}, began: d.Began, control: d.Control, log: d.Log}, nil
}

// dieWithParent has a command killed when the bench ends.
func dieWithParent(c *exec.Cmd) { c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// fetches asks the daemon how many fetches of policies that it held succeeded and
// failed.
func (d *daemon) fetches(ctx context.Context) (done, failed int, err error) {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", d.control)
	}
	client := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/metrics", nil)
	if err != nil {
		return 0, 0, err
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		labels, number, _ := strings.Cut(lines.Text(), " ")
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
	return done, failed, lines.Err()
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
