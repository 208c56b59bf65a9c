package testlab

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// A MailFault is a way in which a mail host misbehaves. Certificates that are
// wrong are a matter of Present; a listener that is closed, of Down.
type MailFault uint8

// The ways.
const (
	MailFine        MailFault = iota
	NoSTARTTLS                // STARTTLS is not offered, and unknown
	STARTTLSRefused           // 454 to STARTTLS
	STARTTLSGarbage           // 220 to STARTTLS, and then no TLS
	STARTTLSHangUp            // 220 to STARTTLS, and then the end
	STARTTLSStall             // 220 to STARTTLS, and then nothing
	MailOldTLS                // TLS 1.1 at most
	GreetingStall             // no greeting
	GreetingRefused           // 421 as the greeting
	MailDeferred              // 451 to MAIL
	RcptRejected              // 550 to RCPT
)

// Bounds of a mail host.
const (
	maxMessages   = 1000    // remembered of each host, the last ones
	maxSessions   = 1000    // the same
	maxMessage    = 1 << 20 // bytes
	maxRcpt       = 100     // of a message
	maxSMTPLine   = 4096    // bytes
	smtpIdle      = 5 * time.Minute
	handshakeTime = time.Minute
)

// A Message is one that a mail host has accepted.
type Message struct {
	Helo       string
	From       string // without the angle brackets
	To         []string
	TLS        bool
	SNI        string // empty: none was sent
	TLSVersion uint16
	Data       []byte // as sent, dots unstuffed, CRLF
}

// A Session is one connection to a mail host.
type Session struct {
	Helo       string
	STARTTLS   bool // the client asked for TLS
	TLS        bool // and the handshake was completed on our side
	SNI        string
	TLSVersion uint16
	Rcpt       []string // what came with RCPT, whatever the answer; 100 at most
	Err        string   // why the session ended, if not by QUIT
	Messages   int      // accepted in it
}

// A MailHost is an SMTP server under one name.
type MailHost struct {
	Name string
	Addr netip.Addr // the first one
	Real string     // address and port where it really listens at Addr

	lab *Lab

	mu        sync.Mutex
	helo      string // as it calls itself
	fault     MailFault
	cert      tls.Certificate
	gate      *Gate
	places    []string // address and port of all listeners
	listeners []net.Listener
	conns     map[net.Conn]struct{}
	down      bool
	gone      chan struct{} // closed by Down
	running   sync.WaitGroup
	messages  []Message
	sessions  []Session
	accepted  int            // connections
	asked     map[string]int // commands, by their verb in capitals
}

// MailHost starts a mail host with STARTTLS and a good certificate, at an
// address of its own if addr is empty, and gives its name that address in the
// DNS.
func (l *Lab) MailHost(name, addr string) (*MailHost, error) {
	m := &MailHost{Name: strings.ToLower(name), helo: strings.ToLower(name), lab: l,
		conns: make(map[net.Conn]struct{}), gone: make(chan struct{}), asked: make(map[string]int)}
	if err := m.Present(CertGood); err != nil {
		return nil, fmt.Errorf("starting the mail host %s: %w", name, err)
	}
	a, err := m.AlsoAt(addr)
	if err != nil {
		return nil, err
	}
	m.Addr, m.Real = a, m.places[0]
	l.atClose(m.Down)
	return m, nil
}

// AlsoAt has the host listen at one more address, a free one if addr is
// empty, and adds it to the DNS.
func (m *MailHost) AlsoAt(addr string) (netip.Addr, error) {
	a, err := m.lab.addrOr(addr)
	if err != nil {
		return a, fmt.Errorf("starting the mail host %s: %w", m.Name, err)
	}
	ln, err := listen(a, m.lab.opts.MailPort)
	if err != nil {
		return a, fmt.Errorf("starting the mail host %s: %w", m.Name, err)
	}
	if err := m.lab.DNS.Add(addressRecord(m.Name, defaultTTL, a)); err != nil {
		ln.Close()
		return a, fmt.Errorf("starting the mail host %s: %w", m.Name, err)
	}
	m.lab.Route(a.String(), smtpPort, ln.Addr().String())
	m.mu.Lock()
	m.places = append(m.places, ln.Addr().String())
	m.serve(ln)
	m.mu.Unlock()
	return a, nil
}

