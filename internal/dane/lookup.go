package dane

import (
	"context"
	"errors"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// A Security is the kind of an answer: four different things, only the first
// of which proves anything, presence or absence (RFC 7672, 2.1.1).
type Security uint8

// The kinds. The zero value is the one of which nothing is known.
const (
	Indeterminate Security = iota // no answer
	Bogus                         // SERVFAIL: signatures that do not verify, or a broken zone; a stub cannot tell
	Insecure                      // an answer that nothing vouches for
	Secure                        // an answer or a denial that the resolver has authenticated
)

func (s Security) String() string {
	switch s {
	case Bogus:
		return "bogus"
	case Insecure:
		return "insecure"
	case Secure:
		return "secure"
	}
	return "indeterminate"
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

// lookup asks a question. A name that is too long for the DNS is proven not to
// exist; another one that cannot be asked for is a lookup that failed.
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
		// What a validating server found bogus, another one may have in good
		// faith: its answer does not count.
		l.Security = Bogus
		l.Err = &resolver.Error{Name: name, Type: qtype, Kind: resolver.KindServFail, Err: errUnvouched}
	case l.Err == nil:
		l.Security = Insecure
	case errors.Is(l.Err, resolver.ErrNameTooLong):
		l.Security, l.Err = Secure, nil
		l.Answer = &resolver.Answer{Name: name, NXDomain: true, Authenticated: true, TTL: maxKeep}
	case errors.As(l.Err, &e) && e.Kind == resolver.KindServFail:
		l.Security = Bogus
	}
	return l
}

// answered says whether there is an answer that counts, of records or of their
// absence.
func (l *Lookup) answered() bool { return l.Security == Secure || l.Security == Insecure }

// found says whether there is an answer with records.
func (l *Lookup) found() bool { return l.answered() && l.Answer.Found() }

// timedOut says whether no server answered in time.
func (l *Lookup) timedOut() bool {
	var e *resolver.Error
	return errors.As(l.Err, &e) && e.Kind == resolver.KindTimeout
}

// keep returns how long what was found by some lookups holds, at most maxKeep.
func keep(lookups ...*Lookup) time.Duration {
	least := maxKeep
	for _, l := range lookups {
		if l != nil && l.answered() {
			least = min(least, l.Answer.TTL)
		}
	}
	return least
}
