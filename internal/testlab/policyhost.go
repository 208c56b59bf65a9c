package testlab

import (
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// WellKnown is the path of a policy (RFC 8461, 3.3).
const WellKnown = "/.well-known/mta-sts.txt"

// Limits of a policy server.
const (
	maxRequests      = 1000 // the last requests kept for each host
	listenAgainTries = 50   // attempts to get the old port back after Down
	listenAgainPause = 20 * time.Millisecond
	policyIdle       = 2 * time.Minute // of a connection between requests
)

// A PolicyServer serves policy hosts over HTTPS at one address. SNI selects the
// host.
type PolicyServer struct {
	Addr netip.Addr // its public address
	Real string     // real address and port

	lab *Lab

	mu          sync.Mutex
	hosts       map[string]*PolicyHost
	fallback    func(name string) *PolicyHost
	server      *http.Server  // nil while down
	served      chan struct{} // closed when server no longer accepts
	down        chan struct{} // closed by Down
	connections int

	open sync.WaitGroup // connections, including hijacked ones
}

// PolicyServer starts a policy server without hosts, at an unused address if
// addr is empty.
func (l *Lab) PolicyServer(addr string) (*PolicyServer, error) {
	a, err := l.addrOr(addr)
	if err != nil {
		return nil, fmt.Errorf("starting a policy server: %w", err)
	}
	ln, err := listen(a, l.opts.PolicyPort)
	if err != nil {
		return nil, fmt.Errorf("starting a policy server: %w", err)
	}
	s := &PolicyServer{Addr: a, Real: ln.Addr().String(), lab: l, hosts: make(map[string]*PolicyHost)}
	s.serve(ln)
	l.Route(a.String(), httpsPort, s.Real)
	l.atClose(s.Down)
	return s, nil
}

// Host adds a policy host ("mta-sts.example.test"). It has a good certificate
// and answers 404.
func (s *PolicyServer) Host(name string) (*PolicyHost, error) {
	h := s.NewHost(name)
	if err := h.Present(CertGood); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.hosts[h.Name] = h
	s.mu.Unlock()
	s.lab.Route(h.Name, httpsPort, s.Real)
	return h, nil
}

// NewHost returns a host for Fallback: without a certificate and not served
// yet.
func (s *PolicyServer) NewHost(name string) *PolicyHost {
	return &PolicyHost{Name: strings.ToLower(name), Server: s}
}

// Fallback sets a function that returns the host for an unknown name, for
// worlds too large to set up. f must be safe for concurrent use.
func (s *PolicyServer) Fallback(f func(name string) *PolicyHost) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fallback = f
}

// AlsoAt routes one more public address to the server, which the machine need
// not have. The DNS does not change.
func (s *PolicyServer) AlsoAt(addr string) { s.lab.Route(addr, httpsPort, s.Real) }

// Connections returns the number of connections accepted.
func (s *PolicyServer) Connections() int { return lockedGet(&s.mu, &s.connections) }

// Down closes the listener and all connections.
func (s *PolicyServer) Down() error {
	s.mu.Lock()
	server, served := s.server, s.served
	if server == nil {
		s.mu.Unlock()
		return nil
	}
	s.server = nil
	close(s.down)
	s.mu.Unlock()
	err := server.Close()
	<-served
	s.open.Wait()
	return err
}

// Up listens again at the address before Down.
func (s *PolicyServer) Up() error {
	s.mu.Lock()
	up := s.server != nil
	s.mu.Unlock()
	if up {
		return nil
	}
	ln, err := s.lab.listenAgain(s.Real)
	if err != nil {
		return fmt.Errorf("starting the policy server at %s again: %w", s.Addr, err)
	}
	s.serve(ln)
	return nil
}

// listenAgain listens on an address that was in use a moment ago. Another
// socket may hold an ephemeral port for a while.
func (l *Lab) listenAgain(addr string) (ln net.Listener, err error) {
	for range listenAgainTries {
		if ln, err = net.Listen("tcp", addr); err == nil {
			return ln, nil
		}
		select {
		case <-l.done:
			return nil, err
		case <-time.After(listenAgainPause):
		}
	}
	return nil, err
}

func (s *PolicyServer) serve(ln net.Listener) {
	server := &http.Server{
		Handler:        http.HandlerFunc(s.serveHTTP),
		TLSConfig:      &tls.Config{GetConfigForClient: s.hello, MinVersion: tls.VersionTLS10},
		ErrorLog:       log.New(io.Discard, "", 0), // failed handshakes are expected
		IdleTimeout:    policyIdle,
		MaxHeaderBytes: 1 << 16,
		TLSNextProto:   map[string]func(*http.Server, *tls.Conn, http.Handler){}, // no HTTP/2
	}
	server.ConnState = func(c net.Conn, state http.ConnState) { s.connection(server, c, state) }
	served := make(chan struct{})
	s.mu.Lock()
	s.server, s.served, s.down = server, served, make(chan struct{})
	s.mu.Unlock()
	go func() {
		defer close(served)
		server.ServeTLS(ln, "", "") // ends with Down
	}()
}

