// Package resolver is a DNS client. It asks the configured servers or those of
// resolv.conf over UDP with EDNS0, over TCP when the answer is truncated, and
// the next server on failure. It follows CNAMEs, and takes the AD bit from
// servers that may be believed. It keeps no answers and validates nothing: the
// recursive server does. Types of the DNS library stay inside.
package resolver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
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

	// udpSize is what we announce: what passes everywhere without fragments.
	// Servers that send more are read up to udpBuffer.
	udpSize   = 1232
	udpBuffer = 4096

	maxResolvConf  = 64 << 10
	resolvConfLook = 3 * time.Second // between two looks at resolv.conf

	// A server that was silent restAfter times in a row is asked last for
	// restTime: a dead first server must not cost each query a time-out.
	restAfter = 3
	restTime  = 30 * time.Second
)

// A Config says whom to ask and whom to believe. The zero value asks the
// servers of /etc/resolv.conf.
type Config struct {
	Servers    []string      // "127.0.0.1:53", "[::1]:53", "fe80::1%eth0"; port 53 if not given; empty: those of ResolvConf
	ResolvConf string        // default /etc/resolv.conf; read again when it changes
	TrustAD    *bool         // whether the servers' AD bit is believed; nil: as libc, see TrustsAD
	Timeout    time.Duration // for one server to answer once; zero: that of ResolvConf, or 5 s
	Log        *slog.Logger  // nil: none
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

	reading  sync.Mutex  // guards what follows
	lookedAt time.Time   // when resolv.conf was last looked at
	seen     os.FileInfo // the resolv.conf that was last read; nil: it was absent
	broken   bool        // it could not be read when last looked at
}

// New returns a resolver for c. It fails on a server that is no address, and
// on a resolv.conf that exists and cannot be read; an absent one stands for a
// server on this machine, as it does to libc.
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
		var addrs []netip.AddrPort
		for _, s := range c.Servers {
			a, err := parseServer(s)
			if err != nil {
				return nil, err
			}
			addrs = append(addrs, a)
		}
		r.list.Store(newList(c, addrs, ResolvConf{}))
		return r, nil
	}
	l, seen, err := r.readFile()
	if err != nil {
		return nil, fmt.Errorf("resolver configuration: %w", err)
	}
	r.seen, r.lookedAt = seen, time.Now()
	r.list.Store(l)
	return r, nil
}

// Servers returns the servers in the order in which they are asked.
func (r *Resolver) Servers() []netip.AddrPort { return r.servers().addrs() }

// TrustsAD says whether the AD bit of the servers is believed: by
// Config.TrustAD, or as libc has it, when all of them are on loopback or
// resolv.conf has `options trust-ad`. It is all or none: the MTA asks them too,
// and has no finer rule.
func (r *Resolver) TrustsAD() bool { return r.servers().trustAD }

// Generation counts the changes of the servers, and of the trust in them,
// since New.
func (r *Resolver) Generation() uint64 {
	r.servers()
	return r.generation.Load()
}

// Query asks for the records of a type at name, and follows CNAMEs. It returns
// an *Error when there is no answer. It ends within 30 s. The name may be one
// from an answer.
func (r *Resolver) Query(ctx context.Context, name string, qtype Type) (*Answer, error) {
	asked, err := questionName(name)
	if err != nil {
		return nil, &Error{Name: name, Type: qtype, Kind: KindName, Err: err}
	}
	bounded, cancel := context.WithTimeout(ctx, r.within)
	defer cancel()
	a := &Answer{Name: trimDot(asked), Authenticated: true, TTL: maxTTL}
	var failed *Error
	for range maxQuestions {
		next, more, err := r.ask(bounded, a, qtype)
		if failed = err; err != nil {
			break
		}
		if a = next; !more {
			return a, nil
		}
	}
	if failed == nil {
		failed = &Error{Kind: KindMalformed, Err: fmt.Errorf("CNAMEs not at their end after %d questions", maxQuestions)}
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

// ErrNameTooLong is the reason of a KindName: the DNS can hold no name of this
// length, so that the name is proven not to exist.
var ErrNameTooLong = errors.New("longer than a name can be")

var errNoName = errors.New("not in the form of a name")

// questionName returns name as it is asked for: lower case, with a trailing
// dot. Its form must be that of Answer.Name, with what is special in a zone
// file escaped: no name in an answer is equal to any other form.
func questionName(name string) (string, error) {
	if name == "" {
		return "", errNoName
	}
	name = dns.CanonicalName(name)
	var wire [maxName]byte
	n, err := dns.PackDomainName(name, wire[:], 0, nil, false)
	switch {
	case errors.Is(err, dns.ErrBuf):
		return "", ErrNameTooLong
	case err != nil:
		return "", errNoName
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
