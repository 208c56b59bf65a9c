package testlab

import (
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// WellKnown is the path of a policy (RFC 8461, 3.3).
const WellKnown = "/.well-known/mta-sts.txt"

// Bounds of a policy server.
const (
	maxRequests      = 1000 // requests remembered for each host, the last ones
	listenAgainTries = 50   // to get the old port back after Down
	listenAgainPause = 20 * time.Millisecond
	policyIdle       = 2 * time.Minute // of a connection between requests
)

// A PolicyServer is an address at which policy hosts are served over HTTPS,
// told apart by SNI.
type PolicyServer struct {
	Addr netip.Addr // as the DNS has it
	Real string     // address and port where it really listens

	lab *Lab

	mu          sync.Mutex
	hosts       map[string]*PolicyHost
	fallback    func(name string) *PolicyHost
	server      *http.Server  // nil while it is down
	served      chan struct{} // closed when server no longer accepts
	down        chan struct{} // closed by Down
	connections int

	open sync.WaitGroup // connections and what was hijacked of them
}

// PolicyServer starts a policy server without hosts, at an address of its own
// if addr is empty.
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

// Host adds a policy host, "mta-sts.example.test", to the server. It has a
// good certificate and no policy: 404.
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

// NewHost makes a host that is not served yet and has no certificate, for
// Fallback.
func (s *PolicyServer) NewHost(name string) *PolicyHost {
	return &PolicyHost{Name: strings.ToLower(name), Server: s}
}

// Fallback has f find the host for a name that the server does not know: for
// worlds too large to be set up. f must be safe for concurrent use.
func (s *PolicyServer) Fallback(f func(name string) *PolicyHost) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fallback = f
}

// AlsoAt leads Dial and the proxy to the server from one more address, which
// need not be one of this machine: a public one, or one of IPv6. The DNS is
// not touched.
func (s *PolicyServer) AlsoAt(addr string) { s.lab.Route(addr, httpsPort, s.Real) }

// Connections returns how many connections the server has accepted.
func (s *PolicyServer) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.connections
}

// Down closes the listener and all connections: new ones are refused.
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

// Up listens again where the server listened before Down.
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

// listenAgain listens on an address that was in use a moment ago. An ephemeral
// port may be borrowed by a connection of somebody else for a while.
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
		ErrorLog:       log.New(io.Discard, "", 0), // clients that go away are what tests are about
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

// connection is called when a connection of server comes and goes.
func (s *PolicyServer) connection(server *http.Server, c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.open.Add(1)
		s.mu.Lock()
		s.connections++
		up := s.server == server
		s.mu.Unlock()
		if !up { // accepted just before Down, and not seen by Server.Close
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

// host returns the host that a client means by its SNI.
func (s *PolicyServer) host(sni string) *PolicyHost {
	s.mu.Lock()
	h, fallback := s.hosts[strings.ToLower(sni)], s.fallback
	s.mu.Unlock()
	if h == nil && fallback != nil {
		h = fallback(strings.ToLower(sni))
	}
	return h
}

// hello is called with each ClientHello.
func (s *PolicyServer) hello(info *tls.ClientHelloInfo) (*tls.Config, error) {
	h := s.host(info.ServerName)
	if h == nil {
		return nil, fmt.Errorf("no host %q here", info.ServerName) // an alert to the client
	}
	return h.hello(info)
}

// serveHTTP is called with each request.
func (s *PolicyServer) serveHTTP(w http.ResponseWriter, r *http.Request) {
	h := s.host(r.TLS.ServerName)
	if h == nil {
		http.NotFound(w, r)
		return
	}
	h.serveHTTP(w, r)
}

// A PolicyRequest is what a policy host was asked.
type PolicyRequest struct {
	SNI        string
	TLSVersion uint16
	Method     string
	Host       string // the Host header
	Path       string
	Header     http.Header
	RemoteAddr string
}

// A PolicyHost is one name at a policy server: its certificate, its policy
// and its way to misbehave.
type PolicyHost struct {
	Name   string
	Server *PolicyServer

	mu         sync.Mutex
	text       string
	served     bool // there is a policy
	fault      PolicyFault
	handler    http.Handler
	gate       *Gate
	cert       tls.Certificate
	config     *tls.Config // made of cert and fault; nil after a change
	handshakes int
	asked      int
	sent       int64 // bytes of bodies
	log        []PolicyRequest
}

// SetPolicy makes text the policy.
func (h *PolicyHost) SetPolicy(text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.text, h.served = text, true
}

// RemovePolicy takes the policy away: 404.
func (h *PolicyHost) RemovePolicy() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.text, h.served = "", false
}

// Behave sets the way in which the host misbehaves from now on. PolicyFine
// ends it.
func (h *PolicyHost) Behave(f PolicyFault) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fault, h.config = f, nil
}

// Present gives the host a new certificate of the kind.
func (h *PolicyHost) Present(kind CertKind) error {
	c, err := h.Server.lab.Issue(kind, h.Name)
	if err != nil {
		return err
	}
	h.PresentCertificate(c)
	return nil
}

// PresentCertificate gives the host that certificate.
func (h *PolicyHost) PresentCertificate(c tls.Certificate) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cert, h.config = c, nil
}

// Handle has handler answer the requests that reach a well-behaved host,
// instead of the policy. nil ends it.
func (h *PolicyHost) Handle(handler http.Handler) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.handler = handler
}

// Hold has requests wait at a new gate before they are answered. Open it and
// they go on, and so do all later ones.
func (h *PolicyHost) Hold() *Gate {
	g := h.Server.lab.NewGate()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gate = g
	return g
}

// Handshakes returns how many times a client began a handshake with the
// host's name as SNI.
func (h *PolicyHost) Handshakes() int { return lockedGet(&h.mu, &h.handshakes) }

// Asked returns how many HTTP requests the host got.
func (h *PolicyHost) Asked() int { return lockedGet(&h.mu, &h.asked) }

// Sent returns how many bytes of endless and dripping bodies went out.
func (h *PolicyHost) Sent() int64 { return lockedGet(&h.mu, &h.sent) }

// Requests returns the last requests, in order; 1,000 at most.
func (h *PolicyHost) Requests() []PolicyRequest {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]PolicyRequest(nil), h.log...)
}

// Forget sets the counts to zero and drops the requests remembered.
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

// note counts and remembers a request, and returns what is to be done.
func (h *PolicyHost) note(r *http.Request) (f PolicyFault, handler http.Handler, gate *Gate) {
	h.mu.Lock()
	h.asked++
	if len(h.log) == maxRequests {
		h.log = append(h.log[:0:0], h.log[1:]...)
	}
	h.log = append(h.log, PolicyRequest{
		SNI: r.TLS.ServerName, TLSVersion: r.TLS.Version, Method: r.Method, Host: r.Host,
		Path: r.URL.RequestURI(), Header: r.Header.Clone(), RemoteAddr: r.RemoteAddr,
	})
	f, handler, gate = h.fault, h.handler, h.gate
	h.mu.Unlock()
	h.Server.lab.event()
	return f, handler, gate
}