// serve accepts connections of ln; m.mu is held.
func (m *MailHost) serve(ln net.Listener) {
	m.listeners = append(m.listeners, ln)
	m.running.Add(1)
	go func() {
		defer m.running.Done()
		for {
			c, err := ln.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil && m.enter(c) {
				go m.session(c)
			}
		}
	}()
}

// enter notes a connection; false if the host has just gone down.
func (m *MailHost) enter(c net.Conn) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down {
		c.Close()
		return false
	}
	m.accepted++
	m.conns[c] = struct{}{}
	m.running.Add(1)
	return true
}

// leave forgets a connection and remembers what happened on it.
func (m *MailHost) leave(c net.Conn, s Session) {
	c.Close()
	m.mu.Lock()
	delete(m.conns, c)
	m.sessions = appendBounded(m.sessions, s, maxSessions)
	m.mu.Unlock()
	m.running.Done()
	m.lab.event()
}

// appendBounded appends v and drops the first one when there are more than n.
func appendBounded[E any](s []E, v E, n int) []E {
	if len(s) >= n {
		s = slices.Delete(s, 0, len(s)-n+1)
	}
	return append(s, v)
}

// Down closes the listeners and all connections: new ones are refused.
func (m *MailHost) Down() error {
	m.mu.Lock()
	if !m.down {
		m.down = true
		close(m.gone)
	}
	for _, ln := range m.listeners {
		ln.Close()
	}
	m.listeners = nil
	for c := range m.conns {
		c.Close()
	}
	m.mu.Unlock()
	m.running.Wait()
	return nil
}

// Up listens again where the host listened before Down.
func (m *MailHost) Up() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.down {
		return nil
	}
	m.down, m.gone = false, make(chan struct{})
	for _, place := range m.places {
		ln, err := m.lab.listenAgain(place)
		if err != nil {
			return fmt.Errorf("starting the mail host %s again: %w", m.Name, err)
		}
		m.serve(ln)
	}
	return nil
}

// Behave sets the way in which the host misbehaves from now on. MailFine ends
// it.
func (m *MailHost) Behave(f MailFault) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = f
}

// Greet sets the name by which the host calls itself in its greeting and its
// answer to EHLO.
func (m *MailHost) Greet(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.helo = name
}

// Hold has new sessions wait at a gate before the greeting.
func (m *MailHost) Hold() *Gate {
	g := m.lab.NewGate()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gate = g
	return g
}

// Present gives the host a new certificate of the kind, for its own name.
func (m *MailHost) Present(kind CertKind) error { return m.PresentFor(kind, m.Name) }

// PresentFor gives the host a new certificate of the kind for the names.
func (m *MailHost) PresentFor(kind CertKind, names ...string) error {
	c, err := m.lab.Issue(kind, names...)
	if err != nil {
		return err
	}
	m.PresentCertificate(c)
	return nil
}

// PresentCertificate gives the host that certificate.
func (m *MailHost) PresentCertificate(c tls.Certificate) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cert = c
}

// TLSA returns the TLSA record for port 25 that names the certificate that
// the host has now.
func (m *MailHost) TLSA(usage, selector, matching int) (string, error) {
	return TLSA(lockedGet(&m.mu, &m.cert), m.Name, smtpPort, usage, selector, matching)
}

// Messages returns the last messages accepted, in order; 1,000 at most.
func (m *MailHost) Messages() []Message {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.messages)
}

// Sessions returns the last sessions that have ended; 1,000 at most.
func (m *MailHost) Sessions() []Session {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.sessions)
}

// Connections returns how many connections the host has accepted.
func (m *MailHost) Connections() int { return lockedGet(&m.mu, &m.accepted) }

// Asked returns how many times the host got a command: "STARTTLS".
func (m *MailHost) Asked(verb string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.asked[verb]
}

// note counts a command. What it does not know it does not count: those who
// send such things may send many.
func (m *MailHost) note(verb string) {
	if !slices.Contains(smtpVerbs, verb) {
		return
	}
	m.mu.Lock()
	m.asked[verb]++
	m.mu.Unlock()
	m.lab.event()
}

// Forget drops the messages and sessions remembered and sets the counts of
// connections and commands to zero.
func (m *MailHost) Forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.messages, m.sessions, m.accepted = nil, nil, 0
	clear(m.asked)
}
