package testlab

import (
	"crypto/rand"
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

// A MailFault is a kind of misbehaviour of a mail host. For bad certificates
// see Present, for a closed listener Down.
type MailFault uint8

const (
	MailFine        MailFault = iota
	NoSTARTTLS                // STARTTLS is neither announced nor supported
	STARTTLSRefused           // 454 to STARTTLS
	STARTTLSGarbage           // 220 to STARTTLS, then data that is not TLS
	STARTTLSHangUp            // 220 to STARTTLS, then the connection closes
	STARTTLSStall             // 220 to STARTTLS, then nothing
	MailOldTLS                // TLS 1.1 at most
	GreetingStall             // no greeting
	GreetingRefused           // 421 as the greeting
	MailDeferred              // 451 to MAIL
	RcptRejected              // 550 to RCPT
)

// Limits of a mail host.
const (
	maxMessages   = 1000    // the last ones kept of each host
	maxSessions   = 1000    // likewise
	maxMessage    = 1 << 20 // bytes
	maxRcpt       = 100     // of a message
	maxSMTPLine   = 4096    // bytes
	smtpIdle      = 5 * time.Minute
	handshakeTime = time.Minute
)

// A Message is a message that a mail host accepted.
type Message struct {
	Helo       string
	From       string // without the angle brackets
	To         []string
	TLS        bool
	SNI        string // empty if none was sent
	TLSVersion uint16
	Data       []byte // dots unstuffed, with CRLF
}

// A Session is one connection to a mail host.
type Session struct {
	Helo       string
	STARTTLS   bool // the client sent STARTTLS
	TLS        bool // the handshake succeeded
	SNI        string
	TLSVersion uint16
	Resumed    bool     // the handshake resumed an earlier TLS session
	Rcpt       []string // all addresses in RCPT, accepted or not; 100 at most
	Err        string   // why the session ended, if not by QUIT
	Messages   int      // accepted in this session
}

// A MailHost is an SMTP server with one name.
type MailHost struct {
	Name string
	Addr netip.Addr // the first public address
	Real string     // real address and port for Addr

	lab *Lab

	mu        sync.Mutex
	fault     MailFault
	cert      tls.Certificate
	tickets   *[32]byte // key of session tickets; nil: a new one for each handshake
	gate      *Gate
	places    []string // address and port of all listeners
	listeners []net.Listener
	conns     map[net.Conn]struct{}
	down      bool
	gone      chan struct{} // closed by Down
	running   sync.WaitGroup
	messages  []Message
	sessions  []Session
	accepted  int            // connections accepted
	asked     map[string]int // commands by verb in capitals
}

// MailHost starts a mail host with STARTTLS and a good certificate, at an
// unused address if addr is empty, and adds its address record.
func (l *Lab) MailHost(name, addr string) (*MailHost, error) {
	m := &MailHost{Name: strings.ToLower(name), lab: l,
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

// AlsoAt makes the host listen at another address (an unused one if addr is
// empty) and adds an address record.
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

// enter registers a connection. It returns false once the host is down.
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

// leave unregisters a connection and records its session.
func (m *MailHost) leave(c net.Conn, s Session) {
	c.Close()
	m.mu.Lock()
	delete(m.conns, c)
	m.sessions = appendBounded(m.sessions, s, maxSessions)
	m.mu.Unlock()
	m.running.Done()
	m.lab.event()
}

// appendBounded appends v and keeps the last n elements.
func appendBounded[E any](s []E, v E, n int) []E {
	if len(s) >= n {
		s = slices.Delete(s, 0, len(s)-n+1)
	}
	return append(s, v)
}

// Down closes the listeners and all connections.
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

// Up listens again at the addresses before Down.
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

// Behave sets the host's fault. MailFine ends it.
func (m *MailHost) Behave(f MailFault) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = f
}

// Hold makes new sessions wait at a gate before the greeting.
func (m *MailHost) Hold() *Gate {
	g := m.lab.NewGate()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gate = g
	return g
}

// Present replaces the host's certificate by one of the kind for the host's
// name.
func (m *MailHost) Present(kind CertKind) error { return m.PresentFor(kind, m.Name) }

// PresentFor replaces the host's certificate by one of the kind for the names.
func (m *MailHost) PresentFor(kind CertKind, names ...string) error {
	c, err := m.lab.Issue(kind, names...)
	if err != nil {
		return err
	}
	m.PresentCertificate(c)
	return nil
}

// PresentCertificate replaces the host's certificate.
func (m *MailHost) PresentCertificate(c tls.Certificate) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cert = c
}

// Resume lets clients resume their TLS sessions. By default none can.
func (m *MailHost) Resume() {
	key := new([32]byte)
	rand.Read(key[:]) // never fails (crypto/rand)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tickets = key
}

// TLSA returns the TLSA record at port 25 for the host's present certificate.
func (m *MailHost) TLSA(usage, selector, matching int) (string, error) {
	return TLSA(lockedGet(&m.mu, &m.cert), m.Name, smtpPort, usage, selector, matching)
}

// Messages returns the last 1,000 messages accepted, in order.
func (m *MailHost) Messages() []Message {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.messages)
}

// Sessions returns the last 1,000 sessions that ended.
func (m *MailHost) Sessions() []Session {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.sessions)
}

// Connections returns the number of connections accepted.
func (m *MailHost) Connections() int { return lockedGet(&m.mu, &m.accepted) }

// Asked returns how often the host received a command ("STARTTLS").
func (m *MailHost) Asked(verb string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.asked[verb]
}

// note counts a command. It ignores unknown verbs, of which a client may send
// any number.
func (m *MailHost) note(verb string) {
	if !slices.Contains(smtpVerbs, verb) {
		return
	}
	m.mu.Lock()
	m.asked[verb]++
	m.mu.Unlock()
	m.lab.event()
}

// Forget drops the recorded messages and sessions and resets the counts.
func (m *MailHost) Forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.messages, m.sessions, m.accepted = nil, nil, 0
	clear(m.asked)
}
