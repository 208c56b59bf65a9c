package store

import (
	"encoding/binary"

	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

// A Batch gathers sessions of one day on their way to the log. It holds their bytes and
// nothing of the events that were added. It is for one goroutine.
type Batch struct {
	day      tlsrpt.Day
	n        int
	sessions []byte // policy index and failed bit, domain, failures
	index    map[policyHash]uint64
	policies []batchPolicy
	text     []byte // of the policies
	scratch  []byte
}

type batchPolicy struct {
	hash policyHash
	text []byte // a copy in Batch.text; nil where the log has it already
}

// Reset empties the batch and makes it one of the day.
func (b *Batch) Reset(day tlsrpt.Day) {
	*b = Batch{day: day, sessions: b.sessions[:0], index: b.index, policies: b.policies[:0], text: b.text[:0], scratch: b.scratch}
	clear(b.index)
}

// Day returns the day of Reset.
func (b *Batch) Day() tlsrpt.Day { return b.day }

// Sessions returns how many events were added.
func (b *Batch) Sessions() int { return b.n }

// Size returns the bytes that the batch takes, about.
func (b *Batch) Size() int { return len(b.sessions) + len(b.text) + len(b.policies)*hashSize }

// Add adds a normalized event. It reports whether that was done: not if e.Domain is no
// name of a mail domain.
func (b *Batch) Add(e *tlsrpt.Event) bool {
	if domain, ok := tlsrpt.Domain(e.Domain); !ok || domain != e.Domain {
		return false
	}
	b.scratch = appendPolicy(b.scratch[:0], &e.Policy)
	h := hashOf(b.scratch)
	i, ok := b.index[h]
	if !ok {
		if b.index == nil {
			b.index = make(map[policyHash]uint64)
		}
		i = uint64(len(b.policies))
		b.index[h] = i
		begin := len(b.text)
		b.text = append(b.text, b.scratch...)
		b.policies = append(b.policies, batchPolicy{h, b.text[begin:len(b.text):len(b.text)]})
	}
	b.n++
	ref := i << 1
	if e.Failed {
		ref |= 1
	}
	b.sessions = binary.AppendUvarint(b.sessions, ref)
	b.sessions = appendBytes(b.sessions, e.Domain)
	if e.Failed {
		b.sessions = binary.AppendUvarint(b.sessions, uint64(len(e.Failures)))
		for i := range e.Failures {
			b.sessions = appendFailure(b.sessions, &e.Failures[i])
		}
	}
	return true
}

// encode appends the batch as the log has it. It leaves out the policies that are known.
func (b *Batch) encode(to []byte, known map[policyHash]struct{}) []byte {
	to = appendBytes(to, string(b.day))
	to = binary.AppendUvarint(to, uint64(b.n))
	to = binary.AppendUvarint(to, uint64(len(b.policies)))
	for _, p := range b.policies {
		to = append(to, p.hash[:]...)
		if _, ok := known[p.hash]; ok {
			to = append(to, 0)
		} else {
			to = appendBytes(to, p.text)
		}
	}
	return append(to, b.sessions...)
}

// A logged is a batch as it was read from the log.
type logged struct {
	day      tlsrpt.Day
	n        int
	policies []batchPolicy
	sessions []byte
}

// A ref is the place of a session in a batch. It is small: a segment has as many of them
// as sessions.
type ref struct {
	batch  uint32 // place in the segment
	policy uint32 // place in the batch's policies
	domain uint32 // place in the batch's sessions
	length uint8  // of the domain; behind it are the failures of a failed session
	failed bool
}

func decodeBatch(b []byte) (l logged, ok bool) {
	d := decoder{b: b}
	l.day = tlsrpt.Day(d.bytes())
	l.n = int(min(d.uint(), uint64(len(b))))
	n := d.uint()
	l.policies = make([]batchPolicy, 0, min(n, uint64(len(d.b)/hashSize)))
	for ; n > 0 && !d.bad; n-- {
		var p batchPolicy
		copy(p.hash[:], d.take(uint64(hashSize)))
		if p.text = d.bytes(); len(p.text) == 0 {
			p.text = nil
		}
		l.policies = append(l.policies, p)
	}
	l.sessions = d.b
	return l, !d.bad && !l.day.Begin().IsZero()
}

// appendRefs appends a ref to each session of the batch, which is the segment's batchth.
func (l *logged) appendRefs(refs []ref, batch uint32) []ref {
	for d := (decoder{b: l.sessions}); len(d.b) > 0; {
		head := d.uint()
		domain := d.bytes()
		r := ref{batch, uint32(head >> 1), uint32(len(l.sessions) - len(d.b) - len(domain)), uint8(len(domain)), head&1 == 1}
		if r.failed {
			for n := d.uint(); n > 0 && !d.bad; n-- {
				d.skipFailure()
			}
		}
		if d.bad || head>>1 >= uint64(len(l.policies)) || len(domain) == 0 || len(domain) > hostname.MaxName {
			break
		}
		refs = append(refs, r)
	}
	return refs
}

func (d *decoder) skipFailure() {
	for range 6 {
		d.bytes()
	}
}
