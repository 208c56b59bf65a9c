// Package probe connects to the MX hosts of a domain as an MTA would and says whether
// mail would go out: under the domain's MTA-STS policy (RFC 8461), under DANE (RFC
// 7672), and if a testing policy were enforced. It says EHLO, STARTTLS and QUIT, and
// sends no mail.
//
// Package tlsmap decides: the probe asks it for the reply of a map, and judges each host
// by that reply as the MTA does. Failures have the names of RFC 8460, 4.3.
//
// Left out: client certificates, TLS wrappers (port 465), and cipher suites that
// crypto/tls does not have.
package probe

import (
	"cmp"
	"context"
	"crypto/x509"
	"hash/maphash"
	"net"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/explain"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

// The bounds of a probe. The other side is hostile.
const (
	maxHosts     = 10   // of a domain, the most preferred first
	maxAddresses = 4    // of a host: the next one is tried while none does TLS
	keptHosts    = 1000 // in memory with their certificates: many domains share their hosts

	domainsAtOnce     = 64 // each has one session at a time, and so has each address
	sessionsPerSecond = 50

	hostTime    = time.Minute // for all sessions with a host
	connectTime = 10 * time.Second
	quitTime    = 2 * time.Second

	maxLine  = 2048      // bytes of a reply's line, as Postfix
	maxLines = 100       // of a reply
	maxChain = 10        // certificates of a host that are looked at
	maxCert  = 100 << 10 // bytes of a host's own certificate, as OpenSSL
)

// A State says how a host did by one measure.
type State string

// The states.
const (
	Passes  State = "passes"
	Fails   State = "fails"
	Unknown State = "unknown" // no answer in time, or a fault of our own: an MTA may see more
)

// A Verdict says what would become of mail.
type Verdict string

// The verdicts.
const (
	Delivered    Verdict = "would be delivered"
	Waits        Verdict = "would wait"
	NotKnown     Verdict = "unknown"
	DoesNotApply Verdict = "does not apply" // there is no such policy, or no DANE
)

// Options are what a Prober works with.
type Options struct {
	Resolver explain.Resolver
	NextHops explain.NextHops
	Policy   func(ctx context.Context, domain string) explain.Policy // the policy that counts for a domain
	Map      mta.Map                                                 // the map that the MTA asks in: what it can do
	Roots    *x509.CertPool                                          // the authorities that the MTA trusts
	EHLO     string                                                  // the MTA's name
	// Sparing makes no session for a domain without a policy or DANE: nothing there
	// can keep mail.
	Sparing bool
	// PublicOnly connects to no address that the policy fetcher refuses: a domain can name
	// any address.
	PublicOnly bool
	PerSecond  int // sessions; 0: sessionsPerSecond

	Dial func(ctx context.Context, network, address string) (net.Conn, error) // nil: a net.Dialer's
}

// A Prober probes domains. It keeps what it saw of a host as long as it lives: make a
// new one for each run. It is safe for concurrent use.
type Prober struct {
	Options
	validate sync.Once // the resolver was probed
	pace     *rate.Limiter
	seed     maphash.Seed
	turns    [1024]chan struct{} // of addresses with the same hash
	hosts    *lru.Cache[dane.NextHop, *host]
}

// New returns a Prober.
func New(o Options) *Prober {
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	hosts, err := lru.New[dane.NextHop, *host](keptHosts)
	if err != nil {
		panic(err) // of a size that is not positive
	}
	perSecond := cmp.Or(o.PerSecond, sessionsPerSecond)
	p := &Prober{Options: o, hosts: hosts, seed: maphash.MakeSeed(), pace: rate.NewLimiter(rate.Limit(perSecond), perSecond)}
	for i := range p.turns {
		p.turns[i] = make(chan struct{}, 1)
	}
	return p
}

// Domains probes domains, many at once, and hands out each Result when it is there, one
// at a time. An error of done ends it, and is returned.
func (p *Prober) Domains(ctx context.Context, domains []string, done func(*Result) error) error {
	working, ctx := errgroup.WithContext(ctx)
	working.SetLimit(domainsAtOnce)
	var one sync.Mutex
	for _, domain := range domains {
		working.Go(func() error {
			r := p.Domain(ctx, domain)
			one.Lock()
			defer one.Unlock()
			return done(r)
		})
	}
	return working.Wait()
}
