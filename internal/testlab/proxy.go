package testlab

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Limits of the proxy.
const (
	maxTargets     = 1000 // the last targets kept
	maxProxyHeader = 16 << 10
	proxyRequest   = 30 * time.Second // to receive the request
	proxyConnect   = 10 * time.Second
)

// A Proxy is an HTTP proxy that supports CONNECT (RFC 9110, 9.3.6) to the
// public addresses of the lab's hosts. It answers everything else with 403.
type Proxy struct {
	Addr string // address and port

	lab *Lab
	ln  net.Listener

	mu        sync.Mutex
	closed    bool
	conns     map[net.Conn]struct{}
	running   sync.WaitGroup
	targets   []string
	connected int
	refused   int
}

func startProxy(l *Lab, addr string) (*Proxy, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("starting the proxy: %w", err)
	}
	p := &Proxy{Addr: ln.Addr().String(), lab: l, ln: ln, conns: make(map[net.Conn]struct{})}
	p.running.Add(1)
	go p.serve()
	return p, nil
}

// URL returns the value for HTTPS_PROXY.
func (p *Proxy) URL() string { return "http://" + p.Addr }

// Connected returns the number of tunnels opened.
func (p *Proxy) Connected() int { return lockedGet(&p.mu, &p.connected) }

// Refused returns the number of requests refused.
func (p *Proxy) Refused() int { return lockedGet(&p.mu, &p.refused) }

// Targets returns the last 1,000 targets ("127.65.0.1:443") in order.
func (p *Proxy) Targets() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.targets)
}

func (p *Proxy) close() error {
	p.mu.Lock()
	p.closed = true
	p.ln.Close()
	for c := range p.conns {
		c.Close()
	}
	p.mu.Unlock()
	p.running.Wait()
	return nil
}

// enter registers a connection for close. It returns false once the proxy is
// closed.
func (p *Proxy) enter(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		c.Close()
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *Proxy) leave(c net.Conn) {
	c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

func (p *Proxy) serve() {
	defer p.running.Done()
	for {
		c, err := p.ln.Accept()
		if err != nil {
			if lockedGet(&p.mu, &p.closed) {
				return
			}
			continue
		}
		p.running.Add(1)
		go func() {
			defer p.running.Done()
			if p.enter(c) {
				defer p.leave(c)
				p.request(c)
			}
		}()
	}
}

func (p *Proxy) request(c net.Conn) {
	c.SetDeadline(time.Now().Add(proxyRequest))
	head := &io.LimitedReader{R: c, N: maxProxyHeader}
	in := bufio.NewReader(head)
	r, err := http.ReadRequest(in)
	if err != nil {
		p.refuse(c, http.StatusBadRequest, "")
		return
	}
	if r.Method != http.MethodConnect {
		p.refuse(c, http.StatusForbidden, r.Host)
		return
	}
	real, ok := p.lab.Real(r.Host)
	if !ok {
		p.refuse(c, http.StatusForbidden, r.Host)
		return
	}
	to, err := net.DialTimeout("tcp", real, proxyConnect)
	if err != nil {
		p.refuse(c, http.StatusBadGateway, r.Host)
		return
	}
	if !p.enter(to) {
		return
	}
	defer p.leave(to)
	p.note(r.Host, &p.connected)
	io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n")
	c.SetDeadline(time.Time{})
	early, _ := in.Peek(in.Buffered()) // data that came with the request
	if _, err := to.Write(early); err != nil {
		return
	}
	tunnel(c, to)
}

func (p *Proxy) refuse(c net.Conn, status int, target string) {
	p.note(target, &p.refused)
	fmt.Fprintf(c, "HTTP/1.1 %d %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", status, http.StatusText(status))
}

func (p *Proxy) note(target string, count *int) {
	p.mu.Lock()
	*count++
	p.targets = appendBounded(p.targets, target, maxTargets)
	p.mu.Unlock()
	p.lab.event()
}

// tunnel copies in both directions until both sides have ended. It passes on a
// half-close.
func tunnel(a, b net.Conn) {
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		both.Go(func() {
			from, to := way[0], way[1]
			if _, err := io.Copy(to, from); err != nil { // a reset, for example: close both
				from.Close()
				to.Close()
				return
			}
			to.(*net.TCPConn).CloseWrite()
		})
	}
	both.Wait()
}
