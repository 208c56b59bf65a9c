package policy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// RecordName is where a domain's TXT record is (RFC 8461, 3.1).
func RecordName(domain string) string { return "_mta-sts." + domain }

// HostName is the name of a domain's policy host (RFC 8461, 3.2).
func HostName(domain string) string { return "mta-sts." + domain }

// URL is where a domain's policy file is (RFC 8461, 3.3).
func URL(domain string) string { return "https://" + HostName(domain) + "/.well-known/mta-sts.txt" }

// A Resolver asks DNS questions and follows CNAMEs, as RFC 8461, 3.1 wants it.
type Resolver interface {
	Query(ctx context.Context, name string, qtype resolver.Type) (*resolver.Answer, error)
}

// A Config holds what a Client needs.
type Config struct {
	Resolver Resolver
	Roots    *x509.CertPool // see LoadRoots; required
	Timeout  time.Duration  // of a fetch, including DNS and the wait at a gate (RFC 8461, 3.3); required

	// AllowPrivate accepts policy hosts with loopback, private and other special
	// addresses: for tests, and for networks with domains of their own.
	AllowPrivate bool

	// Proxy returns the proxy for a URL; a nil function or URL means none. The
	// proxy's own address may be private. See ProxyFromEnvironment.
	Proxy func(*url.URL) (*url.URL, error)

	// Dial replaces a net.Dialer in tests. It connects to addresses of policy
	// hosts, always at port 443, and to the proxy. It must return when ctx ends.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// ClockInDoubt says whether this machine's clock may be wrong, so that neither this
	// client can judge the dates of certificates, nor a resolver on this machine those of
	// DNSSEC signatures. Nil: never.
	ClockInDoubt func() bool

	UserAgent string
}

// A Client discovers policies. It keeps no state, and is safe for concurrent
// use.
type Client struct {
	config Config
	tls    *tls.Config
}

// NewClient returns a client.
func NewClient(config Config) (*Client, error) {
	if config.Resolver == nil || config.Roots == nil || config.Timeout <= 0 { // nil would mean the system's roots
		return nil, errors.New("policy: a client needs a resolver, certificate authorities and a time-out")
	}
	if config.Dial == nil {
		config.Dial = new(net.Dialer).DialContext
	}
	if config.Proxy == nil {
		config.Proxy = func(*url.URL) (*url.URL, error) { return nil, nil }
	}
	return &Client{config: config, tls: &tls.Config{
		RootCAs:    config.Roots,
		MinVersion: tls.VersionTLS12, // RFC 8461, 7.2 through RFC 7525, 3.1.1
		NextProtos: []string{"http/1.1"},
		// A policy is public, so its secrecy in the future does not matter: without the
		// post-quantum key exchange a fetch takes a quarter less CPU time.
		CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521},
	}}, nil
}

// LoadRoots returns the authorities that may sign policy hosts' certificates:
// those in the PEM file caFile, or the system's if caFile is empty. The error
// wraps ErrNoRoots if there is not one: every fetch would fail, and in time
// every domain would lose its protection.
func LoadRoots(caFile string) (*x509.CertPool, error) {
	if caFile == "" {
		roots, err := x509.SystemCertPool()
		if err != nil || roots.Equal(x509.NewCertPool()) {
			return nil, fmt.Errorf("%w: the system has none; install the package ca-certificates, or set ca_file in [fetch]", ErrNoRoots)
		}
		return roots, nil
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoRoots, err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%w: %s holds no certificate in PEM form", ErrNoRoots, caFile)
	}
	return roots, nil
}

// Record asks the DNS for the TXT record of a policy domain, and returns how
// long the answer may be kept, zero if the DNS does not say. The error is an
// *Error with ResultNoRecord, ResultRecordInvalid or ResultDNS. The parent's
// record is never asked for (RFC 8461, 3.4).
func (c *Client) Record(ctx context.Context, domain string) (Record, time.Duration, error) {
	domain = hostname.Lower(domain)
	record, ttl, err := c.record(ctx, domain)
	if err != nil {
		return Record{}, ttl, &Error{Domain: domain, Result: resultOf(err), TTL: ttl, Err: err}
	}
	return record, ttl, nil
}

func (c *Client) record(ctx context.Context, domain string) (Record, time.Duration, error) {
	name := RecordName(domain)
	if !hostname.Valid(domain) || len(name) > hostname.MaxName {
		return Record{}, 0, fmt.Errorf("%w: no such name can be in the DNS", ErrNoRecord)
	}
	answer, err := c.config.Resolver.Query(ctx, name, resolver.TypeTXT)
	if err != nil {
		return Record{}, 0, fmt.Errorf("%w: %w", ErrRecordLookup, c.blameClock(err))
	}
	record, err := FindRecord(answer.Texts)
	return record, answer.TTL, err
}

