package socketmap

import (
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// full makes a lab with n connections at most.
func full(t *testing.T, h Handler, n int) *lab {
	return startLab(t, h, func(s *Server) { s.max = n })
}

func TestWhenFullTheLongestIdleConnectionIsClosed(t *testing.T) {
	l := full(t, echo, 3)
	a, b, c := l.dial(), l.dial(), l.dial()
	for _, client := range []*testClient{a, b, c, a} { // b is now the longest idle
		client.ask("example.com")
	}
	d := l.dial()
	d.ask("new.example")
	b.wantEnd()
	e := l.dial()
	e.ask("newer.example")
	c.wantEnd()
	a.ask("still.example")
	d.ask("still.example")
	if stats := l.Stats(); stats.Open != 3 || stats.Evicted != 2 || stats.Requests != 8 {
		t.Errorf("stats %+v, want 3 open, 2 evicted, 8 requests", stats)
	}
}

func TestADrippingConnectionIsIdleSinceItsLastWholeRequest(t *testing.T) {
	l := full(t, echo, 2)
	dripping, idle := l.dial(), l.dial()
	dripping.ask("a.example")
	idle.ask("b.example")
	dripping.send("19:postfix exam")
	l.dial().ask("new.example")
	dripping.wantEnd()
	idle.ask("still.example")
}

func TestAConnectionWithALookupInFlightIsNotIdle(t *testing.T) {
	arrived, goOn := make(chan struct{}), make(chan struct{})
	l := full(t, slowHandler(arrived, goOn), 2)
	slow, idle := l.dial(), l.dial()
	slow.send(request("postfix", "slow.example"))
	receive(t, "the lookup begins", arrived)
	idle.ask("a.example")
	l.dial().ask("new.example")
	idle.wantEnd()
	close(goOn)
	slow.want("OK postfix|slow.example")
}

func TestWhenNoneIsIdleTheOldestIsClosedAndItsLookupCancelled(t *testing.T) {
	arrived, cancelled, goOn := make(chan struct{}), make(chan string, 4), make(chan struct{})
	l := full(t, handlerFunc(func(ctx context.Context, dst, mapName, key []byte) []byte {
		arrived <- struct{}{}
		select {
		case <-ctx.Done():
			cancelled <- string(key)
		case <-goOn:
		}
		return echoReply(dst, mapName, key)
	}), 2)
	var clients []*testClient
	for i := range 4 { // each in the place of the oldest
		c := l.dial()
		c.send(request("postfix", fmt.Sprintf("%d.example", i)))
		receive(t, "the lookup begins", arrived)
		clients = append(clients, c)
		if i < 2 {
			continue
		}
		want := fmt.Sprintf("%d.example", i-2)
		if got := receive(t, "a lookup is cancelled", cancelled); got != want {
			t.Errorf("the lookup of %s is cancelled, want %s", got, want)
		}
	}
	clients[0].wantEnd()
	clients[1].wantEnd()
	close(goOn)
	clients[2].want("OK postfix|2.example")
	clients[3].want("OK postfix|3.example")
	if err := l.shutdown(); err != nil {
		t.Errorf("the cancelled lookups did not end: %v", err)
	}
}

// Victims are noted several at a time; those that ask meanwhile are spared.
func TestEvictionGoesByTheLatestUse(t *testing.T) {
	const n = 3 * maxVictims
	l := full(t, echo, n)
	clients := make([]*testClient, n)
	for i := range clients {
		clients[i] = l.dial()
		clients[i].ask("first.example")
	}
	l.dial().ask("new.example") // takes the place of 0, and notes 1 to 63 as the next
	for i := 1; i < n; i += 2 {
		clients[i].ask("again.example")
	}
	for range n/2 - 1 {
		l.dial().ask("new.example")
	}
	for i, c := range clients {
		if i%2 == 0 {
			c.wantEnd()
		} else {
			c.ask("still.example")
		}
	}
}

func TestAFloodOfConnectionsKeepsNobodyFromAnAnswerAndLeavesNothingBehind(t *testing.T) {
	const connections = 5000
	needFiles(t, 2*connections+500)
	l := startLab(t, echo, func(s *Server) {
		s.max = DefaultMaxConnections
		// What is closed here is evicted: on a busy machine a flood takes longer
		// than the time for a request that was begun.
		s.limits.started, s.limits.idle = time.Hour, time.Hour
	})
	l.flood(connections) // the runtime keeps the descriptors of goroutines for reuse
	goroutines, heap := footprint()
	l.flood(connections)
	const slack = 256 << 10
	if g, h := footprint(); g > goroutines || h > heap+slack {
		t.Errorf("heap of %d bytes, was %d; %d goroutines, were %d", h, heap, g, goroutines)
	}
}

// flood makes n connections, half of them silent and half of them dripping,
// and sees that others are answered throughout.
func (l *lab) flood(n int) {
	t := l.t
	t.Helper()
	before := l.Stats()
	good := l.dial()
	conns := make([]net.Conn, n)
	for i := range conns {
		nc, err := net.DialTimeout("tcp", l.at.Address, testWait)
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = nc
		if i%2 == 0 {
			io.WriteString(nc, "9999:")
		}
		if i%100 > 0 {
			continue
		}
		for d := 0; d <= i; d += 2 {
			conns[d].Write([]byte{'k'}) // fails on one that was evicted
		}
		good.ask(fmt.Sprint("kept", i))
		if _, err := Query(t.Context(), l.at, "postfix", "new.example"); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the flood is held and the rest evicted", func() bool {
		stats := l.Stats()
		return stats.Open == DefaultMaxConnections &&
			stats.Evicted-before.Evicted >= uint64(n+1-DefaultMaxConnections)
	})
	good.ask("last.example")

	for _, nc := range conns {
		nc.Close()
	}
	good.Close()
	until(t, "all are gone", func() bool { return l.Stats().Open == 0 })
	l.running.Wait()
}

// footprint is the number of goroutines and the size of the live heap.
func footprint() (goroutines int, heap uint64) {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return runtime.NumGoroutine(), m.HeapAlloc
}

// needFiles makes sure that n file descriptors may be open.
func needFiles(t *testing.T, n uint64) {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur >= n {
		return
	}
	limit.Cur = n
	limit.Max = max(limit.Max, n)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatalf("this test needs %d file descriptors: %v; raise the limit (ulimit -Hn)", n, err)
	}
}

// A connection that has asked within the idle limit is never evicted for one
// that has not, however many come.
func TestAClientThatKeepsAskingIsNeverEvicted(t *testing.T) {
	l := full(t, echo, 4)
	good := l.dial()
	good.ask("first.example")
	for i := range 200 {
		l.dial()
		until(t, "it is accepted", func() bool { return l.Stats().Accepted == uint64(i+2) })
		good.ask(fmt.Sprint(i))
	}
	if n := l.Stats().Open; n != 4 {
		t.Errorf("%d connections open, want 4", n)
	}
}
