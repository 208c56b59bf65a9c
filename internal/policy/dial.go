package policy

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"runtime/debug"
	"strings"
	"sync"
	"time"
)

// The bounds of connecting to a policy host.
const (
	maxAtOnce      = 3                      // addresses tried at once: each holds a place at the gate
	ConnectTimeout = 10 * time.Second       // for one connection: TCP, a proxy's CONNECT, and the TLS handshake
	staggerDelay   = 250 * time.Millisecond // until the next address is tried beside the last (RFC 8305, 5)
)

// A session is an authenticated TLS connection to one address of a policy
// host, and its place at the gate.
type session struct {
	*tls.Conn
	addr  netip.Addr
	close func()
}

// Close gives the connection and the place back. It sends nothing, so it cannot
// block.
func (s *session) Close() error {
	s.close()
	return nil
}

// connect returns a session with the policy host of domain at the first of its
// addresses where the TLS handshake succeeds. The next address is tried when
// one fails, a bad certificate included, and beside one that takes long (RFC
// 8305); through a proxy only when one fails. All other attempts have stopped at
// the return.
func (c *Client) connect(ctx context.Context, domain string, addrs []netip.Addr, gate Gate) (*session, error) {
	proxy, err := c.proxyFor(domain)
	if err != nil {
		return nil, err
	}
	delay := staggerDelay
	if proxy != nil {
		delay = ConnectTimeout
	}
	type outcome struct {
		session *session
		err     error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	outcomes := make(chan outcome)
	timer := time.NewTimer(delay)
	defer timer.Stop()
	var won *session
	var failures []error
	for pending := 0; pending > 0 || len(addrs) > 0; {
		if len(addrs) > 0 && pending < maxAtOnce {
			addr := addrs[0]
			addrs, pending = addrs[1:], pending+1
			go func() {
				s, err := c.open(ctx, HostName(domain), addr, proxy, gate)
				outcomes <- outcome{s, err}
			}()
			timer.Reset(delay)
		}
		select {
		case o := <-outcomes:
			pending--
			switch {
			case o.err != nil:
				failures = append(failures, o.err)
			case won == nil:
				won = o.session
			default:
				o.session.Close()
			}
			if won != nil || isPanic(o.err) {
				cancel()
			}
		case <-timer.C:
		}
		if ctx.Err() != nil {
			addrs = nil
		}
	}
	err = worst(failures)
	switch {
	case won != nil && !isPanic(err):
		return won, nil
	case won != nil:
		won.Close()
	case len(failures) > 1:
		err = fmt.Errorf("%w (no better at %d more of its addresses)", err, len(failures)-1)
	}
	return nil, err
}

// open passes the gate and opens a session at one address. The address is
// dialled as a literal, and given to a proxy as one: what was checked is what
// is connected to.
func (c *Client) open(ctx context.Context, host string, addr netip.Addr, proxy *url.URL, gate Gate) (_ *session, err error) {
	defer catchPanic(&err)
	release := func() {}
	if gate != nil {
		if release, err = gate.Acquire(ctx, addr); err != nil {
			return nil, err
		}
	}
	var conn net.Conn
	s := &session{addr: addr, close: sync.OnceFunc(func() {
		if conn != nil {
			conn.Close()
		}
		release()
	})}
	opened := false
	defer func() {
		if !opened {
			s.Close()
		}
	}()

	ctx, cancel := context.WithTimeout(ctx, ConnectTimeout)
	defer cancel()
	target := netip.AddrPortFrom(addr, 443).String()
	if proxy != nil {
		conn, err = c.tunnel(ctx, proxy, target)
	} else if conn, err = c.config.Dial(ctx, "tcp", target); err != nil {
		err = failed(ctx, ErrConnect, "connecting to "+addr.String(), err)
	}
	if err != nil {
		return nil, err
	}
	config := c.tls.Clone()
	config.ServerName = host // RFC 8461, 3.3: SNI, and the name in the certificate
	s.Conn = tls.Client(uncutConn{conn}, config)
	if err := s.HandshakeContext(ctx); err != nil {
		return nil, handshakeError(ctx, host, addr, err)
	}
	opened = true
	return s, nil
}

// errCut is the end of a connection that did not come from within TLS: anyone
// on the way can have caused it.
var errCut = errors.New("the connection ended without saying so within TLS")

// An uncutConn is a TCP connection whose end is an error. crypto/tls would take
// it for the end of the text.
type uncutConn struct{ net.Conn }

func (c uncutConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if errors.Is(err, io.EOF) {
		err = errCut
	}
	return n, err
}

// handshakeError tells apart what RFC 8461, 3.3 asks of a certificate: its
// name, its dates, its chain.
func handshakeError(ctx context.Context, host string, addr netip.Addr, err error) error {
	verification, ok := errors.AsType[*tls.CertificateVerificationError](err)
	if !ok {
		return failed(ctx, ErrTLS, "TLS with "+addr.String(), err)
	}
	var wrongName x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &wrongName):
		return fmt.Errorf("%w: at %s it is for %s, not for %s", ErrCertName, addr, names(wrongName.Certificate), host)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && invalid.Cert != nil:
		return fmt.Errorf("%w: at %s it is valid from %s to %s", ErrCertExpired, addr,
			invalid.Cert.NotBefore.UTC().Format(time.RFC3339), invalid.Cert.NotAfter.UTC().Format(time.RFC3339))
	}
	return fmt.Errorf("%w: at %s: %w%s", ErrCertUntrusted, addr, printable{verification.Err}, missingIssuer(verification.UnverifiedCertificates))
}

// missingIssuer names the issuer whose certificate the policy host did not
// send, if the chain that it sent does not end in a root.
func missingIssuer(sent []*x509.Certificate) string {
	last := sent[0]
	for range sent {
		for _, cert := range sent {
			if bytes.Equal(cert.RawSubject, last.RawIssuer) {
				last = cert
				break
			}
		}
	}
	if bytes.Equal(last.RawSubject, last.RawIssuer) {
		return ""
	}
	return fmt.Sprintf("; the chain lacks the certificate of the issuer %s: if that is an intermediate, the policy host "+
		"must send it (browsers hide that it is missing)", quote(last.Issuer.String()))
}

// names lists the first names that a certificate is for.
func names(cert *x509.Certificate) string {
	const most = 3
	if len(cert.DNSNames) == 0 {
		return "no DNS name"
	}
	var list []string
	for _, name := range cert.DNSNames[:min(most, len(cert.DNSNames))] {
		list = append(list, quote(name))
	}
	s := strings.Join(list, ", ")
	if more := len(cert.DNSNames) - most; more > 0 {
		s += fmt.Sprintf(" and %d more", more)
	}
	return s
}

// A panicked is a panic in a goroutine of a fetch, where it would end the
// daemon. Fetch panics with it, and its caller may recover.
type panicked struct {
	value any
	stack []byte
}

func (p *panicked) Error() string { return fmt.Sprintf("%v, in\n%s", p.value, p.stack) }

// catchPanic turns a panic into an error. It is deferred.
func catchPanic(err *error) {
	if v := recover(); v != nil {
		*err = &panicked{v, debug.Stack()}
	}
}

func isPanic(err error) bool {
	_, ok := errors.AsType[*panicked](err)
	return ok
}
