package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
)

// loadTimeout ends one run of a load that hangs.
const loadTimeout = 5 * time.Minute

// A load is a number of clients that ask as Postfix does: each on a connection
// that it keeps, one request at a time.
type load struct {
	clients []*client
}

type client struct {
	nc      net.Conn
	r       *bufio.Reader
	request []byte // reused
}

// newLoad connects n clients to the server at address. The connections are
// closed when the row ends.
func (b *bench) newLoad(address string, n int) (*load, error) {
	l := &load{}
	for range n {
		nc, err := net.Dial("tcp", address)
		if err != nil {
			return nil, err
		}
		b.atEnd(func() { nc.Close() })
		l.clients = append(l.clients, &client{nc: nc, r: bufio.NewReader(nc)})
	}
	return l, nil
}

// A requestFunc appends the body of a client's i-th request. It is called from
// many goroutines at once, with the number of the client.
type requestFunc func(dst []byte, client, i int) []byte

// A replyFunc judges the reply to a request. It is called like a requestFunc.
type replyFunc func(body, reply []byte) error

// ask has the clients ask n requests between them.
func (l *load) ask(ctx context.Context, n int, request requestFunc, check replyFunc) error {
	group, _ := errgroup.WithContext(ctx)
	for number, c := range l.clients {
		group.Go(func() error {
			if err := c.nc.SetDeadline(time.Now().Add(loadTimeout)); err != nil {
				return err
			}
			var body []byte
			for i := range n / len(l.clients) {
				body = request(body[:0], number, i)
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
	if _, err := c.nc.Write(c.request); err != nil {
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
