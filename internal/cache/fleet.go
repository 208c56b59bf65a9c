package cache

import (
	"encoding/binary"
	"errors"
	"hash/crc32"

	"go.etcd.io/bbolt"
)

// FleetStamps returns what WriteFleetStamps has stored; nil: nothing.
func (s *Store) FleetStamps() (stamps []byte, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		v := tx.Bucket(bucketMeta).Get(keyFleet)
		if v == nil {
			return nil
		}
		if len(v) < 4 || binary.LittleEndian.Uint32(v) != crc32.Checksum(v[4:], castagnoli) {
			return errors.New("the stamps of the fleet are damaged")
		}
		stamps = append(stamps, v[4:]...)
		return nil
	})
	return stamps, err
}

// WriteFleetStamps replaces the stamps of orders that the fleet gave. When it returns nil,
// they are on disk. A damaged file loses them.
func (s *Store) WriteFleetStamps(stamps []byte) error {
	v := binary.LittleEndian.AppendUint32(nil, crc32.Checksum(stamps, castagnoli))
	return s.update(func(w *writing) error { return w.tx.Bucket(bucketMeta).Put(keyFleet, append(v, stamps...)) })
}
