package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"slices"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

// A policyHash stands for the text of a policy, which is the JSON of a storedPolicy.
type policyHash [16]byte

// A storedPolicy is a tlsrpt.Policy with short names: the log has its text for almost each
// session, and the more sessions a segment has, the less a merge writes for one.
type storedPolicy struct {
	Type    tlsrpt.PolicyType `json:"t"`
	Strings []string          `json:"s,omitempty"`
	Domain  string            `json:"d"`
	MXHosts []string          `json:"m,omitempty"`
}

const (
	hashSize = len(policyHash{})
	dayLen   = len(time.DateOnly)
)

// A Batch gathers sessions of one day on their way to the log. It holds their bytes and
// nothing of the events that were added. It is for one goroutine.
//
// A session is its key, and if it failed, the JSON of its failures. The key is day,
// domain, NUL, policy hash: so keys have the order of their domains.
type Batch struct {
	day      tlsrpt.Day
	n        int
	sessions []byte                  // each behind its length
	policies []byte                  // hash, length, text of each
	known    map[policyHash]struct{} // those in policies
}

// Reset empties the batch and makes it one of the day.
func (b *Batch) Reset(day tlsrpt.Day) {
	b.day, b.n, b.sessions, b.policies, b.known = day, 0, b.sessions[:0], b.policies[:0], make(map[policyHash]struct{})
}

// Day returns the day of Reset.
func (b *Batch) Day() tlsrpt.Day { return b.day }

// Sessions returns how many events were added.
func (b *Batch) Sessions() int { return b.n }

// Size returns the bytes that the batch takes, about.
func (b *Batch) Size() int { return len(b.sessions) + len(b.policies) }

// Add adds a normalized event.
func (b *Batch) Add(e *tlsrpt.Event) {
	text, _ := json.Marshal(storedPolicy(e.Policy)) // of strings: it cannot fail
	sum := sha256.Sum256(text)
	hash := policyHash(sum[:])
	if _, ok := b.known[hash]; !ok {
		b.known[hash] = struct{}{}
		b.policies = appendBytes(append(b.policies, hash[:]...), text)
	}
	session := slices.Concat([]byte(b.day), domainKey(e.Domain), hash[:])
	if e.Failed {
		var once []tlsrpt.Failure
		for _, f := range e.Failures {
			if !slices.Contains(once, f) {
				once = append(once, f)
			}
		}
		failures, _ := json.Marshal(once)
		session = append(session, failures...)
	}
	b.sessions = appendBytes(b.sessions, session)
	b.n++
}

// domainKey begins the keys of a domain.
func domainKey(domain string) []byte { return append([]byte(domain), 0) }

// encode appends the batch as the log has it.
func (b *Batch) encode(to []byte) []byte { return append(appendBytes(to, b.policies), b.sessions...) }

// add adds an encoded batch.
func (s *segment) add(batch []byte) {
	policies, sessions := takeBytes(batch)
	for len(policies) > hashSize {
		hash := policyHash(policies)
		s.texts[hash], policies = takeBytes(policies[hashSize:])
	}
	for len(sessions) > 0 {
		var session []byte
		session, sessions = takeBytes(sessions)
		if k := key(session); k != nil && s.texts[policyHash(k[len(k)-hashSize:])] != nil {
			s.sessions = append(s.sessions, session)
		} else {
			s.torn += 1 + len(session)
		}
	}
}

// key returns the key of a session; nil: it is none, as in the log of an earlier version.
func key(session []byte) []byte {
	domain := bytes.IndexByte(session, 0) // its end
	n := domain + 1 + hashSize
	if domain <= dayLen || n > len(session) || tlsrpt.Day(session[:dayLen]).Begin().IsZero() {
		return nil
	}
	return session[:n]
}

func appendBytes(b, v []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

// takeBytes takes from b what appendBytes has appended. It is all nil if b is nothing of
// the kind.
func takeBytes(b []byte) (v, rest []byte) {
	n, size := binary.Uvarint(b)
	if size <= 0 || n > uint64(len(b)-size) {
		return nil, nil
	}
	b = b[size:]
	return b[:n:n], b[n:]
}
