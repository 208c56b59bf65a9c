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

// loadTimeout ends a load whose server does not answer.
const loadTimeout = 5 * time.Minute

// A load is a number of clients that ask as Postfix does: each on a connection
// that it keeps, one request at a time.
type load struct {
	clients []*client

	// asleep has each client be a thread of its own that sleeps in the kernel
	// until the reply is there, as an smtp(8) process does. Else the runtime's
	// poller waits for all of them. Its thread sleeps only when none of them has
	// anything to read, so that how often a reply has to wake it up, which the
	// kernel bills to who writes, depends on how far behind the server is. What
	// takes a server a millisecond can bear that.
	asleep bool

	rate float64 // requests a second of all clients; 0: as fast as they are answered
}

type client struct {
	conn    io.ReadWriteCloser
	r       *bufio.Reader
	request []byte // reused
}

// A blockingConn is a socket whose reads and writes keep their thread.
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

// dialBlocking connects to the server at address.
func dialBlocking(address string) (c blockingConn, err error) {
	nc, err := net.Dial("tcp", address)
	if err != nil {
		return c, err
	}
	defer nc.Close()
	if c.file, err = nc.(*net.TCPConn).File(); err != nil {
		return c, err
	}
	// Fd makes it a blocking one, so that its time-outs are the kernel's.
	limit := unix.NsecToTimeval(loadTimeout.Nanoseconds())
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(int(c.file.Fd()), unix.SOL_SOCKET, option, &limit); err != nil {
			return c, errors.Join(err, c.file.Close())
		}
	}
	return c, nil
}

// newLoad connects n clients to the server at address. The connections are
// closed when the row ends.
func (b *bench) newLoad(address string, n int) (*load, error) {
	return b.dialLoad(n, func() (io.ReadWriteCloser, error) {
		return net.Dial("tcp", address)
	})
}

// newSleepingLoad is newLoad for clients that are asleep while they wait.
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
// many goroutines at once, with the number of the client.
type requestFunc func(dst []byte, client, i int) []byte

// A replyFunc judges the reply to a request. It is called like a requestFunc.
type replyFunc func(body, reply []byte) error

// A pace is when a client asks: at random, independently of the others and of
// when it is answered, unless that takes longer than until the next one.
type pace struct {
	mean   time.Duration // between two requests; 0: none
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

// wait waits until the next request is due, in the kernel.
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

// ask has the clients ask n requests between them.
func (l *load) ask(ctx context.Context, n int, request requestFunc, check replyFunc) error {
	if l.asleep { // so many threads may be awake at once that none waits for its turn
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU() + len(l.clients)))
	}
	group, _ := errgroup.WithContext(ctx)
	for number, c := range l.clients {
		group.Go(func() error {
			if l.asleep {
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
			}
			if nc, ok := c.conn.(net.Conn); ok { // the others' limit is a socket option
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

// ask asks once. The reply is valid until the next one.
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

// readNetstring reads a netstring that fits the reader's buffer. It is valid
// until the next one.
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

// wantReply checks that every reply is this one.
func wantReply(want string) replyFunc {
	return func(_, got []byte) error {
		if !bytes.Equal(got, []byte(want)) {
			return fmt.Errorf("reply %q, want %q", got, want)
		}
		return nil
	}
}
