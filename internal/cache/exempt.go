package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"go.etcd.io/bbolt"

	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
)

// MaxExemptions bounds the exemptions that are stored.
const MaxExemptions = exempt.MaxTimed

// They fit on one page of keys, so that they are read in one state of the file.
const _ = uint(MaxPage - MaxExemptions)

// exemptionSize is the length of a stored exemption: until, in Unix seconds,
// and the checksum of the domain and of it.
const exemptionSize = 8 + 4

func encodeExemption(x exempt.Exemption) []byte {
	v := binary.LittleEndian.AppendUint64(make([]byte, 0, exemptionSize), uint64(x.Until.Unix()))
	return binary.LittleEndian.AppendUint32(v, exemptionChecksum([]byte(x.Domain), v))
}

func exemptionChecksum(domain, until []byte) uint32 {
	return crc32.Update(crc32.Checksum(domain, castagnoli), castagnoli, until)
}

// decodeExemption is false for one that is damaged: it must not switch
// protection off.
func decodeExemption(domain, v []byte) (exempt.Exemption, bool) {
	if len(v) != exemptionSize || len(domain) == 0 ||
		binary.LittleEndian.Uint32(v[8:]) != exemptionChecksum(domain, v[:8]) {
		return exempt.Exemption{}, false
	}
	return exempt.Exemption{Domain: string(domain), Until: time.Unix(int64(binary.LittleEndian.Uint64(v)), 0).UTC()}, true
}

// exemptions reads what can be read of the bucket, which older files do not
// have. An error says that something could not.
func (sn *snapshot) exemptions() ([]exempt.Exemption, error) {
	if !sn.hasExempt {
		return nil, nil
	}
	var list []exempt.Exemption
	var bad error
	w := newWalk(&sn.exempt, nil)
	for range MaxExemptions {
		more, err := w.next(func(k, v []byte) error {
			x, ok := decodeExemption(k, v)
			if !ok {
				return fmt.Errorf("the exemption of %q is damaged: %w", k, ErrUnreadable)
			}
			list = append(list, x)
			return nil
		})
		if err != nil {
			bad = err
		}
		if !more {
			break
		}
	}
	return list, bad
}

// Exemptions returns the stored exemptions in the order of their domains,
// those that are over too. With an error comes what could be read.
func (s *Store) Exemptions() ([]exempt.Exemption, error) {
	sn := s.current()
	if sn == nil {
		return nil, ErrClosed
	}
	defer sn.release()
	list, err := sn.exemptions()
	if err != nil {
		return list, fmt.Errorf("read the exemptions: %w", s.noticed(err))
	}
	return list, nil
}

// WriteExemptions replaces the stored exemptions, of which there are
// MaxExemptions at most. When it returns nil they are on disk.
func (s *Store) WriteExemptions(list []exempt.Exemption) error {
	if len(list) > MaxExemptions {
		return fmt.Errorf("store the exemptions: %d are more than %d", len(list), MaxExemptions)
	}
	for _, x := range list {
		// One byte more than a domain, for the dot of what stands for all below.
		if len(x.Domain) == 0 || len(x.Domain) > MaxDomain+1 {
			return fmt.Errorf("store the exemptions: a domain of %d bytes, not 1 to %d", len(x.Domain), MaxDomain+1)
		}
	}
	err := s.change(func(sn *snapshot) (*plan, error) {
		// bbolt goes through the whole bucket, so that it must be whole.
		if _, err := sn.exemptions(); err != nil {
			return nil, err
		}
		p := newPlan(sn, s.options)
		p.exempt = &list
		return p, nil
	})
	if err != nil {
		return fmt.Errorf("store the exemptions: %w", err)
	}
	return nil
}

// putExemptions replaces the bucket.
func putExemptions(tx *bbolt.Tx, list []exempt.Exemption) error {
	if tx.Bucket(bucketExempt) != nil {
		if err := tx.DeleteBucket(bucketExempt); err != nil {
			return err
		}
	}
	b, err := tx.CreateBucket(bucketExempt)
	if err != nil {
		return err
	}
	for _, x := range list {
		if err := b.Put([]byte(x.Domain), encodeExemption(x)); err != nil {
			return err
		}
	}
	return nil
}

// openExempt finds the bucket of exemptions. A file of a version that had none
// is as good as an empty one.
func (sn *snapshot) openExempt(top *tree) error {
	t, err := top.bucket(bucketExempt)
	if errors.Is(err, errNoBucket) {
		return nil
	}
	sn.exempt, sn.hasExempt = t, err == nil
	return err
}

// carryExemptions carries over what can be read of the exemptions of a damaged
// file. What is lost of them is protection that comes back.
func (c *carrier) carryExemptions(sn *snapshot) error {
	list, err := sn.exemptions()
	if err != nil {
		c.store.log.Error("not all exemptions can be read; those that are lost are over", "path", c.store.path, "read", len(list), "err", err)
	}
	if len(list) == 0 {
		return nil
	}
	return c.to.update(func(tx *bbolt.Tx) error { return putExemptions(tx, list) })
}
