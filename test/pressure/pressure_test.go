//go:build e2e

// Package pressure attacks the real daemon, in the memory that the packages give
// it, as hostile neighbours can: local users at its sockets, and owners of domains.
// Each test counts what honest lookups meanwhile get. A lookup of a domain with an
// enforced policy may be TEMP where this machine is too busy, and never NOTFOUND:
// an attacker must not turn protection off.
//
// The tests log a line of figures. STS_TLSMAP_E2E_PROGRAM names another program to
// attack, such as an older version.
//
// Left out: attackers elsewhere on the network, who cannot reach the sockets.
package pressure

import (
	"context"
	"flag"
	"fmt"
	"sync"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// TestMain runs one attack at a time: two would share the machine.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "1"); err != nil {
		panic(err)
	}
	stage.Main(m)
}

// mostMemory is what docs/limits.md adds up to, in bytes.
const mostMemory = 400 << 20

// attackTime is how long attacks last that do not end by themselves.
const attackTime = 6 * time.Second

// askEach asks for a domain ten times a second over each listener until ctx ends.
func (y *tally) askEach(ctx context.Context, mapName string, key func(i int) string) {
	var asking sync.WaitGroup
	for n, at := range []endpoint.Endpoint{overTCP, overUnix} {
		asking.Go(func() {
			c := &relay{at: at}
			defer c.close()
			pace := rate.NewLimiter(10, 1)
			for i := n; pace.Wait(ctx) == nil; i += 2 {
				y.ask(ctx, c, mapName, key(i))
			}
		})
	}
	asking.Wait()
}

func TestClientsThatReadNoRepliesDoNotExhaustMemory(t *testing.T) {
	const clients = 4000
	for _, tt := range []struct {
		name, mapName string
		mx            []string
		least, most   int // bytes of the reply
		at            endpoint.Endpoint
		memory        int64 // MiB at most
	}{
		{"replies of 48 bytes, unix", "postfix", []string{"mx.deaf.test"}, 44, 52, overUnix, 400},
		{"replies of 48 bytes, tcp", "postfix", []string{"mx.deaf.test"}, 44, 52, overTCP, 400},
		{"replies of 95 KB, unix", "postfix-tlsrpt", longMX("deaf.test"), 93_000, 97_000, overUnix, 400},
		// Too much where TCP's buffers count for the group, as in cgroup v2; see docs/limits.md.
		{"replies of 95 KB, tcp", "postfix-tlsrpt", longMX("deaf.test"), 93_000, 97_000, overTCP, 800},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.Domain("deaf.test", testlab.With{NoMail: true, MX: tt.mx, Server: w.hosts[1]})
			d := w.startDaemon(t, tt.mapName, "deaf.test", "held.honest")
			c := &relay{at: overUnix}
			reply, _, err := c.ask(t.Context(), tt.mapName, "deaf.test")
			if c.close(); err != nil || len(reply) < tt.least || len(reply) > tt.most {
				t.Fatalf("the reply has %d bytes, not %d to %d (%v): %.100q", len(reply), tt.least, tt.most, err, reply)
			}
			ctx, cancel := context.WithTimeout(t.Context(), attackTime)
			defer cancel()
			a := newAttack(ctx)
			a.pipeline(clients, 2000, tt.at, tt.mapName+" deaf.test")
			var held tally
			held.askEach(ctx, "postfix", func(int) string { return "held.honest" })
			a.stop()
			d.report(t, fmt.Sprintf("12, %s: %d clients that never read made %d connections; a held policy: %s", tt.name, clients, a.made.Load(), &held))
			if held.ok == 0 || held.temp+held.notFound+held.noAnswer > 0 {
				t.Errorf("honest lookups of a held policy: %s\n%s", &held, held.others())
			}
			if peak := d.group.peak(t) >> 20; peak > tt.memory {
				t.Errorf("%d MiB of memory, and %d would be expected at most", peak, tt.memory)
			}
		})
	}
}

// TestPolicyHostsThatStallDoNotHideAnHonestOneAtTheirAddress has twelve customers
// of a web hoster stall, and looks up a thirteenth.
func TestPolicyHostsThatStallDoNotHideAnHonestOneAtTheirAddress(t *testing.T) {
	const stalling = 12
	w := newWorld(t)
	d := w.startDaemon(t, "postfix")
	a := newAttack(t.Context())
	defer a.stop()
	a.wait(stalling, overTCP, "postfix", numbered(stalls))
	w.await(t, "the first fetches stall", func() bool { return a.sent.Load() >= stalling && w.hosts[0].Connections() > 0 })
	var found tally
	found.ask(t.Context(), &relay{at: overTCP}, "postfix", shared+".honest")
	d.report(t, fmt.Sprintf("13: %d policy hosts stall; an honest new domain at their address: %s", stalling, &found))
	if found.ok != 1 {
		t.Errorf("the honest domain: %s", found.others())
	}
}

