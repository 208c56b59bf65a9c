package control

import (
	"errors"
	"net"
	"sync"
)

// places are so many for everybody, and some more that only root and the
// daemon's own user get: whoever may read must not be able to keep those out
// who have to put something right.
type places struct{ all, own chan struct{} }

func newPlaces(all, own int) places {
	return places{all: make(chan struct{}, all), own: make(chan struct{}, own)}
}

// take takes a place without waiting, and returns what gives it back.
func (p *places) take(isOwn bool) (leave func(), ok bool) {
	select {
	case p.all <- struct{}{}:
		return func() { <-p.all }, true
	default:
	}
	if isOwn {
		select {
		case p.own <- struct{}{}:
			return func() { <-p.own }, true
		default:
		}
	}
	return nil, false
}

// wait takes a place, and waits for one until done. leave is nil then.
func (p *places) wait(isOwn bool, done <-chan struct{}) (leave func()) {
	own := p.own
	if !isOwn {
		own = nil // nothing can be sent to it
	}
	select {
	case p.all <- struct{}{}:
		return func() { <-p.all }
	case own <- struct{}{}:
		return func() { <-p.own }
	case <-done:
		return nil
	}
}

// limited accepts so many connections at once and keeps their type, which
// netutil.LimitListener hides: the credentials are asked from it. It accepts
// more than it hands over, since who connects shows only then.
type limited struct {
	net.Listener
	isOwn   func(net.Conn) bool
	places  places
	waiting chan struct{}
	ready   chan accepted
	done    chan struct{}
	once    sync.Once
}

// accepted is what came of an accept.
type accepted struct {
	conn net.Conn
	err  error
}

type limitedConn struct {
	*net.UnixConn
	release func()
}

func newLimited(l net.Listener, isOwn func(net.Conn) bool) *limited {
	limited := &limited{
		Listener: l, isOwn: isOwn, places: newPlaces(MaxConnections, ownConnections),
		waiting: make(chan struct{}, maxWaiting), ready: make(chan accepted), done: make(chan struct{}),
	}
	go limited.accept()
	return limited
}

// accept accepts until the listener is closed.
func (l *limited) accept() {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			if !l.hand(accepted{err: err}) || errors.Is(err, net.ErrClosed) {
				return
			}
			continue // the server pauses before it takes the next
		}
		uc, ok := c.(*net.UnixConn)
		switch {
		case !ok:
			c.Close() // without credentials there is nothing to go by
		case l.isOwn(uc):
			l.admit(uc, true)
		default:
			select {
			case l.waiting <- struct{}{}:
				go func() {
					defer func() { <-l.waiting }()
					l.admit(uc, false)
				}()
			default:
				uc.Close()
			}
		}
	}
}

// admit hands a connection over as soon as there is a place for it.
func (l *limited) admit(c *net.UnixConn, isOwn bool) {
	leave := l.places.wait(isOwn, l.done)
	if leave == nil {
		c.Close()
		return
	}
	held := &limitedConn{UnixConn: c, release: sync.OnceFunc(leave)}
	if !l.hand(accepted{conn: held}) {
		held.Close()
	}
}

func (l *limited) hand(a accepted) bool {
	select {
	case l.ready <- a:
		return true
	case <-l.done:
		return false
	}
}

func (l *limited) Accept() (net.Conn, error) {
	select {
	case a := <-l.ready:
		return a.conn, a.err
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *limited) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.Listener.Close()
}

func (c *limitedConn) Close() error {
	defer c.release()
	return c.UnixConn.Close()
}
