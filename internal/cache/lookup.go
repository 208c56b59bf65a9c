package cache

import (
	"bytes"
	"errors"

	"go.etcd.io/bbolt"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// maxPageBytes bounds the memory of what List returns.
const maxPageBytes = 4 << 20

// Lookup reads what is stored for domain into hit. Errors are ErrNotFound, a
// *DamagedError, ErrUnreadable and ErrClosed.
func (s *Store) Lookup(domain []byte, hit *Hit) error {
	return s.find(domain, func(v *value) {
		hit.Mode, hit.Fetched, hit.Expires, hit.Checked, hit.Used = policy.Mode(v.Mode), v.Fetched, v.Expires, v.Checked, v.Used
		hit.Match = append(hit.Match[:0], v.match...)
		hit.Text = append(hit.Text[:0], v.text...)
	})
}

// Get returns what is stored for domain. Errors are those of Lookup.
func (s *Store) Get(domain string) (r Record, err error) {
	err = s.find([]byte(domain), func(v *value) { r = v.record() })
	return r, err
}

// find calls found with the value of domain. A wrong checksum is damage of the file:
// it starts a salvage, which leaves a tombstone for the domain.
func (s *Store) find(domain []byte, found func(*value)) error {
	salvaging := s.salvaging.Load() // before the read: the salvage may end in between
	err := s.view(func(tx *bbolt.Tx) error {
		v, err := locate(tx, domain)
		switch {
		case err != nil:
			return err
		case !v.has(flagTombstone):
			found(v)
			return nil
		case v.Expires <= s.o.Now().Unix():
			return ErrNotFound
		}
		s.damaged.Add(1)
		return &DamagedError{Domain: string(domain), Err: errTombstone}
	})
	if err == ErrNotFound && salvaging {
		return ErrUnreadable
	}
	return err
}

// locate returns the value of domain, or ErrNotFound. A flipped bit in a key can hide
// a policy, so a domain counts as missing only if both neighbours of its place are
// in order.
func locate(tx *bbolt.Tx, domain []byte) (*value, error) {
	b := tx.Bucket(bucketPolicy)
	if b == nil {
		return nil, faultf("it has no policies")
	}
	c := b.Cursor()
	k, raw := c.Seek(domain)
	v, err := parse(k, raw)
	order := bytes.Compare(k, domain)
	if k != nil && order == 0 && err == nil {
		return v, nil
	}
	before := c.Prev
	if k == nil {
		before = c.Last
	} else if order <= 0 || err != nil {
		return nil, faultf("the policy of %q: %v", k, err)
	}
	if k, raw = before(); k == nil {
		return nil, ErrNotFound
	}
	if _, err := parse(k, raw); err != nil || bytes.Compare(k, domain) > 0 {
		return nil, faultf("the policy of %q: %v", k, err)
	}
	return nil, ErrNotFound
}

// List returns records in the order of their domains, from the first one after the
// given domain: at most limit and MaxPage, fewer if they are large. next is the
// domain to continue after, empty at the end. The LastError of a damaged record
// says that it is damaged.
func (s *Store) List(after string, limit int) (list []Record, next string, err error) {
	var page []stored
	err = s.view(func(tx *bbolt.Tx) (err error) {
		page, err = readPage(tx, after, min(limit, MaxPage))
		return err
	})
	for _, p := range page {
		if v, err := parse(p.domain, p.raw); err == nil {
			list = append(list, v.record())
		} else {
			list = append(list, Record{Domain: string(p.domain), LastError: "the stored policy is damaged: " + err.Error()})
		}
		next = string(p.domain)
	}
	if len(list) < min(limit, MaxPage) && size(page) < maxPageBytes {
		next = ""
	}
	return list, next, err
}

// A stored is a domain and its raw value.
type stored struct{ domain, raw []byte }

func size(page []stored) (n int) {
	for _, p := range page {
		n += len(p.raw)
	}
	return n
}

// readPage returns copies of the values after a domain, in order: at most limit
// values, and no more once they have maxPageBytes.
func readPage(tx *bbolt.Tx, after string, limit int) (page []stored, err error) {
	from := append([]byte(after), 0)
	if after == "" {
		from = nil
	}
	err = ascend(tx, bucketPolicy, from, func(k, raw []byte) ([]byte, error) {
		if len(page) >= limit || size(page) >= maxPageBytes {
			return nil, errStop
		}
		page = append(page, stored{bytes.Clone(k), bytes.Clone(raw)})
		return nil, nil
	})
	return page, err
}

var errStop = errors.New("stop")

// ascend calls fn with the keys of a bucket in order, from the key from on, until fn
// returns errStop. If fn returns a key, ascend continues there. Keys out of order are
// a fault: pages may form a circle.
func ascend(tx *bbolt.Tx, bucket, from []byte, fn func(k, v []byte) (seek []byte, err error)) error {
	b := tx.Bucket(bucket)
	if b == nil {
		return faultf("it has no bucket %s", bucket)
	}
	c := b.Cursor()
	for k, v := c.Seek(from); k != nil; {
		seek, err := fn(k, v)
		if err == errStop {
			return nil
		}
		if err != nil {
			return err
		}
		last := k
		if seek != nil {
			k, v = c.Seek(seek)
		} else {
			k, v = c.Next()
		}
		if k != nil && bytes.Compare(k, last) <= 0 {
			return faultf("the keys of its bucket %s are out of order", bucket)
		}
	}
	return nil
}
