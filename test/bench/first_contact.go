package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"

	"github.com/sts-tlsmap/sts-tlsmap/internal/fleet"
)

const (
	enginePatience = 10 * time.Second
	engineConns    = 8 // of one relay, as package fleet has them
)

// A fleetEngine is a Valkey or Redis server and the relays' key.
type fleetEngine struct{ socket, key string }

// tables are the configuration of a relay.
func (e *fleetEngine) tables() string {
	return fmt.Sprintf("[fleet]\nurl = \"unix://%s\"\nkey_file = %q\n", e.socket, e.key)
}

// engineCommand returns the command that runs a server: one of this machine, or that of a
// root of test/e2e/setup, run without entering the root.
func engineCommand() ([]string, error) {
	for _, name := range []string{"valkey-server", "redis-server"} {
		if path, err := exec.LookPath(name); err == nil {
			return []string{path}, nil
		}
	}
	folder, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	root := filepath.Join(folder, "sts-tlsmap", "e2e", "valkey-trixie")
	loaders, _ := filepath.Glob(filepath.Join(root, "lib64/ld-linux*"))
	libraries, _ := filepath.Glob(filepath.Join(root, "usr/lib/*-linux-gnu"))
	if len(loaders) != 1 || len(libraries) != 1 {
		return nil, errors.New("no valkey-server or redis-server: install one, or run test/e2e/setup valkey-trixie")
	}
	return []string{loaders[0], "--library-path", libraries[0], filepath.Join(root, "usr/bin/valkey-server")}, nil
}

func (b *bench) startEngine() (*fleetEngine, error) {
	dir, err := os.MkdirTemp(b.shop.dir, "engine-")
	if err != nil {
		return nil, err
	}
	e := &fleetEngine{socket: filepath.Join(dir, "s"), key: filepath.Join(dir, "key")}
	if err := os.WriteFile(e.key, []byte(fleet.NewKey()+"\n"), 0o600); err != nil {
		return nil, err
	}
	words, err := engineCommand()
	if err != nil {
		return nil, err
	}
	if _, err := b.start(exec.Command(words[0], append(words[1:], "--port", "0", "--unixsocket", e.socket, "--save", "", "--dir", dir)...)); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(b.ctx, enginePatience)
	defer cancel()
	for {
		if c, err := net.Dial("unix", e.socket); err == nil {
			return e, c.Close()
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%s does not listen", words)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// repeatedInFleet is repeatedLookup of a relay with a fleet.
func repeatedInFleet(b *bench) (result, error) {
	e, err := b.startEngine()
	if err != nil {
		return result{}, err
	}
	return b.repeated(e.tables())
}

// firstContact looks up domains that another relay has found: the TXT record, the policy
// from the engine, and the commit to disk before the answer. The other side asks the same
// questions and discards the answers.
func firstContact(b *bench) (result, error) {
	e, lab, findNext, err := b.startFinder()
	if err != nil {
		return result{}, err
	}
	path, err := b.newCache()
	if err != nil {
		return result{}, err
	}
	relay, err := b.startDaemon(daemonConfig{cache: path, lab: lab, more: e.tables()})
	if err != nil {
		return result{}, err
	}
	l, err := b.newLoad(relay.address, discoveryClients)
	if err != nil {
		return result{}, err
	}
	limit, err := b.bareSections("get", e.socket, lab.dns)
	if err != nil {
		return result{}, err
	}
	contact, asked := b.discoveries(relay, l), 0
	ours := func() (float64, error) {
		if err := findNext(); err != nil {
			return 0, err
		}
		cost, err := contact()
		if err != nil {
			return 0, err
		}
		asked += discoverySection
		// On a busy machine the engine sometimes takes more than 100 ms; then the relay fetches.
		return cost, relay.awaitFleet(b.ctx, "adopted", asked*9/10)
	}
	return b.pairs(ours, limit, excess)
}

// startFinder starts an engine and a relay that finds a section of domains at each call of
// findNext, one ahead: every other pair begins with the limit.
func (b *bench) startFinder() (e *fleetEngine, lab *labProcess, findNext func() error, err error) {
	if e, err = b.startEngine(); err != nil {
		return nil, nil, nil, err
	}
	if lab, err = b.startLab(); err != nil {
		return nil, nil, nil, err
	}
	path, err := b.newCache()
	if err != nil {
		return nil, nil, nil, err
	}
	relay, err := b.startDaemon(daemonConfig{cache: path, lab: lab, more: e.tables()})
	if err != nil {
		return nil, nil, nil, err
	}
	l, err := b.newLoad(relay.address, discoveryClients)
	if err != nil {
		return nil, nil, nil, err
	}
	find, found := b.discoveries(relay, l), 0
	findNext = func() error {
		if _, err := find(); err != nil {
			return err
		}
		found += discoverySection
		return relay.awaitFleet(b.ctx, "written", found)
	}
	return e, lab, findNext, findNext()
}

// bareSections starts a side that does sections.
func (b *bench) bareSections(side string, args ...string) (measure, error) {
	p, err := b.startSide(side, args...)
	if err != nil {
		return nil, err
	}
	order, err := b.newLoad(p.address, 1)
	if err != nil {
		return nil, err
	}
	return b.bareAsking(p, order), nil
}

// awaitFleet waits until sts_tlsmap_fleet_policies_total is n at least.
func (d *daemon) awaitFleet(ctx context.Context, what string, n int) error {
	waiting, cancel := context.WithTimeout(ctx, enginePatience)
	defer cancel()
	for {
		metrics, err := d.Get(ctx, "/metrics")
		if err != nil {
			return err
		}
		name := fmt.Sprintf("\nsts_tlsmap_fleet_policies_total{what=%q} ", what)
		_, rest, _ := strings.Cut(string(metrics), name)
		number, _, _ := strings.Cut(rest, "\n")
		if got, err := strconv.Atoi(number); err != nil || got >= n {
			return err
		}
		select {
		case <-waiting.Done():
			return fmt.Errorf("%s policies are %s, want %d\n%s", number, what, n, tail(d.Log()))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// A getter asks an engine with bare GETs, and a DNS server with miekg/dns.
type getter struct {
	asker
	conns chan *bufio.ReadWriter
}

// getSide is the limit: a socket, and the DNS server.
func getSide(args []string) error {
	g := &getter{asker: asker{server: args[1]}, conns: make(chan *bufio.ReadWriter, engineConns)}
	for range engineConns {
		c, err := net.Dial("unix", args[0])
		if err != nil {
			return err
		}
		g.conns <- bufio.NewReadWriter(bufio.NewReader(c), bufio.NewWriter(c))
	}
	return serveSections(func(ctx context.Context, domain string) error {
		var both errgroup.Group
		both.Go(func() error { return g.get(domain) })
		both.Go(func() error {
			_, err := g.query(ctx, "_mta-sts."+domain, dns.TypeTXT)
			return err
		})
		return both.Wait()
	})
}

// get asks the engine for the policy of a domain.
func (g *getter) get(domain string) error {
	c := <-g.conns
	defer func() { g.conns <- c }()
	key := "sts-tlsmap:p:{" + domain + "}"
	fmt.Fprintf(c, "*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n", len(key), key)
	if err := c.Flush(); err != nil {
		return err
	}
	line, err := c.ReadString('\n')
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(line, "$")))
	if err != nil || n <= 0 {
		return fmt.Errorf("the engine replies %q for %s", line, key)
	}
	_, err = io.CopyN(io.Discard, c, int64(n+len("\r\n")))
	return err
}