// A Fetched is a policy as its policy host served it.
type Fetched struct {
	Text        []byte // as served, at most MaxText bytes
	Policy      *Policy
	Addr        netip.Addr        // of the policy host
	Duration    time.Duration     // of the fetch, DNS included
	Certificate *x509.Certificate // of the policy host, verified
}

// A Gate limits connections. Fetch passes it before each connection to an
// address, and calls release once when that connection is closed. Acquire may
// wait until ctx ends. Its error ends the attempt, with ResultBusy if it wraps
// ErrBusy.
type Gate interface {
	Acquire(ctx context.Context, addr netip.Addr) (release func(), err error)
}

// Fetch gets the policy of a policy domain over HTTPS. A nil gate lets all
// connections pass. The error is an *Error with ResultFetch, ResultInvalid,
// ResultWebPKI or ResultBusy. If ctx was cancelled, it wraps context.Cause(ctx).
func (c *Client) Fetch(ctx context.Context, domain string, gate Gate) (*Fetched, error) {
	domain = hostname.Lower(domain)
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, c.config.Timeout) // RFC 8461, 3.3
	defer cancel()
	fetched, err := c.fetch(ctx, domain, gate)
	if errors.Is(err, errPanic) {
		panic(err)
	}
	if err != nil {
		return nil, &Error{Domain: domain, Result: resultOf(err), Err: err}
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
	s, err := c.connect(ctx, host, addrs, gate)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	text, err := c.get(ctx, s, domain)
	if err != nil {
		return nil, err
	}
	policy, err := Parse(text)
	if err != nil {
		return nil, err
	}
	// A verified connection has a certificate.
	leaf := s.ConnectionState().PeerCertificates[0]
	return &Fetched{Text: text, Policy: policy, Addr: s.addr, Certificate: leaf}, nil
}

// DialTLS returns a TLS connection to port 443 of another host that strangers name. As
// with a policy host, special addresses are refused, the address that was checked is
// the one that is dialled, and the proxy is used. Without verify it accepts any
// certificate. The caller bounds the time. Closing the connection does not block. The
// error wraps one of those of Fetch, and calls host the policy host; a panic is an
// error too.
func (c *Client) DialTLS(ctx context.Context, host string, verify bool) (_ net.Conn, err error) {
	defer catchPanic(&err)
	if !hostname.Valid(host) {
		return nil, fmt.Errorf("%w: no such name can be in the DNS", ErrHostAbsent)
	}
	d := &Client{config: c.config, tls: c.tls.Clone()}
	d.tls.InsecureSkipVerify = !verify
	d.tls.CurvePreferences = nil // what is sent is not public, as policies are
	addrs, err := d.addresses(ctx, host)
	if err != nil {
		return nil, err
	}
	s, err := d.connect(ctx, host, addrs, nil)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// MaxHeader bounds the header of an answer, in bytes, 1xx answers included.
const MaxHeader = 16 << 10

// get asks for the policy file on an open session and returns its text.
func (c *Client) get(ctx context.Context, s *session, domain string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, URL(domain), nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrHTTP, printable{err})
	}
	request.Header = http.Header{
		"User-Agent":    {c.config.UserAgent},
		"Accept":        {"text/plain"},
		"Cache-Control": {"no-cache"}, // RFC 8461, 3.3: HTTP caches are not used
	}
	transport := &http.Transport{
		DialTLSContext:         func(context.Context, string, string) (net.Conn, error) { return s, nil },
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: MaxHeader,
	}
	// RFC 8461, 3.3: RoundTrip follows no redirects. It sets no cookies.
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, failed(ctx, ErrHTTP, "waiting for the answer of "+s.addr.String(), err)
	}
	defer response.Body.Close()
	if err := acceptable(response); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, MaxText+1))
	switch {
	case len(text) > MaxText:
		return nil, fmt.Errorf("%w: more than %d bytes", ErrTooLarge, MaxText)
	case err != nil:
		return nil, failed(ctx, ErrHTTP, fmt.Sprintf("reading the policy, after %d bytes", len(text)), err)
	}
	return text, nil
}

// acceptable judges an answer by its header.
func acceptable(response *http.Response) error {
	// RFC 8461, 3.3: only 200 counts.
	if response.StatusCode != http.StatusOK {
		e := &StatusError{Code: response.StatusCode}
		if location := response.Header.Get("Location"); location != "" {
			e.Location = quote(location)
		}
		return e
	}
	// RFC 8461, 3.2: parameters are ignored, so broken ones are too.
	contentType := response.Header.Get("Content-Type")
	media, _, _ := strings.Cut(contentType, ";")
	if hostname.Lower(strings.Trim(media, " \t")) != "text/plain" {
		return fmt.Errorf("%w: its Content-Type is %s", ErrMediaType, quote(contentType))
	}
	if encoding := response.Header.Get("Content-Encoding"); encoding != "" && hostname.Lower(encoding) != "identity" {
		return fmt.Errorf("%w: it is encoded as %s, which was not asked for", ErrHTTP, quote(encoding))
	}
	return nil
}
