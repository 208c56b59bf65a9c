// Package resolver is a DNS client: it asks the configured servers or those of
// resolv.conf, follows CNAMEs, and takes the AD bit from servers that may be
// believed. It keeps no answers and validates nothing: the recursive server does.
// Types of the DNS library stay inside.
package resolver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

const (
	defaultTimeout  = 5 * time.Second  // for one server to answer once; as libc
	maxTimeout      = 30 * time.Second // of `options timeout:n`; as libc
	defaultAttempts = 2                // rounds through the servers; as libc
	maxAttempts     = 5                // of `options attempts:n`; as libc
	queryTime       = 30 * time.Second // for a query: all servers, all rounds, all CNAMEs

	maxServers   = 3  // of resolv.conf; as libc
	maxCNAMEs    = 16 // from the asked name to the last one
	maxQuestions = 8  // asked to follow them
	maxAddresses = 32 // of a host; others are left out

	maxName = 255                // bytes of a name on the wire (RFC 1035, 2.3.4)
	maxTTL  = 7 * 24 * time.Hour // a longer one is cut down to it (RFC 8767, 4)

	udpSize   = 1232 // bytes of a datagram that we announce: they pass everywhere without fragments
	udpBuffer = 4096 // and that we read

	maxResolvConf  = 64 << 10
	resolvConfLook = 3 * time.Second // between two looks at resolv.conf

	// A server that was silent restAfter times in a row is asked last for
	// restTime: a dead first server must not cost each query a time-out.
	restAfter = 3
	restTime  = 30 * time.Second
)

// A Config says whom to ask and whom to believe.
type Config struct {
	Servers    []netip.AddrPort // empty: those of ResolvConf
	ResolvConf string           // default /etc/resolv.conf; read again when it changes
	TrustAD    *bool            // whether the servers' AD bit is believed; nil: as libc, see TrustsAD
	Timeout    time.Duration    // for one server to answer once; zero: that of ResolvConf, or 5 s
	Log        *slog.Logger     // nil: none
}

// A Resolver asks DNS questions. It is safe for concurrent use; the callers
// bound how much is asked at once.
type Resolver struct {
	conf Config
	port uint16 // of resolv.conf's servers: 53 but in tests

	within time.Duration // for a query
	look   time.Duration // between two looks at resolv.conf

	list       atomic.Pointer[serverList]
	generation atomic.Uint64

	reading sync.Mutex // guards what follows
	readAt  time.Time  // when resolv.conf was last read
	broken  bool       // it could not be read, and the log has that
}

// New returns a resolver for c. It fails on a resolv.conf that exists and cannot be read.
func New(c Config) (*Resolver, error) { return newResolver(c, 53) }

func newResolver(c Config, port uint16) (*Resolver, error) {
	if c.ResolvConf == "" {
		c.ResolvConf = "/etc/resolv.conf"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	r := &Resolver{conf: c, port: port, look: resolvConfLook, within: queryTime}
	if len(c.Servers) > 0 {
		r.list.Store(newList(c, c.Servers, ResolvConf{}))
		return r, nil
	}
	if err := r.readAgain(); err != nil {
		return nil, fmt.Errorf("resolver configuration: %w", err)
	}
	return r, nil
}

// Servers returns the servers in the order in which they are asked.
func (r *Resolver) Servers() []netip.AddrPort { return r.servers().addrs() }

// TrustsAD says whether the AD bit of the servers is believed: by
// Config.TrustAD, or as libc has it, when all of them are on loopback or
// resolv.conf has `options trust-ad`.
func (r *Resolver) TrustsAD() bool { return r.servers().trustAD }

// Generation counts the changes of the servers and of the trust in them.
func (r *Resolver) Generation() uint64 {
	r.servers()
	return r.generation.Load()
}

// Query asks for the records of a type at name, which may be one from an answer.
// The error is an *Error. It ends within 30 s.
func (r *Resolver) Query(ctx context.Context, name string, qtype Type) (*Answer, error) {
	asked, err := questionName(name)
	switch {
	case errors.Is(err, dns.ErrBuf): // the DNS can hold no name of this length: proven not to exist
		return &Answer{Name: name, NXDomain: true, Authenticated: true, TTL: maxTTL}, nil
	case err != nil:
		return nil, &Error{Name: text.Cut(text.Printable(name), maxName), Type: qtype, Kind: KindName, Err: errNoName}
	}
	bounded, cancel := context.WithTimeout(ctx, r.within)
	defer cancel()
	a := &Answer{Name: trimDot(asked), Authenticated: true, TTL: maxTTL}
	failed := &Error{Kind: KindMalformed, Err: fmt.Errorf("CNAMEs not at their end after %d questions", maxQuestions)}
	for range maxQuestions {
		next, err := r.ask(bounded, a, qtype)
		if err != nil {
			failed = err
			break
		}
		if a = next; !a.more {
			return a, nil
		}
	}
	failed.Name, failed.Type = trimDot(asked), qtype
	if ctx.Err() != nil {
		failed.Kind, failed.Err = KindCanceled, context.Cause(ctx)
	}
	if a.Name != failed.Name && failed.Err != nil {
		failed.Err = fmt.Errorf("at its CNAME %s: %w", a.Name, failed.Err)
	}
	return nil, failed
}

var errNoName = errors.New("not in the form of a name")

// questionName returns name in lower case, with a trailing dot. What is special in
// a zone file must be escaped, as in answers: else no answer would be equal to it.
func questionName(name string) (string, error) {
	if name == "" {
		return "", errNoName
	}
	name = dns.CanonicalName(name)
	var wire [maxName]byte
	n, err := dns.PackDomainName(name, wire[:], 0, nil, false)
	if err != nil {
		return "", err
	}
	if same, _, err := dns.UnpackDomainName(wire[:n], 0); err != nil || same != name {
		return "", errNoName
	}
	return name, nil
}

// trimDot removes the dot at the end of a complete name; the root stays.
func trimDot(name string) string {
	if name == "." {
		return name
	}
	return strings.TrimSuffix(name, ".")
}
