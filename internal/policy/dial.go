package policy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"time"

	"github.com/miekg/dns"
)

// The bounds of reaching a policy host.
const (
	MaxAddresses   = 8                      // addresses tried in one fetch
	ConnectTimeout = 10 * time.Second       // for one TCP connection, through a proxy for its CONNECT too
	staggerDelay   = 250 * time.Millisecond // until the next address is tried beside the last (RFC 8305, 5)
	familyGrace    = 500 * time.Millisecond // for the other family's addresses, when one family's are known
)

const httpsPort = 443

// addresses looks up the policy host's addresses: both families, IPv6 and IPv4
// in turn (RFC 8305, 4), special ones left out, at most MaxAddresses.
func (c *Client) addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	v6, v4, lookupErr := c.bothFamilies(ctx, host)
	var addrs []netip.Addr
	var refused error
	for i := range max(len(v6), len(v4)) {
		for _, family := range [][]netip.Addr{v6, v4} {
			if i >= len(family) || slices.Contains(addrs, family[i]) || len(addrs) == MaxAddresses {
				continue
			}
			if what := specialAddress(family[i]); what != "" && !c.allowPrivate {
				refused = fmt.Errorf("%w: %s has the address %s, which is %s", ErrAddressRefused, host, family[i], what)
				continue
			}
			addrs = append(addrs, family[i])
		}
	}
	switch {
	case len(addrs) > 0:
		return addrs, nil
	case refused != nil:
		return nil, refused
	case lookupErr != nil:
		return nil, fmt.Errorf("%w: %w", ErrHostLookup, lookupErr)
	}
	return nil, fmt.Errorf("%w: %s", ErrHostAbsent, host)
}

// bothFamilies asks for AAAA and A records at once. When one family's are
// there, the other has a little time left: some name servers never answer
// questions for AAAA. The error is that of a lookup that failed.
func (c *Client) bothFamilies(ctx context.Context, host string) (v6, v4 []netip.Addr, err error) {
	type answer struct {
		qtype uint16
		addrs []netip.Addr
		err   error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan answer)
	for _, qtype := range []uint16{dns.TypeAAAA, dns.TypeA} {
		go func() {
			addrs, err := c.lookup(ctx, host, qtype)
			answers <- answer{qtype, addrs, err}
		}()
	}
	// Both are waited for, so that nothing outlives the fetch: a query ends
	// when its context does.
	for range 2 {
		a := <-answers
		if a.err != nil {
			err = a.err
		}
		if a.qtype == dns.TypeAAAA {
			v6 = a.addrs
		} else {
			v4 = a.addrs
		}
		if len(a.addrs) > 0 {
			defer time.AfterFunc(familyGrace, cancel).Stop()
		}
	}
	return v6, v4, err
}

func (c *Client) lookup(ctx context.Context, host string, qtype uint16) ([]netip.Addr, error) {
	answer, err := c.resolver.Query(ctx, host, qtype)
	if err != nil {
		return nil, err
	}
	return answer.Addrs(), nil
}

// A link is a connection to one address of a policy host, and its place at the
// gate.
type link struct {
	conn    net.Conn
	addr    netip.Addr
	release func()
}

// close gives connection and place back. It says nothing to the other side,
// so it cannot wait for it.
func (l *link) close() {
	l.conn.Close()
	l.release()
}

