package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// loadTimeout ends a load if the server does not answer.
const loadTimeout = 5 * time.Minute

// A load is a number of clients that ask as Postfix does: each on one
// connection, one request at a time.
type load struct {
	clients []*client

	// asleep gives each client its own thread, which sleeps in the kernel until
	// the reply arrives, as an smtp(8) process does. Without it the runtime's
	// poller waits for all clients, and the number of wake-ups, which the
	// kernel charges to the writer, depends on how far behind the server is.
	// That is negligible for servers that take a millisecond.
	asleep bool

	rate float64 // requests a second of all clients; 0: each client asks again at once
}

type client struct {
	conn    io.ReadWriteCloser
	r       *bufio.Reader
	request []byte // reused
}

// A blockingConn is a socket whose reads and writes block their thread.
type blockingConn struct{ file *os.File }

func (c blockingConn) Read(b []byte) (int, error) {
	n, err := ignoringEINTR(func() (int, error) { return unix.Read(int(c.file.Fd()), b) })
	if n == 0 && err == nil {
		return 0, io.EOF
	}
	return max(n, 0), err
}

func (c blockingConn) Close() error { return c.file.Close() }

func (c blockingConn) Write(b []byte) (int, error) {
	n, err := ignoringEINTR(func() (int, error) { return unix.Write(int(c.file.Fd()), b) })
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	return max(n, 0), err
}

func ignoringEINTR(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); err != unix.EINTR {
			return n, err
		}
	}
}

func dialBlocking(address string) (c blockingConn, err error) {
	nc, err := net.Dial("tcp", address)
	if err != nil {
		return c, err
	}
	defer nc.Close()
	if c.file, err = nc.(*net.TCPConn).File(); err != nil {
		return c, err
	}
	// Fd makes the socket blocking, so the kernel must enforce the timeouts.
	limit := unix.NsecToTimeval(loadTimeout.Nanoseconds())
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(int(c.file.Fd()), unix.SOL_SOCKET, option, &limit); err != nil {
			return c, errors.Join(err, c.file.Close())
		}
	}
	return c, nil
}

// newLoad connects n clients to the server at address. The end of the row
// closes the connections.
func (b *bench) newLoad(address string, n int) (*load, error) {
	return b.dialLoad(n, func() (io.ReadWriteCloser, error) {
		return net.Dial("tcp", address)
	})
}

// newSleepingLoad is newLoad with asleep set.
func (b *bench) newSleepingLoad(address string, n int) (*load, error) {
	l, err := b.dialLoad(n, func() (io.ReadWriteCloser, error) { return dialBlocking(address) })
	if err == nil {
		l.asleep = true
	}
	return l, err
}

func (b *bench) dialLoad(n int, dial func() (io.ReadWriteCloser, error)) (*load, error) {
	l := &load{}
	for range n {
		conn, err := dial()
		if err != nil {
			return nil, err
		}
		b.atEnd(func() { conn.Close() })
		l.clients = append(l.clients, &client{conn: conn, r: bufio.NewReader(conn)})
	}
	return l, nil
}

// A requestFunc appends the body of a client's i-th request. It is called from
// many goroutines at once.
type requestFunc func(dst []byte, client, i int) []byte

// A replyFunc checks the reply to a request. It is called from many goroutines
// at once.
type replyFunc func(body, reply []byte) error

// A pace determines when a client asks: at random times, independent of other
// clients and of replies, unless a reply is late.
type pace struct {
	mean   time.Duration // between two requests; 0: no pause
	next   time.Time
	random *rand.Rand
}

func (l *load) pace(client int) *pace {
	p := &pace{next: time.Now(), random: rand.New(rand.NewPCG(2, uint64(client)))}
	if l.rate > 0 {
		p.mean = time.Duration(float64(len(l.clients)) / l.rate * float64(time.Second))
	}
	return p
}

// wait sleeps in the kernel until the next request is due.
func (p *pace) wait() error {
	if p.mean == 0 {
		return nil
	}
	p.next = p.next.Add(time.Duration(p.random.ExpFloat64() * float64(p.mean)))
	for left := time.Until(p.next); left > 0; left = time.Until(p.next) {
		ts := unix.NsecToTimespec(left.Nanoseconds())
		if err := unix.Nanosleep(&ts, nil); err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for the next request: %w", err)
		}
	}
	return nil
}

// ask sends n requests, divided among the clients.
func (l *load) ask(ctx context.Context, n int, request requestFunc, check replyFunc) error {
	if l.asleep { // a thread for each client, so that none waits for another
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU() + len(l.clients)))
	}
	group, _ := errgroup.WithContext(ctx)
	for number, c := range l.clients {
		group.Go(func() error {
			if l.asleep {
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
			}
			if nc, ok := c.conn.(net.Conn); ok { // blockingConns have a socket option for it
				if err := nc.SetDeadline(time.Now().Add(loadTimeout)); err != nil {
					return err
				}
			}
			var body []byte
			pace := l.pace(number)
			for i := range n / len(l.clients) {
				body = request(body[:0], number, i)
				if err := pace.wait(); err != nil {
					return err
				}
				reply, err := c.ask(body)
				if err != nil {
					return fmt.Errorf("request %d of client %d: %w", i, number, err)
				}
				if err := check(body, reply); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// ask sends one request. The reply is valid until the next call.
func (c *client) ask(body []byte) ([]byte, error) {
	c.request = strconv.AppendInt(c.request[:0], int64(len(body)), 10)
	c.request = append(c.request, ':')
	c.request = append(c.request, body...)
	c.request = append(c.request, ',')
	if _, err := c.conn.Write(c.request); err != nil {
		return nil, err
	}
	return readNetstring(c.r)
}

// readNetstring reads a netstring that fits the reader's buffer. The result is
// valid until the next call.
func readNetstring(r *bufio.Reader) ([]byte, error) {
	header, err := r.ReadSlice(':')
	if err != nil {
		return nil, err
	}
	length, err := strconv.Atoi(string(header[:len(header)-1]))
	if err != nil {
		return nil, err
	}
	whole, err := r.Peek(length + 1)
	if err != nil {
		return nil, err
	}
	if whole[length] != ',' {
		return nil, io.ErrUnexpectedEOF
	}
	_, err = r.Discard(length + 1)
	return whole[:length], err
}

// wantReply checks that every reply equals want.
func wantReply(want string) replyFunc {
	return func(_, got []byte) error {
		if !bytes.Equal(got, []byte(want)) {
			return fmt.Errorf("reply %q, want %q", got, want)
		}
		return nil
	}
}
