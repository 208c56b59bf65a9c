package dane

import (
	"context"
	"errors"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// A Security is the kind of an answer. Four different things, only the first
// of which proves anything, be it presence or absence (RFC 7672, 2.1.1).
type Security uint8

// The kinds. The zero value is the one of which nothing is known.
const (
	Indeterminate Security = iota // no answer
	Bogus                         // SERVFAIL: signatures that do not verify, or a zone that is broken; a stub cannot tell
	Insecure                      // an answer that nothing vouches for
	Secure                        // an answer, or a denial, that the resolver has authenticated
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
	Answer   *resolver.Answer // nil if Err is set
	Err      error
}

// errUnvouched is an answer in the place of one that may have been bogus.
var errUnvouched = errors.New("another server has an answer, which nothing vouches for")

// lookup asks a question. Where one of several servers that are trusted says
// SERVFAIL, one that does not validate may have the very forgery that the first
// one saw through: its answer is none.
func (c *Checker) lookup(ctx context.Context, name string, qtype resolver.Type) *Lookup {
	l := c.ask(ctx, name, qtype)
	if l.Security == Insecure && l.Answer.AfterServFail {
		l.Security, l.Answer = Bogus, nil
		l.Err = &resolver.Error{Name: name, Type: qtype, Kind: resolver.KindServFail, Err: errUnvouched}
	}
	return l
}

// ask asks a question, and takes an answer from any server. A name that is too
// long for the DNS cannot exist: that is as good as proven. Another name that
// cannot be asked for is a lookup that failed.
func (c *Checker) ask(ctx context.Context, name string, qtype resolver.Type) *Lookup {
	l := &Lookup{Name: name, Type: qtype}
	l.Answer, l.Err = c.resolver.Query(ctx, name, qtype)
	var e *resolver.Error
	switch {
	case l.Err == nil && l.Answer.Authenticated:
		l.Security = Secure
	case l.Err == nil:
		l.Security = Insecure
	case errors.As(l.Err, &e) && e.Kind == resolver.KindServFail:
		l.Security = Bogus
	case errors.Is(l.Err, resolver.ErrNameTooLong):
		l.Security, l.Err = Secure, nil
		l.Answer = &resolver.Answer{Name: name, NXDomain: true, Authenticated: true, TTL: maxKeep}
	}
	return l
}

// answered says whether there is an answer, of records or of their absence.
func (l *Lookup) answered() bool { return l.Security == Secure || l.Security == Insecure }

// found says whether there is an answer with records.
func (l *Lookup) found() bool { return l.answered() && l.Answer.Found() }

// ttl returns how long l holds.
func (l *Lookup) ttl() time.Duration {
	if !l.answered() {
		return 0
	}
	return l.Answer.TTL
}