// reach returns a link to the first address that accepts a connection. An
// address that does not answer gets company by the next after a moment (RFC
// 8305); through a proxy they take turns. Nothing of it goes on after the
// return.
func (c *Client) reach(ctx context.Context, addrs []netip.Addr, proxy *url.URL, gate Gate) (*link, error) {
	delay := staggerDelay
	if proxy != nil {
		delay = ConnectTimeout
	}
	type outcome struct {
		link *link
		err  error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	outcomes := make(chan outcome)
	timer := time.NewTimer(delay)
	defer timer.Stop()
	var won *link
	var failures []error
	rest, pending := addrs, 0
	for pending > 0 || len(rest) > 0 && won == nil {
		if len(rest) > 0 && won == nil {
			addr := rest[0]
			rest, pending = rest[1:], pending+1
			go func() {
				l, err := c.open(ctx, addr, proxy, gate)
				outcomes <- outcome{l, err}
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
				won = o.link
				cancel() // the others return at once
			default:
				o.link.close()
			}
		case <-timer.C:
		}
		if ctx.Err() != nil {
			rest = nil
		}
	}
	if won != nil {
		return won, nil
	}
	return nil, summary(failures)
}

// summary picks the failure to report. An address that was too busy to be
// tried counts more than one that failed: nothing is proven against the host.
func summary(failures []error) error {
	for _, err := range failures {
		if errors.Is(err, ErrBusy) {
			return err
		}
	}
	if others := len(failures) - 1; others > 0 {
		return fmt.Errorf("%w (and at %d more of its addresses)", failures[0], others)
	}
	return failures[0]
}

// open passes the gate and connects to one address.
func (c *Client) open(ctx context.Context, addr netip.Addr, proxy *url.URL, gate Gate) (*link, error) {
	release := func() {}
	if gate != nil {
		var err error
		if release, err = gate.Acquire(ctx, addr); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, ConnectTimeout)
	defer cancel()
	// The address that was checked is the one connected to: it is dialed as a
	// literal, and named to a proxy as one, so that no other lookup can lead
	// somewhere else.
	target := netip.AddrPortFrom(addr, httpsPort).String()
	var conn net.Conn
	var err error
	if proxy != nil {
		conn, err = c.tunnel(ctx, proxy, target)
	} else if conn, err = c.dial(ctx, "tcp", target); err != nil {
		err = failed(ctx, ErrConnect, "connecting to "+addr.String(), err)
	}
	if err != nil {
		release()
		return nil, err
	}
	return &link{conn: conn, addr: addr, release: release}, nil
}

// failed makes an error of what was being done: ErrTimeout if time ran out,
// the context's error if the caller gave up, else kind.
func failed(ctx context.Context, kind error, doing string, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("%s: given up: %w", doing, context.Canceled)
	case ctx.Err() != nil, errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: %s", ErrTimeout, doing)
	}
	return fmt.Errorf("%w: %s: %s", kind, doing, words(err))
}

// bind lets the context end everything that waits on the connection, until
// the returned function is called. It is the only clock: whatever then fails
// on the connection finds the context ended, and is told from other failures.
func bind(ctx context.Context, conn net.Conn) (unbind func() bool) {
	return context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
}

// A session is an authenticated TLS connection to a policy host.
type session struct {
	*link
	tls    *tls.Conn
	wire   *eofWatcher
	unbind func() bool
}

func (s *session) close() {
	s.unbind()
	s.link.close()
}

// An eofWatcher notes when the peer ended the TCP connection. crypto/tls takes
// that for the end of the data even if the peer did not say so within TLS.
type eofWatcher struct {
	net.Conn
	eof bool
}

func (w *eofWatcher) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if errors.Is(err, io.EOF) {
		w.eof = true
	}
	return n, err
}

// connect opens a session with the policy host of domain. The context ends it.
func (c *Client) connect(ctx context.Context, domain string, addrs []netip.Addr, gate Gate) (*session, error) {
	proxy, err := c.proxyFor(domain)
	if err != nil {
		return nil, err
	}
	l, err := c.reach(ctx, addrs, proxy, gate)
	if err != nil {
		return nil, err
	}
	s := &session{link: l, wire: &eofWatcher{Conn: l.conn}, unbind: bind(ctx, l.conn)}
	config := c.tls.Clone()
	config.ServerName = HostName(domain) // RFC 8461, 3.3: SNI, and the name in the certificate
	s.tls = tls.Client(s.wire, config)
	if err := s.tls.HandshakeContext(ctx); err != nil {
		s.close()
		return nil, handshakeError(ctx, config.ServerName, l.addr, err)
	}
	return s, nil
}