// connection tracks the connections of server.
func (s *PolicyServer) connection(server *http.Server, c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.open.Add(1)
		s.mu.Lock()
		s.connections++
		up := s.server == server
		s.mu.Unlock()
		if !up { // accepted just before Down, missed by Server.Close
			c.Close()
		}
		s.lab.event()
	case http.StateClosed, http.StateHijacked:
		s.open.Done()
	}
}

// whenDown closes c when the server goes down, until stop is called.
func (s *PolicyServer) whenDown(c io.Closer) (stop func()) {
	s.mu.Lock()
	down := s.down
	s.mu.Unlock()
	stopped := make(chan struct{})
	go func() {
		select {
		case <-down:
			c.Close()
		case <-stopped:
		}
	}()
	return func() { close(stopped) }
}

// host returns the host for an SNI.
func (s *PolicyServer) host(sni string) *PolicyHost {
	s.mu.Lock()
	h, fallback := s.hosts[strings.ToLower(sni)], s.fallback
	s.mu.Unlock()
	if h == nil && fallback != nil {
		h = fallback(strings.ToLower(sni))
	}
	return h
}

// hello handles a ClientHello.
func (s *PolicyServer) hello(info *tls.ClientHelloInfo) (*tls.Config, error) {
	h := s.host(info.ServerName)
	if h == nil {
		return nil, fmt.Errorf("no host %q here", info.ServerName) // the client gets an alert
	}
	return h.hello(info)
}

func (s *PolicyServer) serveHTTP(w http.ResponseWriter, r *http.Request) {
	h := s.host(r.TLS.ServerName)
	if h == nil {
		http.NotFound(w, r)
		return
	}
	h.serveHTTP(w, r)
}

// A PolicyRequest is a request that a policy host received.
type PolicyRequest struct {
	SNI        string
	TLSVersion uint16
	Method     string
	Host       string // the Host header
	Path       string
	Header     http.Header
	RemoteAddr string
}

// A PolicyHost is one name at a policy server, with its certificate, policy and
// fault.
type PolicyHost struct {
	Name   string
	Server *PolicyServer

	mu         sync.Mutex
	text       string
	served     bool // a policy exists
	fault      PolicyFault
	handler    http.Handler
	gate       *Gate
	cert       tls.Certificate
	config     *tls.Config // from cert and fault; nil after a change
	handshakes int
	asked      int
	sent       int64 // bytes of bodies
	log        []PolicyRequest
}

// SetPolicy sets the policy's text.
func (h *PolicyHost) SetPolicy(text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.text, h.served = text, true
}

// Behave sets the host's fault. PolicyFine ends it.
func (h *PolicyHost) Behave(f PolicyFault) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fault, h.config = f, nil
}

// Present replaces the host's certificate by a new one of the kind.
func (h *PolicyHost) Present(kind CertKind) error {
	c, err := h.Server.lab.Issue(kind, h.Name)
	if err != nil {
		return err
	}
	h.PresentCertificate(c)
	return nil
}

// PresentCertificate replaces the host's certificate.
func (h *PolicyHost) PresentCertificate(c tls.Certificate) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cert, h.config = c, nil
}

// Handle replaces the policy by a handler, used while the fault is PolicyFine.
// nil ends it.
func (h *PolicyHost) Handle(handler http.Handler) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.handler = handler
}

// Hold makes requests wait at a new gate.
func (h *PolicyHost) Hold() *Gate {
	g := h.Server.lab.NewGate()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gate = g
	return g
}

// Handshakes returns the number of ClientHellos for the host.
func (h *PolicyHost) Handshakes() int { return lockedGet(&h.mu, &h.handshakes) }

// Asked returns the number of HTTP requests.
func (h *PolicyHost) Asked() int { return lockedGet(&h.mu, &h.asked) }

// Sent returns the bytes sent of endless replies.
func (h *PolicyHost) Sent() int64 { return lockedGet(&h.mu, &h.sent) }

// Requests returns the last 1,000 requests in order.
func (h *PolicyHost) Requests() []PolicyRequest {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.log)
}

// Forget resets the counts and drops the recorded requests.
func (h *PolicyHost) Forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.handshakes, h.asked, h.sent, h.log = 0, 0, 0, nil
}

func lockedGet[V any](mu *sync.Mutex, v *V) V {
	mu.Lock()
	defer mu.Unlock()
	return *v
}

// note counts and records a request. It returns how to answer.
func (h *PolicyHost) note(r *http.Request) (f PolicyFault, handler http.Handler, gate *Gate) {
	h.mu.Lock()
	h.asked++
	h.log = appendBounded(h.log, PolicyRequest{
		SNI: r.TLS.ServerName, TLSVersion: r.TLS.Version, Method: r.Method, Host: r.Host,
		Path: r.URL.RequestURI(), Header: r.Header.Clone(), RemoteAddr: r.RemoteAddr,
	}, maxRequests)
	f, handler, gate = h.fault, h.handler, h.gate
	h.mu.Unlock()
	h.Server.lab.event()
	return f, handler, gate
}
