// Package testlab is a small internet in one process, for tests and the
// demonstration: a DNS resolver, certification authorities, policy hosts (RFC
// 8461, 3.3), mail hosts with STARTTLS (RFC 3207) and a CONNECT proxy. Tests
// can change all of it while it runs, make it misbehave as the real internet
// does, and count its requests.
//
// Every host has its own address. Inside a network namespace the hosts listen
// on the real ports; elsewhere they listen on ephemeral ports, to which
// Lab.Dial and the proxy redirect "ADDRESS:443" and "ADDRESS:25".
//
// Left out: DNSSEC signatures (only the AD bit of a validating resolver),
// HTTP/2, and SMTP beyond what a relay needs to deliver a message.
package testlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The public ports of the hosts, wherever they really listen.
const (
	httpsPort = 443
	smtpPort  = 25
)

// Options say where a lab listens. The zero value means loopback and ephemeral
// ports.
type Options struct {
	DNS        string       // address and port of the resolver; default 127.0.0.1:0
	Net        netip.Prefix // addresses for the hosts, assigned in order; default a different /16 of 127.0.0.0/8 for each lab
	PolicyPort uint16       // port of the policy hosts: 443 in a namespace, 0 for ephemeral ones
	MailPort   uint16       // port of the mail hosts: 25 in a namespace, 0 for ephemeral ones
	Proxy      string       // address and port of the CONNECT proxy; default 127.0.0.1:0
}

// A Lab is a running internet. Its methods are safe for concurrent use.
type Lab struct {
	DNS     *DNS
	CA      *CA // the clients under test should trust it
	OtherCA *CA // the clients under test should not trust it
	Proxy   *Proxy

	opts Options
	done chan struct{} // closed when the lab closes; ends all stalls

	events struct {
		sync.Mutex
		waiters int
		next    chan struct{} // closed and replaced at each event while a goroutine waits
	}

	mu      sync.Mutex
	closed  bool
	addr    netip.Addr        // the last address assigned
	routes  map[string]string // public "ADDRESS:PORT" or "NAME:PORT" -> real listener
	closers []func() error
}

// labs counts the labs of this process, so that each gets its own addresses.
var labs atomic.Uint32

// Start starts a lab: the resolver with an empty unsigned root zone, the
// authorities and the proxy. Tests add hosts later.
func Start(o Options) (*Lab, error) {
	if o.DNS == "" {
		o.DNS = "127.0.0.1:0"
	}
	if o.Proxy == "" {
		o.Proxy = "127.0.0.1:0"
	}
	if !o.Net.IsValid() {
		o.Net = netip.PrefixFrom(netip.AddrFrom4([4]byte{127, byte(64 + labs.Add(1)%128), 0, 0}), 16)
	}
	l := &Lab{
		opts:   o,
		done:   make(chan struct{}),
		addr:   o.Net.Masked().Addr(),
		routes: make(map[string]string),
	}
	l.events.next = make(chan struct{})
	if err := l.start(); err != nil {
		l.Close()
		return nil, fmt.Errorf("starting the lab: %w", err)
	}
	return l, nil
}

func (l *Lab) start() (err error) {
	if l.CA, err = NewCA("Lab Root"); err != nil {
		return err
	}
	if l.OtherCA, err = NewCA("Untrusted Root"); err != nil {
		return err
	}
	if l.DNS, err = startDNS(l, l.opts.DNS); err != nil {
		return err
	}
	l.atClose(l.DNS.close)
	if l.Proxy, err = startProxy(l, l.opts.Proxy); err != nil {
		return err
	}
	l.atClose(l.Proxy.close)
	return nil
}

// Close stops every server of the lab and ends all stalls. It returns when all
// goroutines have ended.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	closers := l.closers
	l.mu.Unlock()
	close(l.done)
	var errs []error
	for i := len(closers) - 1; i >= 0; i-- {
		errs = append(errs, closers[i]())
	}
	return errors.Join(errs...)
}

// atClose registers f to run when the lab closes, the last one first.
func (l *Lab) atClose(f func() error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closers = append(l.closers, f)
}

