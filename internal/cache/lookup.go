package cache

import (
	"bytes"
	"errors"

	"go.etcd.io/bbolt"
)

// maxListBytes bounds the memory of what List returns.
const maxListBytes = 4 << 20

// Lookup reads what is stored for domain into hit. Errors are ErrNotFound, a
// *DamagedError, ErrUnreadable and ErrClosed.
func (s *Store) Lookup(domain []byte, hit *Hit) error {
	return s.find(domain, func(v value) {
		hit.Mode = v.mode()
		hit.Fetched, hit.Expires = v.time(offFetched), v.time(offExpires)
		hit.Checked, hit.Used = v.time(offChecked), v.time(offUsed)
		hit.Match = append(hit.Match[:0], v.match()...)
		hit.Text = append(hit.Text[:0], v.text()...)
	})
}

// Get returns what is stored for domain. Errors are those of Lookup.
func (s *Store) Get(domain string) (r Record, err error) {
	err = s.find([]byte(domain), func(v value) { r = v.record() })
	return r, err
}

// find calls found with the value of domain.
func (s *Store) find(domain []byte, found func(value)) error {
	salvaging := s.salvaging.Load() // before it is looked for, or it may come in between
	var damaged *DamagedError
	err := s.view(func(tx *bbolt.Tx) error {
		raw, err := locate(tx, domain)
		if err != nil {
			return err
		}
		v, err := parseAt(domain, raw)
		if err == nil && v.has(flagTombstone) {
			if v.time(offExpires) <= s.o.Now().Unix() {
				return ErrNotFound
			}
			err = errTombstone
		}
		if err != nil {
			damaged = &DamagedError{Domain: string(domain), Err: err}
			return damaged
		}
		found(v)
		return nil
	})
	switch {
	case err == nil:
	case err == ErrNotFound && salvaging:
		return ErrUnreadable
	case damaged != nil && err == damaged:
		s.damaged.Add(1)
		if damaged.Err != errTombstone {
			select {
			case s.unburied <- damaged.Domain:
			default:
			}
		}
	}
	return err
}

// locate returns the raw value of domain, or ErrNotFound. A bit that flipped in a
// key makes a policy hard to find: so nothing is said not to be there unless both
// neighbours of its place are in order.
func locate(tx *bbolt.Tx, domain []byte) ([]byte, error) {
	b := tx.Bucket(bucketPolicy)
	if b == nil {
		return nil, faultf("the bucket of the policies is gone")
	}
	c := b.Cursor()
	k, raw := c.Seek(domain)
	if bytes.Equal(k, domain) && k != nil {
		if raw == nil {
			return nil, faultf("a bucket is in the place of a policy")
		}
		return raw, nil
	}
	if k != nil && (bytes.Compare(k, domain) < 0 || !inPlace(k, raw)) {
		return nil, faultf("the policies are out of order")
	}
	if k != nil {
		k, raw = c.Prev()
	} else {
		k, raw = c.Last()
	}
	if k != nil && (bytes.Compare(k, domain) > 0 || !inPlace(k, raw)) {
		return nil, faultf("the policies are out of order")
	}
	return nil, ErrNotFound
}

// inPlace reports whether a value may be stored under the key: it is of that
// domain, or damaged, which is another matter.
func inPlace(k, raw []byte) bool {
	_, err := parseAt(k, raw)
	return raw != nil && !errors.Is(err, errField)
}

// List returns records in the order of their domains, from the first one after
// the domain after, limit and MaxPage of them at most, and fewer if they are
// large. next is the domain to go on after, empty at the end. The LastError of a
// damaged record says so.
func (s *Store) List(after string, limit int) (list []Record, next string, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		list, next = nil, ""
		size := 0
		return ascend(tx, bucketPolicy, startAfter(after), func(k, raw []byte) ([]byte, error) {
			if len(list) >= min(limit, MaxPage) || size >= maxListBytes {
				next = list[len(list)-1].Domain
				return nil, errStop
			}
			v, err := parseAt(k, raw)
			if err != nil {
				list = append(list, Record{Domain: string(k), LastError: "the stored policy is damaged: " + err.Error()})
				return nil, nil
			}
			list = append(list, v.record())
			size += len(raw)
			return nil, nil
		})
	})
	return list, next, err
}

// startAfter returns the first key after a domain; empty: of all keys.
func startAfter(domain string) []byte {
	if domain == "" {
		return nil
	}
	return append([]byte(domain), 0)
}

var errStop = errors.New("stop")

// ascend calls fn with the keys of a bucket in their order, beginning at from,
// until fn returns errStop. If fn returns a key, it goes on there. Keys out of
// order are a fault: the pages may lead back to themselves.
func ascend(tx *bbolt.Tx, bucket, from []byte, fn func(k, v []byte) (seek []byte, err error)) error {
	b := tx.Bucket(bucket)
	if b == nil {
		return faultf("the bucket %s is gone", bucket)
	}
	c := b.Cursor()
	k, v := c.Seek(from)
	for k != nil {
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
			return faultf("the keys of bucket %s are out of order", bucket)
		}
	}
	return nil
}
