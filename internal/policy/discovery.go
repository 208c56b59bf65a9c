package policy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// DefaultTimeout is how long a fetch may take in all, when Config leaves it
// open. RFC 8461, 3.3 suggests a minute; mail waits for the answer, so we do
// not wait that long.
const DefaultTimeout = 30 * time.Second

// The names below a policy domain (RFC 8461, 3.1 and 3.2).
const (
	recordLabel = "_mta-sts."
	hostLabel   = "mta-sts."
)

// RecordName is where a domain's TXT record is.
func RecordName(domain string) string { return recordLabel + domain }

// HostName is the name of a domain's policy host.
func HostName(domain string) string { return hostLabel + domain }

// URL is where a domain's policy file is.
func URL(domain string) string {
	return "https://" + HostName(domain) + "/.well-known/mta-sts.txt"
}

// A Resolver asks the DNS. It follows CNAMEs, as RFC 8461, 3.1 wants it.
type Resolver interface {
	Query(ctx context.Context, name string, qtype resolver.Type) (*resolver.Answer, error)
}

// A Config is what a Client is made of.
type Config struct {
	Resolver Resolver       // for the record and the policy host's addresses
	Roots    *x509.CertPool // whom to trust, see LoadRoots; required: nil would silently be the system's
	Timeout  time.Duration  // of a fetch in all, DNS and waiting at a gate included; zero: DefaultTimeout

	// AllowPrivate lets policy hosts be on loopback, private and otherwise
	// special addresses. For tests, and for networks with domains of their own.
	AllowPrivate bool

	// Proxy says which HTTP proxy leads to a URL; nil, or a nil URL: none.
	// The proxy's own address may be private. See ProxyFromEnvironment.
	Proxy func(*url.URL) (*url.URL, error)

	// Dial, if not nil, connects to policy hosts in place of a net.Dialer:
	// tests lead it elsewhere. The address is an IP address and port 443. It
	// must return when ctx ends.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	UserAgent string // empty: "sts-tlsmap"
}

// A Client discovers policies. It keeps no state, and is safe for concurrent
// use.
type Client struct {
	resolver     Resolver
	tls          *tls.Config
	timeout      time.Duration
	allowPrivate bool
	proxy        func(*url.URL) (*url.URL, error)
	dial         func(ctx context.Context, network, address string) (net.Conn, error)
	dialProxy    func(ctx context.Context, network, address string) (net.Conn, error) // another one in tests only
	userAgent    string
}

// NewClient returns a client.
func NewClient(config Config) (*Client, error) {
	if config.Resolver == nil || config.Roots == nil {
		return nil, errors.New("policy: a client needs a resolver and certificate authorities")
	}
	c := &Client{
		resolver: config.Resolver,
		tls: &tls.Config{
			RootCAs:    config.Roots,
			MinVersion: tls.VersionTLS12,     // RFC 8461, 7.2 through RFC 7525, 3.1.1
			NextProtos: []string{"http/1.1"}, // one request needs no more, and less can go wrong
		},
		timeout:      config.Timeout,
		allowPrivate: config.AllowPrivate,
		proxy:        config.Proxy,
		dial:         config.Dial,
		dialProxy:    new(net.Dialer).DialContext,
		userAgent:    config.UserAgent,
	}
	if c.timeout <= 0 {
		c.timeout = DefaultTimeout
	}
	if c.dial == nil {
		c.dial = new(net.Dialer).DialContext
	}
	if c.userAgent == "" {
		c.userAgent = "sts-tlsmap"
	}
	return c, nil
}

// Record asks the DNS for the TXT record of a policy domain. The duration is
// how long the answer may be kept, zero if the DNS does not say. The error is
// an *Error with ResultNoRecord, ResultRecordInvalid or ResultDNS. The
// parent's record is never asked for (RFC 8461, 3.4).
func (c *Client) Record(ctx context.Context, domain string) (Record, time.Duration, error) {
	domain = hostname.Lower(domain)
	name := RecordName(domain)
	fail := func(result Result, ttl time.Duration, err error) (Record, time.Duration, error) {
		return Record{}, ttl, &Error{Domain: domain, Result: result, TTL: ttl, Err: err}
	}
	if !hostname.Valid(domain) || len(name) > hostname.MaxName {
		return fail(ResultNoRecord, 0, fmt.Errorf("%w: no such name can be in the DNS", ErrNoRecord))
	}
	answer, err := c.resolver.Query(ctx, name, resolver.TypeTXT)
	var failed *resolver.Error
	switch {
	case errors.As(err, &failed) && failed.Kind == resolver.KindName:
		return fail(ResultNoRecord, 0, fmt.Errorf("%w: %w", ErrNoRecord, err))
	case err != nil:
		return fail(ResultDNS, 0, fmt.Errorf("%w: %w", ErrRecordLookup, err))
	}
	record, err := FindRecord(answer.Texts)
	switch {
	case errors.Is(err, ErrNoRecord):
		return fail(ResultNoRecord, answer.TTL, err)
	case err != nil:
		return fail(ResultRecordInvalid, answer.TTL, err)
	}
	return record, answer.TTL, nil
}

// A Fetched is a policy as its policy host served it.
type Fetched struct {
	Text     []byte // as served, at most MaxText bytes
	Policy   *Policy
	Addr     netip.Addr    // of the policy host
	Duration time.Duration // of the fetch, DNS included

	Certificate *x509.Certificate // of the policy host, verified
}

// Fetch gets the policy of a policy domain over HTTPS. Each connection first
// passes the gate; nil: there is none. The error is an *Error with ResultFetch,
// ResultInvalid, ResultWebPKI or, from the gate, ResultBusy. Where ctx has been
// cancelled with a cause, the error wraps the cause.
func (c *Client) Fetch(ctx context.Context, domain string, gate Gate) (*Fetched, error) {
	domain = hostname.Lower(domain)
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, c.timeout) // RFC 8461, 3.3
	defer cancel()
	fetched, err := c.fetch(ctx, domain, gate)
	if err != nil {
		return nil, &Error{Domain: domain, Result: resultOfFetch(err), Err: err}
	}
	fetched.Duration = time.Since(start)
	return fetched, nil
}

func (c *Client) fetch(ctx context.Context, domain string, gate Gate) (*Fetched, error) {
	host := HostName(domain)
	if !hostname.Valid(domain) || len(host) > hostname.MaxName {
		return nil, fmt.Errorf("%w: no such name can be in the DNS", ErrHostAbsent)
	}
	addrs, err := c.addresses(ctx, host)
	if err != nil {
		return nil, err
	}
	conn, err := c.connect(ctx, domain, addrs, gate)
	if err != nil {
		return nil, err
	}
	defer conn.close()
	text, err := c.get(ctx, conn, domain)
	if err != nil {
		return nil, err
	}
	policy, err := Parse(text)
	if err != nil {
		return nil, err
	}
	// A handshake that was verified has a certificate.
	leaf := conn.tls.ConnectionState().PeerCertificates[0]
	return &Fetched{Text: text, Policy: policy, Addr: conn.addr, Certificate: leaf}, nil
}
