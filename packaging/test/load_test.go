//go:build e2e

package test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

const (
	// clients ask at once, every second one through the unix socket.
	clients = 50
	// oneShots ask at the same time, with a new connection for each lookup.
	oneShots = 10
	// patience is Postfix's time limit for a reply.
	patience = 100 * time.Second
	// lookupsBetween is the number of lookups between two restarts.
	lookupsBetween = 20 * clients
	// replyMost exceeds the length of any reply.
	replyMost = 1000
)

// A question is a key with the only right reply.
type question struct{ key, want string }

// A load has clients that ask without pause. Most keep their connection and
// reconnect once when it closes, as Postfix does; a second failure counts. Some
// connect for every lookup and do not retry, as Exim does.
type load struct {
	stop     atomic.Bool
	running  sync.WaitGroup
	answered atomic.Int64
	again    atomic.Int64 // reconnections
	longest  atomic.Int64 // duration of a lookup in ns

	mu    sync.Mutex
	wrong []string // failed lookups and wrong replies
}

// startLoad starts the clients on the endpoints (network, address) in turn.
func startLoad(questions []question, endpoints ...[2]string) *load {
	l := new(load)
	for i := range clients {
		l.running.Go(func() { l.client(endpoints[i%len(endpoints)], questions, i) })
	}
	for i := range oneShots {
		l.running.Go(func() { l.oneShot(endpoints[i%len(endpoints)], questions, i) })
	}
	return l
}

// oneShot asks as Exim's readsocket does.
func (l *load) oneShot(endpoint [2]string, questions []question, n int) {
	for ; !l.stop.Load(); n++ {
		q := questions[n%len(questions)]
		c := &keptConnection{endpoint: endpoint}
		began := time.Now()
		got, err := c.ask(q.key)
		l.note(q, "once "+endpoint[1], got, err, time.Since(began))
		if tcp, ok := c.nc.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // avoids TIME_WAIT, which would use up the ports
		}
		c.close()
	}
}

// note counts a lookup.
func (l *load) note(q question, where, got string, err error, took time.Duration) {
	for old := l.longest.Load(); int64(took) > old && !l.longest.CompareAndSwap(old, int64(took)); old = l.longest.Load() {
	}
	if err == nil && got == q.want {
		l.answered.Add(1)
		return
	}
	if err != nil {
		got = err.Error()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wrong = append(l.wrong, fmt.Sprintf("%s through %s: %q, want %q", q.key, where, got, q.want))
}

// await waits for that many more right replies.
func (l *load) await(t *testing.T, more int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	enough := l.answered.Load() + more
	if err := stage.Await(ctx, func() bool { return l.answered.Load() >= enough }); err != nil {
		t.Errorf("the clients get no more answers: %v", err)
	}
}

// end stops the clients, reports failures and logs figures.
func (l *load) end(t *testing.T, what string) {
	t.Helper()
	l.stop.Store(true)
	l.running.Wait()
	t.Logf("%s: %d lookups by %d clients and %d that connect each time, %d reconnections, the longest lookup took %v, %d lost or wrong",
		what, l.answered.Load(), clients, oneShots, l.again.Load(), time.Duration(l.longest.Load()).Round(time.Millisecond), len(l.wrong))
	for i, w := range l.wrong {
		if i == 10 {
			break
		}
		t.Error(w)
	}
	if l.answered.Load() < clients {
		t.Errorf("only %d lookups", l.answered.Load())
	}
}

func (l *load) client(endpoint [2]string, questions []question, n int) {
	c := &keptConnection{endpoint: endpoint}
	defer c.close()
	for ; !l.stop.Load(); n++ {
		q := questions[n%len(questions)]
		began := time.Now()
		got, err := c.ask(q.key)
		if err != nil {
			c.close()
			l.again.Add(1)
			got, err = c.ask(q.key)
		}
		l.note(q, endpoint[1], got, err, time.Since(began))
		if err != nil {
			c.close()
		}
	}
}

// A keptConnection is a socketmap client with a persistent connection.
type keptConnection struct {
	endpoint [2]string
	nc       net.Conn
	r        *bufio.Reader
}

func (c *keptConnection) close() {
	if c.nc != nil {
		c.nc.Close()
		c.nc = nil
	}
}

// ask looks up a key in map postfix, on the present connection or a new one.
func (c *keptConnection) ask(key string) (string, error) {
	if c.nc == nil {
		nc, err := net.DialTimeout(c.endpoint[0], c.endpoint[1], patience)
		if err != nil {
			return "", err
		}
		c.nc, c.r = nc, bufio.NewReader(nc)
	}
	if err := c.nc.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	request := "postfix " + key
	if _, err := fmt.Fprintf(c.nc, "%d:%s,", len(request), request); err != nil {
		return "", err
	}
	return c.reply()
}

func (c *keptConnection) reply() (string, error) {
	size, err := c.r.ReadString(':')
	if err != nil {
		return "", err
	}
	var n int
	if _, err := fmt.Sscanf(size, "%d:", &n); err != nil || n < 0 || n > replyMost {
		return "", fmt.Errorf("the reply begins with %q", size)
	}
	body := make([]byte, n+1)
	if _, err := io.ReadFull(c.r, body); err != nil {
		return "", err
	}
	text, ok := strings.CutSuffix(string(body), ",")
	if !ok {
		return "", fmt.Errorf("the reply %q does not end with a comma", body)
	}
	return text, nil
}
