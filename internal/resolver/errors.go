package resolver

import "fmt"

// A Kind says in which way a query failed.
type Kind uint8

// The ways in which a query fails.
const (
	KindTimeout     Kind = iota + 1 // no server answered in time
	KindServFail                    // SERVFAIL: a broken zone, or data that does not validate
	KindRefused                     // REFUSED, NOTIMP, FORMERR and other codes that are no answer
	KindMalformed                   // an answer that is no DNS message, or contradicts itself
	KindUnreachable                 // no server could be reached: connection refused, no route, no descriptors. The fault is ours
	KindCanceled                    // the caller's context ended
	KindName                        // the name cannot be asked for; see ErrNameTooLong
	kinds
)

var kindWords = [kinds]string{"unknown failure", "no answer in time", "SERVFAIL", "refused", "malformed answer", "server unreachable", "given up", "not a DNS name"}

func (k Kind) String() string { return kindWords[k] }

// An Error is a query that got no answer. Its text is printable.
type Error struct {
	Name   string // the name asked for
	Type   Type   // the type asked for
	Kind   Kind
	Server string // of several that failed, the one that said most
	Err    error  // what went wrong; may be nil
}

func (e *Error) Error() string {
	s := fmt.Sprintf("DNS %s %s: %s", e.Type, e.Name, e.Kind)
	if e.Server != "" {
		s += " (server " + e.Server + ")"
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the underlying error.
func (e *Error) Unwrap() error { return e.Err }

// worse returns the error that says more about the question: what a server
// said before that none did. The newer of equals.
func worse(a, b *Error) *Error {
	weight := [kinds]int{KindServFail: 4, KindMalformed: 3, KindRefused: 2, KindTimeout: 1}
	if a != nil && weight[a.Kind] > weight[b.Kind] {
		return a
	}
	return b
}
