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

// A Resolver asks DNS questions. It keeps no answers: the recursive server
// does, and the callers. It is safe for concurrent use; how much is asked at
// once is for the callers to bound.
type Resolver struct {
	conf Config
	port uint16 // of resolv.conf's servers: 53 but in tests
	log  *slog.Logger

	within time.Duration // for a query

	list       atomic.Pointer[serverList]
	generation atomic.Uint64

	look     time.Duration // between two looks at resolv.conf
	lookedAt atomic.Int64  // Unix nanoseconds
	reading  sync.Mutex    // held while resolv.conf is looked at
	seen     fileStamp     // the resolv.conf that was last read; guarded by reading
	broken   bool          // it could not be read when last looked at; guarded by reading
}

// New returns a resolver for c. It fails on a server that is no address, and
// on a resolv.conf that is there and cannot be read; one that is absent stands
// for a server on this machine, as it does to libc.
func New(c Config) (*Resolver, error) { return newResolver(c, 53) }

func newResolver(c Config, port uint16) (*Resolver, error) {
	if c.ResolvConf == "" {
		c.ResolvConf = "/etc/resolv.conf"
	}
	r := &Resolver{conf: c, port: port, log: c.Log, look: resolvConfLook, within: queryTime}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if len(c.Servers) > 0 {
		l, err := configured(c)
		if err != nil {
			return nil, err
		}
		r.list.Store(l)
		return r, nil
	}
	stamp, err := stampOf(c.ResolvConf)
	if err != nil {
		return nil, fmt.Errorf("resolver configuration: %w", err)
	}
	l, err := fromFile(c, port)
	if err != nil {
		return nil, fmt.Errorf("resolver configuration: %w", err)
	}
	r.seen = stamp
	r.lookedAt.Store(time.Now().UnixNano())
	r.list.Store(l)
	return r, nil
}

// Servers returns the servers that are asked, in their order.
func (r *Resolver) Servers() []netip.AddrPort {
	var addrs []netip.AddrPort
	for _, s := range r.servers().servers {
		addrs = append(addrs, s.addr)
	}
	return addrs
}

// TrustsAD says whether the AD bit of the servers is believed: by
// Config.TrustAD, or as libc has it, when all of them are on loopback or
// resolv.conf has `options trust-ad`. It is all of them or none: the sender of
// the mail will ask them too, and has no finer rule.
func (r *Resolver) TrustsAD() bool { return r.servers().trustAD }

// Generation counts the changes of the servers, and of the trust in them,
// since New. What was found out about them counts for one generation only.
func (r *Resolver) Generation() uint64 {
	r.servers()
	return r.generation.Load()
}

// Query asks for the records of type qtype at name, and follows CNAMEs. It
// returns an *Error when there is no answer. It ends within 30 s. The name may
// be one from an answer.
func (r *Resolver) Query(ctx context.Context, name string, qtype Type) (*Answer, error) {
	asked, err := questionName(name)
	if err != nil {
		return nil, &Error{Name: name, Type: qtype, Kind: KindName, Err: err}
	}
	bounded, cancel := context.WithTimeout(ctx, r.within)
	defer cancel()

	a := &Answer{Name: trimDot(asked), Authenticated: true, TTL: maxTTL}
	for at, n := asked, 1; ; n++ {
		st, err := r.ask(bounded, at, uint16(qtype))
		if err == nil {
			err = a.extend(st)
		}
		if err == nil && st.more && n == maxQuestions {
			err = &Error{Kind: KindMalformed, Err: fmt.Errorf("CNAMEs not at their end after %d questions", n)}
		}
		if err != nil {
			return nil, failed(err, ctx, trimDot(asked), trimDot(at), qtype)
		}
		if !st.more {
			return a, nil
		}
		at = st.name
	}
}

// failed completes the error of a question at the name `at` that was asked to
// answer a query for name.
func failed(err error, ctx context.Context, name, at string, qtype Type) *Error {
	e := &Error{Kind: KindUnreachable, Err: err}
	errors.As(err, &e)
	e.Name, e.Type = name, qtype
	if ctx.Err() != nil {
		e.Kind, e.Err = KindCanceled, context.Cause(ctx)
	}
	if at != name && e.Err != nil {
		e.Err = fmt.Errorf("at its CNAME %s: %w", at, e.Err)
	}
	return e
}

// ErrNameTooLong is the reason of a KindName: the DNS can hold no name of this
// length, so what was asked for is proven to be absent.
var ErrNameTooLong = errors.New("longer than a name can be")

var errNoName = errors.New("not in the form of a name")

// maxName is the longest name, in bytes on the wire (RFC 1035, 2.3.4).
const maxName = 255

// questionName returns name as it is asked for: lower case, with a trailing
// dot. Its form is that of Answer.Name, so that what an answer leads to can be
// asked for: that of miekg/dns, which escapes what is special in a zone file,
// and what is not printable. Any other form of a name is refused, since the
// names in its answer would never be equal to it.
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
