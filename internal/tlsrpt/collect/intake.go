package collect

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

const (
	readPause = time.Second // after an error

	maxConns = 32              // connections of Exim at once; others wait in the kernel
	lineTime = 5 * time.Second // for a line to come; Exim waits one second
)

// Datagrams takes datagrams from a socket that Listen or Passed returned, until the context
// ends, and closes the socket: what the kernel still holds waits where systemd keeps it open.
// queueLength is the kernel's, see QueueLength.
func (c *Collector) Datagrams(ctx context.Context, conn net.Conn, queueLength int) {
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	if n := queueLength; n > 0 && n < MinQueue {
		c.o.Log.Warn("the kernel drops TLS sessions of Postfix without telling when more than a few come at once",
			"net.unix.max_dgram_qlen", n, "next", fmt.Sprintf("set it to 512 before the socket is made; %d is the least", MinQueue))
	}
	buffer := make([]byte, MaxDatagram+1) // one more, to see that one is too long
	c.untilEnd(ctx, func() error {
		n, err := conn.Read(buffer)
		if err == nil {
			c.put(Postfix, bytes.Clone(buffer[:n]))
		}
		return err
	})
}

// Lines takes a line from each connection until the context ends, and closes the listener.
// A connection is closed before its line is parsed, since Exim waits for that, but after it
// is in the queue: so the lines of a process are parsed in their order.
func (c *Collector) Lines(ctx context.Context, l net.Listener) {
	context.AfterFunc(ctx, func() { _ = l.Close() })
	var open sync.WaitGroup
	places := make(chan struct{}, maxConns)
	c.untilEnd(ctx, func() error {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		places <- struct{}{}
		open.Go(func() {
			_ = conn.SetDeadline(time.Now().Add(lineTime))
			line, err := bufio.NewReaderSize(conn, MaxLine+1).ReadSlice('\n')
			if err == nil || err == bufio.ErrBufferFull || err == io.EOF {
				c.put(Exim, bytes.Clone(line))
			} else {
				c.drops.Add(DropMalformed, 1)
			}
			_ = conn.Close()
			<-places
		})
		return nil
	})
	open.Wait()
}

// untilEnd calls receive until the context ends, and pauses after an error.
func (c *Collector) untilEnd(ctx context.Context, receive func() error) {
	for failing := false; ctx.Err() == nil; {
		err := receive()
		if err == nil || ctx.Err() != nil {
			failing = false
			continue
		}
		if !failing {
			c.o.Log.Error("TLS sessions cannot be received", "err", err, "next", "it is tried again each second")
		}
		failing = true
		select {
		case <-ctx.Done():
		case <-time.After(readPause):
		}
	}
}
