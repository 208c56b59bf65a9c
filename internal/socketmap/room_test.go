package socketmap_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
)

func TestWhenFullTheLongestIdleConnectionIsClosed(t *testing.T) {
	l := startLabOf(t, echo, 3)
	a, b, c := l.dial(), l.dial(), l.dial()
	for _, client := range []*testClient{a, b, c, a} { // b is now the longest idle
		client.ask("example.com")
		until(t, "all are idle", func() bool { return l.Idle() == 3 })
	}
	d := l.dial()
	d.ask("new.example")
	b.wantEnd()
	until(t, "b is gone, and d is idle", func() bool { return l.Stats().Open == 3 && l.Idle() == 3 })
	e := l.dial()
	e.ask("newer.example")
	c.wantEnd()
	a.ask("still.example")
	d.ask("still.example")
	until(t, "two are counted", func() bool { return l.Stats().Evicted == 2 })
	if stats := l.Stats(); stats.Open != 3 || stats.Requests != 8 {
		t.Errorf("stats %+v, want 3 open, 8 requests", stats)
	}
}

func TestAConnectionWithALookupInFlightIsNotIdle(t *testing.T) {
	arrived, goOn := make(chan struct{}), make(chan struct{})
	l := startLabOf(t, slowHandler(arrived, goOn), 2)
	slow, idle := l.dial(), l.dial()
	slow.send(request("postfix", "slow.example"))
	receive(t, "the lookup begins", arrived)
	idle.ask("a.example")
	until(t, "it is idle", func() bool { return l.Idle() == 1 })
	l.dial().ask("new.example")
	idle.wantEnd()
	close(goOn)
	slow.want("OK postfix|slow.example")
}

// waiting is a Handler whose lookups last until their context ends, which it
// notes.
func waiting(cancelled chan<- string) socketmap.Handler {
	return handlerFunc(func(ctx context.Context, dst, _, key []byte) []byte {
		<-ctx.Done()
		cancelled <- string(key)
		return append(dst, "TEMP cancelled"...)
	})
}

func TestWhenFullABusyConnectionOlderThanASecondIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cancelled := make(chan string, 100)
		s := socketmap.NewServer(waiting(cancelled), socketmap.Options{MaxConnections: 10})
		l := newPipeListener()
		go s.Serve(l)
		ask := func(key string) {
			io.WriteString(l.dial(), request("postfix", key))
			synctest.Wait()
		}
		ask("old.example")
		time.Sleep(time.Second)
		for i := range 10 { // the last one is over the limit
			ask(fmt.Sprint("new", i, ".example"))
		}
		if len(cancelled) != 1 || <-cancelled != "old.example" {
			t.Errorf("%d lookups were cancelled, want that of old.example", len(cancelled))
		}
		ask("newest.example") // none is older than a second: any, but not this one
		if key := <-cancelled; key == "newest.example" || len(cancelled) > 0 {
			t.Errorf("%s was cancelled, and %d more", key, len(cancelled))
		}
		if stats := s.Stats(); stats.Open != 10 || stats.Evicted != 2 {
			t.Errorf("stats %+v", stats)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		s.Shutdown(ctx)
	})
}

func TestWhenFullAConnectionWhoseClientIsGoneIsClosedFirst(t *testing.T) {
	cancelled := make(chan string, 10)
	l := startLabOf(t, waiting(cancelled), 3)
	halfClosed, gone, alive := l.dialUnix(), l.dialUnix(), l.dialUnix()
	for i, c := range []*testClient{halfClosed, gone, alive} {
		c.send(request("postfix", fmt.Sprint(i)))
	}
	until(t, "all are busy", func() bool { return l.Stats().Requests == 3 })
	if err := halfClosed.Conn.(*net.UnixConn).CloseWrite(); err != nil { // as Exim does
		t.Fatal(err)
	}
	gone.Close()
	l.dial().send(request("postfix", "new"))
	if key := receive(t, "a lookup is cancelled", cancelled); key != "1" {
		t.Errorf("lookup %s is cancelled, want that of the client that is gone", key)
	}
	until(t, "the new one is looked up", func() bool { return l.Stats().Requests == 4 })
	if len(cancelled) > 0 {
		t.Errorf("lookup %s is cancelled too", <-cancelled)
	}
}

