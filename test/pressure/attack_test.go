//go:build e2e

package pressure

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
)

// An attack is a number of hostile clients. They end with its context.
type attack struct {
	ctx     context.Context
	end     context.CancelFunc
	running sync.WaitGroup
	made    atomic.Int64 // connections
	sent    atomic.Int64 // requests whose reply somebody waits for
}

func newAttack(ctx context.Context) *attack {
	a := &attack{}
	a.ctx, a.end = context.WithCancel(ctx)
	return a
}

// stop ends the attack and waits for its clients.
func (a *attack) stop() {
	a.end()
	a.running.Wait()
}

// pipeline has n clients send one request over and over and read nothing. They make
// connections at a rate: a client that the daemon hangs up on connects again.
func (a *attack) pipeline(n int, each rate.Limit, at endpoint.Endpoint, request string) {
	pace := rate.NewLimiter(each, burst(each))
	deaf := func(_, _ string, raw syscall.RawConn) error { // replies stay with the daemon
		return raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<10) })
	}
	block := bytes.Repeat([]byte(netstring(request)), 100)
	for range n {
		a.running.Go(func() {
			for pace.Wait(a.ctx) == nil {
				conn, err := dialWith(a.ctx, at, deaf)
				if err != nil {
					continue
				}
				a.made.Add(1)
				stop := context.AfterFunc(a.ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
				for err == nil {
					_, err = conn.Write(block)
				}
				stop()
				conn.Close()
			}
		})
	}
}

// wait has n clients ask one question after another and wait for each reply. next
// returns the key of the i-th question of all.
func (a *attack) wait(n int, at endpoint.Endpoint, mapName string, next func(i int64) string) {
	const pause = time.Second // after a lookup that fails, such as one of a daemon that is gone
	for range n {
		a.running.Go(func() {
			c := &relay{at: at}
			defer c.close()
			for a.ctx.Err() == nil {
				if _, _, err := c.ask(a.ctx, mapName, next(a.sent.Add(1))); err == nil {
					continue
				}
				select {
				case <-time.After(pause):
				case <-a.ctx.Done():
				}
			}
		})
	}
}

// dash makes connections at a rate, each of which asks a question and is closed at
// once.
func (a *attack) dash(each rate.Limit, at endpoint.Endpoint, mapName string, next func(i int64) string) {
	const clients = 8
	pace := rate.NewLimiter(each, burst(each))
	for range clients {
		a.running.Go(func() {
			for pace.Wait(a.ctx) == nil {
				conn, err := dial(a.ctx, at)
				if err != nil {
					continue
				}
				io.WriteString(conn, netstring(mapName+" "+next(a.made.Add(1))))
				conn.Close()
			}
		})
	}
}

// burst is what a busy machine misses in 50 ms, and is made up for.
func burst(each rate.Limit) int { return max(int(each)/20, 1) }

// numbered returns the names "u1.tld", "u2.tld" and so on.
func numbered(tld string) func(i int64) string {
	return func(i int64) string { return fmt.Sprintf("u%d.%s", i, tld) }
}

// ports returns the next-hops of some domains with all ports in turn: each is a
// DANE check of its own.
func ports(domains ...string) func(i int64) string {
	return func(i int64) string {
		const most = 65_000
		return fmt.Sprintf("%s:%d", domains[i%int64(len(domains))], 1000+i/int64(len(domains))%(most-1000))
	}
}

// slowDomains returns the names of domains for slowDANE.
func slowDomains(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("slow%d.test", i)
	}
	return names
}

// longMX returns mx patterns for a policy whose reply on map postfix-tlsrpt has
// about 95 KB: each of them is in it three times.
func longMX(domain string) (mx []string) {
	for i := range 450 {
		mx = append(mx, fmt.Sprintf("mx%03d.%s.%s", i, strings.Repeat("x", 48-len(domain)), domain))
	}
	return mx
}
