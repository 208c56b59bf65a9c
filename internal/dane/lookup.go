package dane

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// A Security is the kind of an answer: four different things, only the first
// of which proves anything, presence or absence (RFC 7672, 2.1.1).
type Security uint8

// The kinds. The zero value means that nothing is known.
const (
	Indeterminate Security = iota // no answer
	Bogus                         // SERVFAIL: signatures that do not verify, or a broken zone; a stub cannot tell
	Insecure                      // an answer that nothing vouches for
	Secure                        // an answer or a denial that the resolver has authenticated
)

func (s Security) String() string {
	return [...]string{"indeterminate", "bogus", "insecure", "secure"}[s]
}

// A Lookup is a question and what came of it.
type Lookup struct {
	Name     string
	Type     resolver.Type
	Security Security
	Answer   *resolver.Answer // nil: there is none, and Err says why
	Err      error            // nil: the Answer counts
}

var (
	errUnvouched = errors.New("another server has an answer, which nothing vouches for")
	errPanic     = errors.New("the lookup broke off")
)

// lookup asks a question.
func (c *Checker) lookup(ctx context.Context, name string, qtype resolver.Type) (l *Lookup) {
	l = &Lookup{Name: name, Type: qtype}
	defer func() {
		if v := recover(); v != nil {
			c.recovered("lookup", v)
			l = &Lookup{Name: name, Type: qtype, Err: errPanic}
		}
	}()
	l.Answer, l.Err = c.resolver.Query(ctx, name, qtype)
	var e *resolver.Error
	switch {
	case l.Err == nil && l.Answer.Authenticated:
		l.Security = Secure
	case l.Err == nil && l.Answer.AfterServFail:
		// A validating server may have found the data bogus. Then the answer of
		// another server that does not validate must not count.
		l.Security = Bogus
		l.Err = &resolver.Error{Name: name, Type: qtype, Kind: resolver.KindServFail, Err: errUnvouched}
	case l.Err == nil:
		l.Security = Insecure
	case errors.As(l.Err, &e) && e.Kind == resolver.KindServFail:
		l.Security = Bogus
	}
	return l
}

// answered says whether there is an answer that counts, or a denial.
func (l *Lookup) answered() bool { return l.Security == Secure || l.Security == Insecure }

// found says whether there is an answer with records.
func (l *Lookup) found() bool { return l.answered() && l.Answer.Found() }

// timedOut says whether no server answered in time.
func (l *Lookup) timedOut() bool {
	var e *resolver.Error
	return errors.As(l.Err, &e) && e.Kind == resolver.KindTimeout
}

// keep returns how long the results of lookups are valid, at most maxKeep.
func keep(lookups ...*Lookup) time.Duration {
	least := maxKeep
	for _, l := range lookups {
		if l != nil && l.answered() {
			least = min(least, l.Answer.TTL)
		}
	}
	return least
}

// tlsaName returns where the TLSA records of a host are (RFC 7672, 2.2.3).
func tlsaName(host string, port uint16) string { return fmt.Sprintf("_%d._tcp.%s", port, host) }

// UsableRecord says whether a TLSA record can authenticate an SMTP server: its
// usage is DANE-TA(2) or DANE-EE(3), its selector Cert(0) or SPKI(1). The PKIX
// usages cannot: there is no agreed list of authorities (RFC 7672, 3.1.3).
func UsableRecord(rr resolver.TLSA) bool {
	if rr.Usage != 2 && rr.Usage != 3 || rr.Selector > 1 {
		return false
	}
	switch rr.MatchingType {
	case 0: // Full
		return isDER(rr.Data)
	case 1: // SHA2-256
		return len(rr.Data) == sha256.Size
	case 2: // SHA2-512
		return len(rr.Data) == sha512.Size
	}
	return false
}

// isDER says whether b is one DER sequence, as certificates and public keys are. To
// discard a record that the MTA can use would have MTA-STS override DANE.
func isDER(b []byte) bool {
	var v asn1.RawValue
	rest, err := asn1.Unmarshal(b, &v)
	return err == nil && len(rest) == 0 && v.Class == asn1.ClassUniversal && v.Tag == asn1.TagSequence && v.IsCompound && len(v.Bytes) > 0
}

// An MXHost is one host of an MX RRset.
type MXHost struct {
	Name       string // lower case, no trailing dot
	Preference uint16
}

// An MXSet is what the DNS says about the mail hosts of a domain.
type MXSet struct {
	Hosts    []MXHost // the most preferred first, equals by name
	Null     bool     // a null MX: the domain takes no mail (RFC 7505)
	NXDomain bool     // the domain does not exist
}

// MX looks up the mail hosts of a domain, at most 64. Their names are host
// names as Postfix takes them. The error is that of the lookup, or of ctx.
func (c *Checker) MX(ctx context.Context, domain string) (*MXSet, error) {
	release, ok := c.turns.take(ctx, domain)
	if !ok {
		return nil, fmt.Errorf("too many MX lookups are under way: %w", context.Cause(ctx))
	}
	defer release()
	l := c.lookup(ctx, domain, resolver.TypeMX)
	if l.Answer == nil {
		return nil, l.Err
	}
	s := readMX(domain, l.Answer) // authenticated or not: the policy says which of the hosts count
	s.Hosts = s.Hosts[:min(len(s.Hosts), maxHosts)]
	return s, nil
}

// Barred returns the MX hosts that the policy does not list and that are no less
// preferred than any that it lists, 8 at most: an MTA comes to them first, and must not
// use them (RFC 8461, 4.1).
func Barred(hosts []MXHost, listed func(host string) bool) (names []string) {
	best := slices.IndexFunc(hosts, func(h MXHost) bool { return listed(h.Name) })
	for _, h := range hosts {
		if best >= 0 && h.Preference > hosts[best].Preference || len(names) == maxBarred {
			break
		}
		if !listed(h.Name) {
			names = append(names, h.Name)
		}
	}
	return names
}

// readMX reads the MX records of a domain. It drops names that are no host names.
func readMX(domain string, a *resolver.Answer) *MXSet {
	switch {
	case a.NXDomain:
		return &MXSet{NXDomain: true}
	case len(a.MX) == 0: // RFC 5321, 5.1
		return &MXSet{Hosts: []MXHost{{Name: domain}}}
	case !slices.ContainsFunc(a.MX, func(mx resolver.MX) bool { return mx.Host != "." }):
		return &MXSet{Null: true} // RFC 7505, 3; the root among hosts is just no host
	}
	s := new(MXSet)
	records := slices.Clone(a.MX)
	slices.SortFunc(records, func(a, b resolver.MX) int {
		return cmp.Or(cmp.Compare(a.Preference, b.Preference), strings.Compare(a.Host, b.Host))
	})
	seen := make(map[string]bool, len(records))
	for _, mx := range records {
		if !seen[mx.Host] && isHostName(mx.Host) {
			s.Hosts = append(s.Hosts, MXHost{mx.Host, mx.Preference})
		}
		seen[mx.Host] = true
	}
	return s
}

// isHostName says whether Postfix looks s up as a host name: with underscores, too,
// and with a number at its end, but not an address.
func isHostName(s string) bool {
	_, err := netip.ParseAddr(s)
	return err != nil && hostname.Labels(s, hostname.Underscore) > 0
}