func TestAFloodOfClientsThatAreGoneEndsNoLookupOfOneThatWaits(t *testing.T) {
	const held = 32
	cancelled := make(chan string, 2*held)
	l := startLabOf(t, waiting(cancelled), held)
	begun := time.Now()
	l.dial().send(request("postfix", "waits"))
	goneOverTCP := func() {
		c := l.dial()
		c.send(request("postfix", "gone"))
		c.Close()
	}
	for range held - 1 {
		goneOverTCP()
	}
	until(t, "all are busy and older than a second", func() bool {
		return l.Stats().Requests == held && time.Since(begun) > 2*time.Second
	})
	for range held - 1 {
		goneOverTCP()
		if key := receive(t, "a lookup is cancelled", cancelled); key != "gone" {
			t.Errorf("the lookup of a client that %s is cancelled", key)
		}
	}
}

// Victims are noted 64 at a time; those that ask meanwhile are spared.
func TestTheLeastRecentlyUsedConnectionIsClosed(t *testing.T) {
	const n = 3 * 64
	l := startLabOf(t, echo, n)
	clients := make([]*testClient, n)
	for i := range clients {
		clients[i] = l.dial()
		clients[i].ask("first.example")
	}
	until(t, "all are idle", func() bool { return l.Idle() == n })
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

// A connection that has asked within the idle limit is never evicted for one
// that has not, however many come.
func TestAClientThatKeepsAskingIsNeverEvicted(t *testing.T) {
	l := startLabOf(t, echo, 4)
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

// An exhaustedListener has no file descriptors left for its first accepts.
type exhaustedListener struct {
	*pipeListener
	fails int
	asked []time.Time
}

func (l *exhaustedListener) Accept() (net.Conn, error) {
	l.asked = append(l.asked, time.Now())
	if len(l.asked) > l.fails {
		return l.pipeListener.Accept()
	}
	return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
}

func TestWithoutDescriptorsTheLongestIdleConnectionIsClosed(t *testing.T) {
	bubble(t, echo, func(t *testing.T, s *socketmap.Server, l *pipeListener) {
		var clients []*pipeClient
		for range 4 {
			clients = append(clients, newPipeClient(t, l.dial()))
			clients[len(clients)-1].ask("example.com")
			time.Sleep(time.Second)
		}
		clients[0].ask("again.example")
		exhausted := &exhaustedListener{pipeListener: newPipeListener(), fails: 2}
		go s.Serve(exhausted)
		clients[1].ended()
		clients[2].ended()
		newPipeClient(t, exhausted.dial()).ask("new.example")
		clients[0].ask("still.example")
		clients[3].ask("still.example")
		synctest.Wait()
		if d := exhausted.asked[2].Sub(exhausted.asked[0]); d > 20*time.Millisecond {
			t.Errorf("it accepts again after %v", d)
		}
	})
}

func TestConnectionsAreCappedByHalfOfTheDescriptors(t *testing.T) {
	log := &logBuffer{}
	files := socketmap.Descriptors()
	socketmap.NewServer(echo, socketmap.Options{MaxConnections: files, Log: slog.New(slog.NewTextHandler(log, nil))})
	if want := fmt.Sprintf("level=WARN msg=%q max_connections=%d held=%d", "fewer connections are held than max_connections", files, files/2); log.count(want) != 1 {
		t.Errorf("log %s, want %s", log, want)
	}
}

func TestLongRepliesThatNobodyReadsAreBoundedInMemory(t *testing.T) {
	long := handlerFunc(func(_ context.Context, dst, _, _ []byte) []byte {
		return append(dst, strings.Repeat("r", 95_000)...)
	})
	bubble(t, long, func(t *testing.T, s *socketmap.Server, l *pipeListener) {
		const clients = 900
		temp := 0
		var deaf []net.Conn
		for range clients {
			nc := l.dial()
			deaf = append(deaf, nc)
			io.WriteString(nc, request("postfix", "x"))
		}
		synctest.Wait()
		ask := func() string {
			nc := l.dial()
			defer nc.Close()
			io.WriteString(nc, request("postfix", "x"))
			reply, err := readReply(bufio.NewReader(nc))
			if err != nil {
				t.Fatal(err)
			}
			return reply
		}
		const noMemory = "TEMP too many long replies wait for clients that do not read them"
		if got := ask(); got != noMemory {
			t.Errorf("at once: %.100q", got)
		}
		time.Sleep(time.Second)
		if got := ask(); len(got) != 95_000 {
			t.Errorf("a second later: %.100q", got)
		}
		synctest.Wait()
		if stats := s.Stats(); stats.Slow != 1 || stats.Open != clients-1 {
			t.Errorf("stats %+v, want one closed", stats)
		}
		bytes := 0
		for _, nc := range deaf {
			if reply, err := readReply(bufio.NewReader(nc)); err == nil && reply == noMemory {
				temp++
			} else if err == nil {
				bytes += len(reply)
			}
		}
		if bytes > 24<<20 || bytes < 18<<20 || temp == 0 {
			t.Errorf("%d bytes were held, %d replies were not", bytes, temp)
		}
	})
}

func TestWithoutMemoryForLongRepliesAClientMustReadBeforeItIsReadFrom(t *testing.T) {
	var pipelined atomic.Int64
	l := startLab(t, handlerFunc(func(_ context.Context, dst, _, key []byte) []byte {
		switch string(key) {
		case "long":
			return append(dst, strings.Repeat("r", 95_000)...)
		case "pipelined":
			pipelined.Add(1)
		}
		return append(dst, "OK "...)
	}))
	const clients, requests = 700, 10
	deaf := l.dialUnix()
	longs := make([]net.Conn, clients)
	for i := range longs {
		nc, err := net.Dial("unix", deaf.RemoteAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		io.WriteString(nc, request("postfix", "long"))
		longs[i] = nc
	}
	until(t, "memory is used up", func() bool { return l.Unread() > 24<<20-100_000 })
	deaf.send(strings.Repeat(request("postfix", "pipelined"), requests))
	until(t, "the first request is answered", func() bool { return pipelined.Load() > 0 })
	reads := l.dial()
	for range 100 {
		reads.send(request("postfix", "other"))
		reads.want("OK ")
	}
	if n := pipelined.Load(); n != 1 {
		t.Errorf("%d requests are read from a client with unread replies", n)
	}
	for _, nc := range longs {
		nc.Close()
	}
	for range requests {
		deaf.want("OK ")
	}
}

func TestAClientThatDoesNotReadIsNotReadFrom(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			l := startLab(t, echo)
			c := l.dial()
			if network == "unix" {
				c = l.dialUnix()
			} else if err := c.Conn.(*net.TCPConn).SetReadBuffer(8 << 10); err != nil {
				t.Fatal(err)
			}
			ask := []byte(strings.Repeat(request("postfix", "example.com"), 100))
			for sent := 0; ; sent += len(ask) {
				c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
				if _, err := c.Write(ask); err != nil {
					break
				}
				if sent > 10<<20 {
					t.Fatal("it reads on and on")
				}
			}
			if n := l.Stats().Requests * uint64(len(frame("OK postfix|example.com"))); n > 256<<10 {
				t.Errorf("%d bytes of replies wait", n)
			}
		})
	}
}

func TestAConnectionFloodBlocksNobodyAndLeaksNothing(t *testing.T) {
	const connections, held = 1500, 1000
	l := startLabOf(t, echo, held)
	l.flood(connections, held) // the runtime keeps the descriptors of goroutines for reuse
	goroutines, heap := footprint()
	l.flood(connections, held)
	const slack = 256 << 10
	if g, h := footprint(); g > goroutines || h > heap+slack {
		t.Errorf("heap of %d bytes, was %d; %d goroutines, were %d", h, heap, g, goroutines)
	}
}

// flood makes n connections, half of them silent and half of them dripping,
// and sees that others are answered throughout.
func (l *lab) flood(n, held int) {
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
		if _, err := socketmap.Query(t.Context(), l.at, "postfix", "new.example"); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the rest are evicted", func() bool { return l.Stats().Evicted-before.Evicted >= uint64(n+1-held) })
	good.ask("last.example")
	for _, nc := range conns {
		nc.Close()
	}
	good.Close()
	until(t, "all are gone", func() bool { return l.Stats().Open == 0 })
}

// footprint is the number of goroutines and the size of the live heap.
func footprint() (goroutines int, heap uint64) {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return runtime.NumGoroutine(), m.HeapAlloc
}
