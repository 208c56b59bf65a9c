package policy

import (
	"bytes"
	"cmp"
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
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
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
	addr    netip.Addr
	release func()
	once    sync.Once
}

// Close closes the connection without a word to the policy host, so that it
// cannot block, and gives the place back.
func (s *session) Close() error {
	s.once.Do(func() {
		if s.Conn != nil {
			s.NetConn().Close()
		}
		s.release()
	})
	return nil
}

// connect returns a session with host at the first of its addresses where the TLS
// handshake succeeds. The next address is tried when one fails, a bad certificate
// included, and beside one that takes long (RFC 8305); through a proxy only when
// one fails. All other attempts have stopped at the return.
func (c *Client) connect(ctx context.Context, host string, addrs []netip.Addr, gate Gate) (*session, error) {
	proxy, err := c.config.Proxy(&url.URL{Scheme: "https", Host: host})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProxy, printable{err})
	}
	delay := staggerDelay
	if proxy != nil {
		delay = ConnectTimeout
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	opened, lost := make(chan *session), make(chan error)
	timer := time.NewTimer(delay)
	defer timer.Stop()
	var won *session
	var failures []error
	for pending := 0; pending > 0 || len(addrs) > 0; {
		if len(addrs) > 0 && pending < maxAtOnce {
			addr := addrs[0]
			addrs, pending = addrs[1:], pending+1
			go func() {
				if s, err := c.open(ctx, host, addr, proxy, gate); err != nil {
					lost <- err
				} else {
					opened <- s
				}
			}()
			timer.Reset(delay)
		}
		select {
		case s := <-opened:
			if pending--; won == nil {
				won = s
				cancel()
			} else {
				s.Close()
			}
		case err := <-lost:
			pending--
			failures = append(failures, err)
			if errors.Is(err, errProxyDown) {
				cancel()
			}
		case <-timer.C:
		}
		if ctx.Err() != nil {
			addrs = nil
		}
	}
	if won != nil {
		return won, nil
	}
	err = worst(failures)
	if others := len(failures) - 1; others > 0 {
		err = fmt.Errorf("%w (no better at %d more of its addresses)", err, others)
	}
	return nil, err
}

// open passes the gate and opens a session at one address.
func (c *Client) open(ctx context.Context, host string, addr netip.Addr, proxy *url.URL, gate Gate) (_ *session, err error) {
	s := &session{addr: addr, release: func() {}}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	defer catchPanic(&err)
	if gate != nil {
		release, err := gate.Acquire(ctx, addr)
		if err != nil {
			return nil, err
		}
		s.release = release
	}
	ctx, cancel := context.WithTimeout(ctx, ConnectTimeout)
	defer cancel()
	// The address is dialled as a literal, and named to the proxy as one: what was
	// checked is what is connected to.
	var conn net.Conn
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
		return nil, c.blameClock(handshakeError(ctx, host, addr, err))
	}
	return s, nil
}

// An uncutConn is a connection below TLS. Its end is an error: anyone on the way
// can cause it, and crypto/tls would take it for the end of the text.
type uncutConn struct{ net.Conn }

func (c uncutConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if errors.Is(err, io.EOF) {
		err = errors.New("the connection ended without saying so within TLS")
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
		names := cmp.Or(strings.Join(wrongName.Certificate.DNSNames, ", "), "no DNS name")
		return fmt.Errorf("%w: at %s it is for %s, not for %s", ErrCertName, addr, quote(names), host)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("%w: at %s it is valid from %s to %s", ErrCertExpired, addr,
			text.Clock(invalid.Cert.NotBefore), text.Clock(invalid.Cert.NotAfter))
	}
	return fmt.Errorf("%w: at %s: %w%s", ErrCertUntrusted, addr, printable{verification.Err}, missingIssuer(verification.UnverifiedCertificates))
}

// missingIssuer names the issuer whose certificate the policy host did not
// send, if the chain that it sent does not end in a root.
func missingIssuer(sent []*x509.Certificate) string {
	last := sent[0]
	for range sent {
		issued := func(c *x509.Certificate) bool { return bytes.Equal(c.RawSubject, last.RawIssuer) }
		if i := slices.IndexFunc(sent, issued); i >= 0 {
			last = sent[i]
		}
	}
	if bytes.Equal(last.RawSubject, last.RawIssuer) {
		return ""
	}
	return fmt.Sprintf("; the chain lacks the certificate of the issuer %s: if that is an intermediate, the policy host "+
		"must send it (browsers hide that it is missing)", quote(last.Issuer.String()))
}

// errPanic is a panic in a goroutine of a fetch, where it would end the daemon.
// Fetch panics with it again, and its caller may recover; DialTLS returns it.
var errPanic = errors.New("panic")

// catchPanic turns a panic into an error. It is deferred.
func catchPanic(err *error) {
	if v := recover(); v != nil {
		*err = fmt.Errorf("%w: %v, in\n%s", errPanic, v, debug.Stack())
	}
}
