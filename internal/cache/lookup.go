package cache

import (
	"fmt"

)

// Lookup reads what is stored for domain into hit. It is ErrNotFound if that is
// nothing, a *DamagedError if it is damaged, and ErrUnreadable, in which case
// a rebuild of the file begins, if the page on which it would be cannot be read.
// It allocates nothing when it succeeds, once hit's buffer has its size.
func (s *Store) Lookup(domain []byte, hit *Hit) error {
	sn := s.current()
	if sn == nil {
		return ErrClosed
	}
	defer sn.release()
	err := s.lookup(sn, domain, hit, true)
	if err != nil && isFault(err) { // of a page that is free, it may be: the one in use is elsewhere
		err = s.lookup(sn, domain, hit, false)
	}
	if err == nil || err == ErrNotFound {
		return err
	}
	return s.noticed(err)
}

// lookup is Lookup in one state.
func (s *Store) lookup(sn *snapshot, domain []byte, hit *Hit, byHint bool) error {
	return guard(func() (err error) {
		var v Value
		if byHint {
			v, _ = s.recall(sn, domain, nil)
		}
		if v == nil {
			v, err = s.descend(sn, domain)
		}
		if err != nil {
			return err
		}
		hit.Mode = v.Mode()
		hit.Fetched = v.Fetched()
		hit.Expires = v.Expires()
		hit.Checked = v.Checked()
		hit.Used = v.Used()
		r := v.Record()
		hit.Match, hit.Text = r.Match, r.Text
		return nil
	})
}

// descend finds the value of domain through the pages of sn, and learns where it
// is.
func (s *Store) descend(sn *snapshot, domain []byte) (Value, error) {
	leaf, i, err := sn.policy.locate(domain)
	if err != nil {
		return nil, err
	}
	if i < 0 {
		return nil, sn.notFound(domain)
	}
	raw, bucket, err := leaf.value(i)
	if bucket {
		return nil, sn.notFound(domain)
	}
	if err != nil {
		return nil, err
	}
	v, err := parseAt(domain, raw)
	if err != nil {
		return nil, &DamagedError{Domain: string(domain), Err: err}
	}
	if len(raw) <= maxHinted {
		s.learn(sn, domain, sn.policy.place(leaf, i))
	}
	return v, nil
}

// notFound returns ErrNotFound, unless the pages are not such that one could
// know.
func (sn *snapshot) notFound(domain []byte) error {
	if err := sn.policy.absent(domain, underOwnDomain); err != nil {
		return err
	}
	return ErrNotFound
}

// noticed counts an error of reading, begins a rebuild if it takes one, and
// returns the error that the caller is to see.
func (s *Store) noticed(err error) error {
	if _, ok := err.(*DamagedError); ok {
		s.damaged.Add(1)
		return err
	}
	if !unreadable(err) {
		return err
	}
	s.unreadable.Add(1)
	err = fmt.Errorf("%w: %w", ErrUnreadable, err)
	s.trouble(err)
	return err
}

// Get returns what is stored for domain. Errors are as with Lookup; with a
// *DamagedError comes what can still be made out.
func (s *Store) Get(domain string) (Record, error) {
	sn := s.current()
	if sn == nil {
		return Record{}, ErrClosed
	}
	defer sn.release()
	var r Record
	err := guard(func() error {
		raw, err := sn.policy.get([]byte(domain))
		if err != nil {
			return err
		}
		if raw == nil {
			return sn.notFound([]byte(domain))
		}
		v, err := parseAt([]byte(domain), raw)
		if err != nil {
			r = readable(domain, raw, err)
			return &DamagedError{Domain: domain, Err: err}
		}
		r = v.Record()
		return nil
	})
	if err != nil {
		err = s.noticed(err)
	}
	return r, err
}

// maxListBytes bounds the memory of what List returns.
const maxListBytes = 4 << 20

// List returns records in the order of their domains, the first one after the
// domain after, at most max of them and at most MaxPage; fewer if they are
// large. next is the domain to go on after, empty at the end of the list. A
// damaged one is listed with what can be made out, and its LastError says that
// it is damaged. What lies on unreadable pages is left out, and a rebuild begins.
func (s *Store) List(after string, max int) (list []Record, next string, err error) {
	sn := s.current()
	if sn == nil {
		return nil, "", ErrClosed
	}
	defer sn.release()
	size := 0
	from := append([]byte(after), 0) // the least domain after it
	if after == "" {
		from = nil
	}
	w := newWalk(&sn.policy, from)
	for len(list) < min(max, MaxPage) && size < maxListBytes {
		more, err := w.next(func(k, raw []byte) error {
			v, err := parseAt(k, raw)
			if err != nil {
				list = append(list, readable(string(k), raw, err))
				return nil
			}
			list = append(list, v.Record())
			size += len(raw)
			return nil
		})
		if err != nil {
			s.noticed(err)
		}
		if !more {
			return list, "", nil
		}
	}
	return list, string(w.last), nil
}
