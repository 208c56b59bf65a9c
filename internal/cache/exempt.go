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

// Exemptions returns the stored exemptions, ended ones included, in the order of
// their domains. With an error it returns those that could be read.
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
	if err := s.update(func(w *writing) error { return putExemptions(w.tx, list) }); err != nil {
		return fmt.Errorf("store the exemptions: %w", err)
	}
	return nil
}

// copyExemptions copies those of one file into another, as far as they can be read.
func (s *Store) copyExemptions(from, to *boltFile) error {
	var list []exempt.Exemption
	err := from.View(func(tx *bbolt.Tx) (err error) {
		list, err = readExemptions(tx)
		return err
	})
	if len(list) == 0 {
		return err
	}
	return errors.Join(err, s.updateIn(to, func(w *writing) error { return putExemptions(w.tx, list) }))
}

// An exemption is stored as its end, in Unix seconds, and a checksum of the
// domain and the end.
func encodeExemption(domain string, until int64) []byte {
	v := encoded(until)
	return binary.LittleEndian.AppendUint32(v, crc32.Checksum(append([]byte(domain), v...), castagnoli))
}

// readExemptions reads the bucket, if the file has one. It drops a damaged exemption
// with an error, because an exemption turns protection off.
func readExemptions(tx *bbolt.Tx) (list []exempt.Exemption, bad error) {
	if tx.Bucket(bucketExempt) == nil {
		return nil, nil
	}
	err := ascend(tx, bucketExempt, nil, func(domain, v []byte) ([]byte, error) {
		if len(list) == MaxExemptions {
			return nil, errStop
		}
		var until int64
		if decode(v, &until); string(v) != string(encodeExemption(string(domain), until)) {
			bad = fmt.Errorf("the exemption of %q is damaged", domain)
			return nil, nil
		}
		list = append(list, exempt.Exemption{Domain: string(domain), Until: time.Unix(until, 0).UTC()})
		return nil, nil
	})
	return list, errors.Join(err, bad)
}

func putExemptions(tx *bbolt.Tx, list []exempt.Exemption) error {
	if err := tx.DeleteBucket(bucketExempt); err != nil && !errors.Is(err, bolterrors.ErrBucketNotFound) {
		return err
	}
	b, err := tx.CreateBucket(bucketExempt)
	for _, x := range list {
		if err == nil {
			err = b.Put([]byte(x.Domain), encodeExemption(x.Domain, x.Until.Unix()))
		}
	}
	return err
}