func TestDomainsWithASilentDNSDoNotHideHonestOnes(t *testing.T) {
	const clients, lookups, questions = 700, 12, 200
	w := newWorld(t)
	d := w.startDaemon(t, "postfix")
	a := newAttack(t.Context())
	defer a.stop()
	a.wait(clients, overTCP, "postfix", numbered(quiet))
	w.await(t, "all clients wait", func() bool { return a.sent.Load() >= clients && w.DNS.Total() > questions })
	var found tally
	found.askAtOnce(t.Context(), overTCP, lookups, "postfix")
	d.report(t, fmt.Sprintf("14: %d clients ask for domains with a silent DNS; %d honest new domains: %s", clients, lookups, &found))
	if found.notFound+found.noAnswer > 0 || found.ok == 0 {
		t.Errorf("honest new domains: %s\n%s", &found, found.others())
	}
}

// askAtOnce asks for new honest domains, each on a connection of its own.
func (y *tally) askAtOnce(ctx context.Context, at endpoint.Endpoint, n int, mapName string) {
	var asking sync.WaitGroup
	for i := range n {
		asking.Go(func() {
			c := &relay{at: at}
			defer c.close()
			y.ask(ctx, c, mapName, fmt.Sprintf("new%d.%s", i, honest))
		})
	}
	asking.Wait()
}

// TestAFloodOfConnectionsEndsNoHonestLookup has honest lookups wait for slow policy
// hosts until twice as many connections as the daemon holds have come.
func TestAFloodOfConnectionsEndsNoHonestLookup(t *testing.T) {
	const lookups, held, each = 12, 4096, rate.Limit(2500)
	for _, at := range []endpoint.Endpoint{overTCP, overUnix} {
		t.Run(at.Network, func(t *testing.T) {
			w := newWorld(t)
			w.hold = make(chan struct{})
			slow := slowDomains(200)
			for _, name := range slow {
				w.slowDANE(name)
			}
			d := w.startDaemon(t, "postfix", slow...)
			var found tally
			asking := make(chan struct{})
			go func() {
				defer close(asking)
				found.askAtOnce(t.Context(), at, lookups, "postfix")
			}()
			w.await(t, "all policy hosts are asked", func() bool { return w.waiting.Load() == lookups })
			begun := time.Now()
			a := newAttack(t.Context())
			defer a.stop()
			a.dash(each, at, "postfix-dane", ports(slow...))
			w.await(t, "the connections come", func() bool { return a.made.Load() > 2*held })
			made, took := a.made.Load(), time.Since(begun)
			close(w.hold)
			<-asking
			d.report(t, fmt.Sprintf("15, %s: %.0f connections a second with a slow DANE lookup each, closed at once; %d honest lookups that waited for their policy hosts: %s",
				at.Network, float64(made)/took.Seconds(), lookups, &found))
			if found.ok != lookups || found.asked2 > 0 {
				t.Errorf("honest lookups: %s\n%s", &found, found.others())
			}
		})
	}
}

func TestOneDomainWithManyPortsIsBounded(t *testing.T) {
	const clients, mostGoroutines = 4000, 6000
	w := newWorld(t)
	w.slowDANE("ports.test")
	d := w.startDaemon(t, "postfix", "ports.test")
	var signed []string
	for i := range 20 {
		name := fmt.Sprintf("signed%d.test", i)
		w.signedDANE(t, name)
		signed = append(signed, name)
	}
	ctx, cancel := context.WithTimeout(t.Context(), attackTime)
	defer cancel()
	a := newAttack(ctx)
	a.wait(clients, overTCP, "postfix-dane", ports("ports.test"))
	w.await(t, "all clients wait", func() bool { return a.sent.Load() >= clients })
	goroutines := d.goroutines(t)
	var found tally
	found.askEach(ctx, "postfix-dane", func(i int) string { return signed[i%len(signed)] })
	goroutines = max(goroutines, d.goroutines(t))
	a.stop()
	d.report(t, fmt.Sprintf("16: %d clients ask for the ports of one domain; %d goroutines; honest domains with DANE: %s", clients, goroutines, &found))
	if found.ok == 0 || found.notFound+found.temp+found.noAnswer > 0 {
		t.Errorf("honest lookups: %s\n%s", &found, found.others())
	}
	if goroutines > mostGoroutines {
		t.Errorf("%d goroutines for %d connections", goroutines, clients)
	}
}
