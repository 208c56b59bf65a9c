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
	"runtime/debug"
	"slices"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// The bounds of reaching a policy host.
const (
	MaxAddresses   = 8                      // addresses tried in one fetch
	maxAtOnce      = 3                      // of them at once: each has a place at the gate, which other fetches need
	ConnectTimeout = 10 * time.Second       // for one connection: TCP, a proxy's CONNECT, and the TLS handshake
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
		qtype resolver.Type
		addrs []netip.Addr
		err   error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan answer)
	var broken *panicked
	for _, qtype := range []resolver.Type{resolver.TypeAAAA, resolver.TypeA} {
		go func() {
			addrs, err := c.lookup(ctx, host, qtype)
			answers <- answer{qtype, addrs, err}
		}()
	}
	// Both are waited for, so that nothing outlives the fetch: a query ends
	// when its context does.
	for range 2 {
		a := <-answers
		if a.err != nil && !errors.As(a.err, &broken) {
			err = a.err
		}
		if a.qtype == resolver.TypeAAAA {
			v6 = a.addrs
		} else {
			v4 = a.addrs
		}
		if len(a.addrs) > 0 {
			defer time.AfterFunc(familyGrace, cancel).Stop()
		}
	}
	broken.goOn()
	return v6, v4, err
}

func (c *Client) lookup(ctx context.Context, host string, qtype resolver.Type) (_ []netip.Addr, err error) {
	defer carry(&err)
	answer, err := c.resolver.Query(ctx, host, qtype)
	if err != nil {
		return nil, err
	}
	return answer.Addrs, nil
}

// A session is an authenticated TLS connection to one address of a policy
// host, and its place at the gate.
type session struct {
	tls     *tls.Conn
	wire    *eofWatcher // what is below TLS
	addr    netip.Addr
	release func()
}

// close gives connection and place back. It says nothing to the policy host,
// so it cannot wait for it.
func (s *session) close() {
	if s.wire != nil {
		s.wire.Close()
	}
	s.release()
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

// A way is how the addresses of a policy host are connected to.
type way struct {
	config *tls.Config
	proxy  *url.URL // nil: none
	gate   Gate     // nil: none
}

// connect opens a session with the policy host of domain at one of its
// addresses: the first at which the TLS handshake ends well. One that takes its
// time, be it to answer, be it to shake hands, gets company by the next after a
// moment (RFC 8305); through a proxy they take turns. A certificate that does
// not hold at one address says nothing about the next. Nothing goes on after
// the return but the session.
func (c *Client) connect(ctx context.Context, domain string, addrs []netip.Addr, gate Gate) (*session, error) {
	w := &way{gate: gate, config: c.tls.Clone()}
	w.config.ServerName = HostName(domain) // RFC 8461, 3.3: SNI, and the name in the certificate
	var err error
	if w.proxy, err = c.proxyFor(domain); err != nil {
		return nil, err
	}
	delay := staggerDelay
	if w.proxy != nil {
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
	var broken *panicked
	rest, pending := addrs, 0
	for pending > 0 || len(rest) > 0 && won == nil {
		if len(rest) > 0 && won == nil && pending < maxAtOnce {
			addr := rest[0]
			rest, pending = rest[1:], pending+1
			go func() {
				s, err := c.open(ctx, addr, w)
				outcomes <- outcome{s, err}
			}()
			timer.Reset(delay)
		}
		select {
		case o := <-outcomes:
			pending--
			switch {
			case errors.As(o.err, &broken):
				cancel()
			case o.err != nil:
				failures = append(failures, o.err)
			case won == nil:
				won = o.session
				cancel() // the others return at once
			default:
				o.session.close()
			}
		case <-timer.C:
		}
		if ctx.Err() != nil {
			rest = nil
		}
	}
	if broken != nil && won != nil {
		won.close()
	}
	broken.goOn()
	if won != nil {
		return won, nil
	}
	return nil, summary(failures)
}

// summary picks the failure to report. A certificate that does not hold comes
// first: it was seen, the domain's administrator can do something about it, and
// the standard has a name for it (sts-webpki-invalid, RFC 8460, 4.3), which must
// not be lost because another address did not answer either. Then an address
// that was too busy to be tried counts more than one that failed: nothing is
// proven against the host.
func summary(failures []error) error {
	weight := func(err error) int {
		switch resultOfFetch(err) {
		case ResultWebPKI:
			return 2
		case ResultBusy:
			return 1
		}
		return 0
	}
	worst := failures[0]
	for _, err := range failures[1:] {
		if weight(err) > weight(worst) {
			worst = err
		}
	}
	if others := len(failures) - 1; others > 0 {
		return fmt.Errorf("%w (no better at %d more of its addresses)", worst, others)
	}
	return worst
}

// open passes the gate and opens a session at one address.
func (c *Client) open(ctx context.Context, addr netip.Addr, w *way) (_ *session, err error) {
	defer carry(&err)
	s := &session{addr: addr, release: func() {}}
	if w.gate != nil {
		if s.release, err = w.gate.Acquire(ctx, addr); err != nil {
			return nil, err
		}
	}
	done := false
	defer func() {
		if !done {
			s.close()
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, ConnectTimeout)
	defer cancel()
	conn, err := c.wire(ctx, addr, w.proxy)
	if err != nil {
		return nil, err
	}
	s.wire = &eofWatcher{Conn: conn}
	s.tls = tls.Client(s.wire, w.config)
	if err := s.tls.HandshakeContext(ctx); err != nil {
		return nil, handshakeError(ctx, w.config.ServerName, addr, err)
	}
	done = true
	return s, nil
}

// wire connects to one address, through a proxy if there is one. The address
// that was checked is the one connected to: it is dialed as a literal, and
// named to a proxy as one, so that no other lookup can lead somewhere else.
func (c *Client) wire(ctx context.Context, addr netip.Addr, proxy *url.URL) (net.Conn, error) {
	target := netip.AddrPortFrom(addr, httpsPort).String()
	if proxy != nil {
		return c.tunnel(ctx, proxy, target)
	}
	conn, err := c.dial(ctx, "tcp", target)
	if err != nil {
		return nil, failed(ctx, ErrConnect, "connecting to "+addr.String(), err)
	}
	return conn, nil
}

// failed makes an error of what was being done: ErrTimeout if time ran out,
// the context's error if the caller gave up, else kind.
func failed(ctx context.Context, kind error, doing string, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("%s: given up: %w", doing, context.Cause(ctx))
	case ctx.Err() != nil, errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: %s", ErrTimeout, doing)
	}
	return fmt.Errorf("%w: %s: %w", kind, doing, printable{err})
}

// bind lets the context end everything that waits on the connection, until
// the returned function is called. It is the only clock: whatever then fails
// on the connection finds the context ended, and is told from other failures.
func bind(ctx context.Context, conn net.Conn) (unbind func() bool) {
	return context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
}

// A panicked is a panic in a goroutine of a fetch, on its way to the fetch's
// own: there a caller can recover from it, here it would end the daemon.
type panicked struct {
	value any
	stack []byte
}

func (p *panicked) Error() string { return fmt.Sprintf("%v, in\n%s", p.value, p.stack) }

// carry makes an error of a panic. It is deferred.
func carry(err *error) {
	if v := recover(); v != nil {
		*err = &panicked{v, debug.Stack()}
	}
}

// goOn panics again, if there was a panic.
func (p *panicked) goOn() {
	if p != nil {
		panic(p)
	}
}
