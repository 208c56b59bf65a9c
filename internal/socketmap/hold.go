package socketmap

import (
	"sync"
	"time"
)

// A client that sends several requests without waiting gets their replies in
// one write, if they come at once. When one of the lookups takes its time, the
// replies before it must not wait for it: a timer writes them meanwhile. MTAs
// wait for each reply, so nothing here is touched for them.

// held are the finished replies while the handler works on the next one.
type held struct {
	timer *time.Timer

	mu      sync.Mutex // guards the rest, and the conn's write side while replies are held
	replies []byte     // nil: none are held, or they were written
	err     error      // of writing them
}

// hold lets the timer write c.out if release does not come soon.
func (c *conn) hold() {
	h := &c.held
	h.mu.Lock()
	h.replies = c.out
	h.mu.Unlock()
	if h.timer == nil {
		h.timer = time.AfterFunc(c.server.limits.hold, c.writeHeld)
	} else {
		h.timer.Reset(c.server.limits.hold)
	}
}

// release ends what hold began, and says whether the replies were written.
func (c *conn) release() (written bool, err error) {
	h := &c.held
	h.timer.Stop()
	h.mu.Lock()
	defer h.mu.Unlock()
	written, err = h.replies == nil, h.err
	h.replies = nil
	return written, err
}

// writeHeld runs in the timer's goroutine. It may come late, when the replies
// of a later hold are there: writing those too early does no harm.
func (c *conn) writeHeld() {
	h := &c.held
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.replies == nil {
		return
	}
	h.err = c.write(h.replies, c.server.now())
	h.replies = nil
}