// NextAddr returns an unused address.
func (l *Lab) NextAddr() (netip.Addr, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.addr.Next()
	if !l.opts.Net.Contains(a) {
		return netip.Addr{}, fmt.Errorf("no unused address left in %s", l.opts.Net)
	}
	l.addr = a
	return a, nil
}

// addrOr parses addr, or returns an unused address if addr is empty.
func (l *Lab) addrOr(addr string) (netip.Addr, error) {
	if addr == "" {
		return l.NextAddr()
	}
	return netip.ParseAddr(addr)
}

// Route redirects connections to host (an address or a name) and port to the
// address real, in Dial and the proxy. It gives a host of the lab an address
// that the machine does not have, such as a public one.
func (l *Lab) Route(host string, port uint16, real string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.routes[routeKey(host, strconv.Itoa(int(port)))] = real
}

func routeKey(host, port string) string {
	if a, err := netip.ParseAddr(host); err == nil {
		host = a.Unmap().String()
	}
	return net.JoinHostPort(strings.ToLower(strings.TrimSuffix(host, ".")), port)
}

// Real returns where the host with the public address addr ("127.65.0.1:443")
// really listens. A host that is down keeps its route.
func (l *Lab) Real(addr string) (string, bool) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	real, ok := l.routes[routeKey(host, port)]
	return real, ok
}

// Dial connects to a host of the lab by its public address, in place of
// net.Dialer.DialContext. It refuses addresses outside the lab.
func (l *Lab) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	real, ok := l.Real(addr)
	if !ok {
		return nil, &net.OpError{Op: "dial", Net: network, Err: fmt.Errorf("%s is not in the lab", addr)}
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", real)
}

// event wakes the goroutines in Await.
func (l *Lab) event() {
	l.events.Lock()
	defer l.events.Unlock()
	if l.events.waiters == 0 {
		return
	}
	close(l.events.next)
	l.events.next = make(chan struct{})
}

// Await returns nil as soon as cond holds. It evaluates cond at the start and
// after each event: a DNS question, a connection, a request, a message, a
// client at a gate; now and then too, for what holds only after the last event. It gives
// up when ctx ends.
func (l *Lab) Await(ctx context.Context, cond func() bool) error {
	l.events.Lock()
	l.events.waiters++
	next := l.events.next
	l.events.Unlock()
	defer func() {
		l.events.Lock()
		l.events.waiters--
		l.events.Unlock()
	}()
	for !cond() {
		select {
		case <-next:
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("waiting for an event in the lab: %w", context.Cause(ctx))
		case <-l.done:
			return errors.New("waiting for an event in the lab: the lab is closed")
		}
		l.events.Lock()
		next = l.events.next
		l.events.Unlock()
	}
	return nil
}

// A Gate blocks clients until it is opened. It replaces a slow server in tests
// that must not wait for real time.
type Gate struct {
	lab     *Lab
	open    chan struct{}
	once    sync.Once
	waiting atomic.Int64
}

// NewGate returns a closed gate.
func (l *Lab) NewGate() *Gate { return &Gate{lab: l, open: make(chan struct{})} }

// Open releases the waiting clients and all later ones.
func (g *Gate) Open() { g.once.Do(func() { close(g.open) }) }

// Waiting returns how many clients wait at the gate.
func (g *Gate) Waiting() int { return int(g.waiting.Load()) }

// wait waits for the gate to open. It returns false if the lab closes or gone
// is closed first. A nil gate is open.
func (g *Gate) wait(gone <-chan struct{}) bool {
	if g == nil {
		return true
	}
	g.waiting.Add(1)
	defer g.waiting.Add(-1)
	g.lab.event()
	select {
	case <-g.open:
		return true
	case <-gone:
		return false
	case <-g.lab.done:
		return false
	}
}

func listen(addr netip.Addr, port uint16) (net.Listener, error) {
	return net.Listen("tcp", netip.AddrPortFrom(addr, port).String())
}

func addressRecord(name string, ttl uint32, a netip.Addr) string {
	t := "A"
	if a.Is6() {
		t = "AAAA"
	}
	return fmt.Sprintf("%s. %d IN %s %s", name, ttl, t, a)
}
