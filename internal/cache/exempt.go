package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
)

// MaxExemptions bounds the exemptions that are stored.
const MaxExemptions = exempt.MaxTimed

// An exemption is stored as its end, in Unix seconds, and a checksum of the
// domain and the end.
func encodeExemption(x exempt.Exemption) []byte {
	v := binary.LittleEndian.AppendUint64(nil, uint64(x.Until.Unix()))
	return binary.LittleEndian.AppendUint32(v, exemptionChecksum([]byte(x.Domain), v))
}

func exemptionChecksum(domain, until []byte) uint32 {
	return crc32.Update(crc32.Checksum(domain, castagnoli), castagnoli, until)
}

// readExemptions reads the bucket, which a file may lack. A damaged exemption is
// left out, since it would switch protection off, and an error says so.
func readExemptions(tx *bbolt.Tx) (list []exempt.Exemption, bad error) {
	if tx.Bucket(bucketExempt) == nil {
		return nil, nil
	}
	err := ascend(tx, bucketExempt, nil, func(domain, v []byte) ([]byte, error) {
		if len(list) == MaxExemptions {
			return nil, errStop
		}
		if len(v) != 12 || binary.LittleEndian.Uint32(v[8:]) != exemptionChecksum(domain, v[:8]) {
			bad = fmt.Errorf("the exemption of %q is damaged", domain)
			return nil, nil
		}
		until := time.Unix(int64(binary.LittleEndian.Uint64(v)), 0).UTC()
		list = append(list, exempt.Exemption{Domain: string(domain), Until: until})
		return nil, nil
	})
	return list, errors.Join(err, bad)
}

// Exemptions returns the stored exemptions in the order of their domains, also
// those that are over. With an error comes what could be read.
func (s *Store) Exemptions() (list []exempt.Exemption, err error) {
	err = s.view(func(tx *bbolt.Tx) (err error) {
		list, err = readExemptions(tx)
		return err
	})
	if err != nil {
		err = fmt.Errorf("read the exemptions: %w", err)
	}
	return list, err
}

// WriteExemptions replaces the stored exemptions. When it returns nil, they are
// on disk.
func (s *Store) WriteExemptions(list []exempt.Exemption) error {
	if len(list) > MaxExemptions {
		return fmt.Errorf("store the exemptions: %d are more than %d", len(list), MaxExemptions)
	}
	for _, x := range list {
		// One byte more than a domain: a leading dot stands for all below it.
		if len(x.Domain) == 0 || len(x.Domain) > MaxDomain+1 {
			return fmt.Errorf("store the exemptions: a domain has %d bytes, not 1 to %d", len(x.Domain), MaxDomain+1)
		}
	}
	if err := s.update(func(w *writing) error { return putExemptions(w.tx, list) }); err != nil {
		return fmt.Errorf("store the exemptions: %w", err)
	}
	return nil
}

// copyExemptions copies those of one file into another, as far as they can be read.
func (s *Store) copyExemptions(from, to *boltFile) error {
	var list []exempt.Exemption
	err := from.view(func(tx *bbolt.Tx) (err error) {
		list, err = readExemptions(tx)
		return err
	})
	if len(list) == 0 {
		return err
	}
	return errors.Join(err, s.updateIn(to, func(w *writing) error { return putExemptions(w.tx, list) }))
}

// putExemptions replaces the bucket.
func putExemptions(tx *bbolt.Tx, list []exempt.Exemption) error {
	if err := tx.DeleteBucket(bucketExempt); err != nil && !errors.Is(err, bolterrors.ErrBucketNotFound) {
		return err
	}
	b, err := tx.CreateBucket(bucketExempt)
	for _, x := range list {
		if err == nil {
			err = b.Put([]byte(x.Domain), encodeExemption(x))
		}
	}
	return err
}
