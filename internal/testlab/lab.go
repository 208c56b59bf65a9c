// Package testlab is a small internet in one process, for tests and for the
// demonstration: a DNS resolver, a certification authority, policy hosts
// (RFC 8461, 3.3), mail hosts with STARTTLS (RFC 3207) and a CONNECT proxy.
// All of it can be changed while it runs, can misbehave in the ways the real
// internet does, and counts what it is asked.
//
// Every host has an address of its own. Where the real ports can be bound (in
// a network namespace) the hosts listen on them; elsewhere they listen on
// ephemeral ports, and Lab.Dial and the proxy lead "ADDRESS:443" and
// "ADDRESS:25" there.
//
// Left out: DNSSEC signatures (only the AD bit that a validating resolver
// would set), HTTP/2, SMTP beyond what a relay needs to hand over a message.
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
)

// The ports under which the hosts are known, wherever they really listen.
const (
	httpsPort = 443
	smtpPort  = 25
)

// Options say where a lab listens. The zero value is loopback and ephemeral
// ports.
type Options struct {
	DNS        string       // address and port of the resolver; default 127.0.0.1:0
	Net        netip.Prefix // addresses for the hosts, handed out in order; default a /16 of 127.0.0.0/8 that differs from lab to lab
	PolicyPort uint16       // port of the policy hosts: 443 in a namespace, 0 for ephemeral ones
	MailPort   uint16       // port of the mail hosts: 25 in a namespace, 0 for ephemeral ones
	Proxy      string       // address and port of the CONNECT proxy; default 127.0.0.1:0
}

// A Lab is a running internet. Its methods may be called from any goroutine.
type Lab struct {
	DNS     *DNS
	CA      *CA // the one that the clients under test are to trust
	OtherCA *CA // one that they are not
	Proxy   *Proxy

	opts Options
	done chan struct{} // closed when the lab closes: whatever stalls, ends

	events struct {
		sync.Mutex
		waiters int
		next    chan struct{} // closed and replaced at each event, if anybody waits
	}

	mu      sync.Mutex
	closed  bool
	addr    netip.Addr        // the last address handed out
	routes  map[string]string // "ADDRESS:PORT" or "NAME:PORT" as the world has it -> where it really listens
	closers []func() error
}

// labs counts the labs of this process, so that each has addresses of its own.
var labs atomic.Uint32

// Start starts a lab: the resolver, with an empty unsigned root zone, the
// authorities and the proxy. Hosts are added later.
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

// Close stops every server of the lab and ends whatever stalls in it. It
// returns when all its goroutines have ended.
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

// atClose has f called when the lab closes, the last one first.
func (l *Lab) atClose(f func() error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closers = append(l.closers, f)
}

// NextAddr hands out an address that no other host of the lab has.
func (l *Lab) NextAddr() (netip.Addr, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.addr.Next()
	if !l.opts.Net.Contains(a) {
		return netip.Addr{}, fmt.Errorf("no address left in %s", l.opts.Net)
	}
	l.addr = a
	return a, nil
}

// addrOr returns addr parsed, or the next free address if it is empty.
func (l *Lab) addrOr(addr string) (netip.Addr, error) {
	if addr == "" {
		return l.NextAddr()
	}
	return netip.ParseAddr(addr)
}

// Route leads connections by Dial and the proxy for the host (an address or a
// name) and port to the address real. It gives a host of the lab an address
// that the machine does not have: a public one, or one of IPv6.
func (l *Lab) Route(host string, port uint16, real string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.routes[routeKey(host, strconv.Itoa(int(port)))] = real
}

// Unroute takes back what Route did.
func (l *Lab) Unroute(host string, port uint16) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.routes, routeKey(host, strconv.Itoa(int(port))))
}

func routeKey(host, port string) string {
	if a, err := netip.ParseAddr(host); err == nil {
		host = a.Unmap().String()
	}
	return net.JoinHostPort(strings.ToLower(strings.TrimSuffix(host, ".")), port)
}

// Real returns where the address and port addr ("127.65.0.1:443") of a host
// of the lab really listens. A host that is down still has its place.
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

// Dial connects to a host of the lab under the address and port that the
// world knows it by. It is for injection where net.Dialer.DialContext goes;
// addresses outside the lab are refused, so that no test leaves it.
func (l *Lab) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	real, ok := l.Real(addr)
	if !ok {
		return nil, &net.OpError{Op: "dial", Net: network, Err: fmt.Errorf("%s is not in the lab", addr)}
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", real)
}

// event tells those who wait in Await that something has happened.
func (l *Lab) event() {
	l.events.Lock()
	defer l.events.Unlock()
	if l.events.waiters == 0 {
		return
	}
	close(l.events.next)
	l.events.next = make(chan struct{})
}

// Await returns nil as soon as cond holds. It looks at the start and after
// each thing that happens in the lab: a question, a connection, a request, a
// message, a client at a gate. It gives up when ctx ends.
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
		case <-ctx.Done():
			return fmt.Errorf("waiting for something to happen in the lab: %w", context.Cause(ctx))
		case <-l.done:
			return errors.New("waiting for something to happen in the lab: it is closed")
		}
		l.events.Lock()
		next = l.events.next
		l.events.Unlock()
	}
	return nil
}

// A Gate holds back whoever comes to it until it is opened. It stands in for
// a slow server in tests that must not wait for time to pass.
type Gate struct {
	lab     *Lab
	open    chan struct{}
	once    sync.Once
	waiting atomic.Int64
}

// NewGate returns a closed gate.
func (l *Lab) NewGate() *Gate { return &Gate{lab: l, open: make(chan struct{})} }

// Open lets everybody through, those who wait and those who come later.
func (g *Gate) Open() { g.once.Do(func() { close(g.open) }) }

// Waiting returns how many wait at the gate.
func (g *Gate) Waiting() int { return int(g.waiting.Load()) }

// wait waits until the gate opens, and says false if the lab closes or gone
// is closed before. A nil gate is open.
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

// listen opens a TCP listener on addr; port 0 is an ephemeral one.
func listen(addr netip.Addr, port uint16) (net.Listener, error) {
	return net.Listen("tcp", netip.AddrPortFrom(addr, port).String())
}

// addressRecord returns the A or AAAA record of a host.
func addressRecord(name string, ttl uint32, a netip.Addr) string {
	t := "A"
	if a.Is6() {
		t = "AAAA"
	}
	return fmt.Sprintf("%s. %d IN %s %s", name, ttl, t, a)
}
