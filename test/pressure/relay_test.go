//go:build e2e

package pressure

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
)

const (
	answerWithin = 40 * time.Second      // longer than any lookup may take
	connectAgain = 20 * time.Millisecond // where a backlog is full
)

// A relay asks as Postfix's smtp(8) does: on one connection, one lookup at a
// time, and once more on a new connection when the daemon has closed the old one.
type relay struct {
	at   endpoint.Endpoint
	conn net.Conn
	r    *bufio.Reader
}

// ask returns a reply. again says that the first attempt failed.
func (c *relay) ask(ctx context.Context, mapName, key string) (reply string, again bool, err error) {
	for range 2 {
		if reply, err = c.exchange(ctx, mapName+" "+key); err == nil {
			return reply, again, nil
		}
		c.close()
		again = true
	}
	return "", again, err
}

func (c *relay) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

func (c *relay) exchange(ctx context.Context, request string) (string, error) {
	if c.conn == nil {
		var err error
		if c.conn, err = dial(ctx, c.at); err != nil {
			return "", err
		}
		c.r = bufio.NewReader(c.conn)
	}
	conn := c.conn
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := io.WriteString(conn, netstring(request)); err != nil {
		return "", err
	}
	length, err := c.r.ReadString(':')
	if err != nil {
		return "", err
	}
	n, err := strconv.Atoi(strings.TrimSuffix(length, ":"))
	if err != nil {
		return "", err
	}
	body := make([]byte, n+1)
	_, err = io.ReadFull(c.r, body)
	return string(body[:n]), err
}

func netstring(s string) string { return fmt.Sprintf("%d:%s,", len(s), s) }

func dial(ctx context.Context, at endpoint.Endpoint) (net.Conn, error) { return dialWith(ctx, at, nil) }

// dialWith connects. A client of a unix socket with a full backlog waits, as
// connect(2) does where the socket blocks.
func dialWith(ctx context.Context, at endpoint.Endpoint, control func(_, _ string, raw syscall.RawConn) error) (net.Conn, error) {
	d := net.Dialer{Control: control}
	for {
		conn, err := d.DialContext(ctx, at.Network, at.Address)
		if !errors.Is(err, syscall.EAGAIN) {
			return conn, err
		}
		select {
		case <-time.After(connectAgain):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// A tally counts the replies to honest lookups of domains with an enforced policy.
type tally struct {
	mu                                   sync.Mutex
	ok, temp, notFound, noAnswer, asked2 int
	took                                 []time.Duration // of those that are OK
	odd                                  map[string]int  // other than OK, and errors
}

// ask has a relay ask, and counts the reply.
func (y *tally) ask(ctx context.Context, c *relay, mapName, key string) {
	begun := time.Now()
	within, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	reply, again, err := c.ask(within, mapName, key)
	took := time.Since(begun)
	if err != nil && ctx.Err() != nil { // the test ends
		return
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	if again {
		y.asked2++
	}
	if err == nil && strings.HasPrefix(reply, "OK ") {
		y.ok++
		y.took = append(y.took, took)
		return
	}
	switch word, _, _ := strings.Cut(reply, " "); {
	case err != nil:
		y.noAnswer++
		reply = err.Error()
		reply = reply[strings.LastIndex(reply, ": ")+1:] // without addresses
	case word == "TEMP":
		y.temp++
	default:
		y.notFound++
	}
	if y.odd == nil {
		y.odd = make(map[string]int)
	}
	if text := fmt.Sprintf("%.60s", reply); len(y.odd) < 20 || y.odd[text] > 0 {
		y.odd[text]++
	}
}

func (y *tally) String() string {
	y.mu.Lock()
	defer y.mu.Unlock()
	s := fmt.Sprintf("%d OK, %d TEMP, %d NOTFOUND, %d without an answer", y.ok, y.temp, y.notFound, y.noAnswer)
	if y.asked2 > 0 {
		s += fmt.Sprintf(" (%d asked again)", y.asked2)
	}
	if y.ok > 0 {
		slices.Sort(y.took)
		s += fmt.Sprintf(", OK within %s, median %s", round(y.took[y.ok-1]), round(y.took[y.ok/2]))
	}
	return s
}

// others lists what was not OK, the most frequent first.
func (y *tally) others() string {
	y.mu.Lock()
	defer y.mu.Unlock()
	var lines []string
	for text := range y.odd {
		lines = append(lines, text)
	}
	slices.SortFunc(lines, func(a, b string) int { return cmp.Compare(y.odd[b], y.odd[a]) })
	for i, text := range lines {
		lines[i] = fmt.Sprintf("%d times %q", y.odd[text], text)
	}
	return strings.Join(lines, "\n")
}

func round(d time.Duration) time.Duration {
	switch {
	case d > time.Second:
		return d.Round(100 * time.Millisecond)
	case d > time.Millisecond:
		return d.Round(time.Millisecond)
	}
	return d.Round(10 * time.Microsecond)
}
