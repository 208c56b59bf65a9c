package cache

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"

	"go.etcd.io/bbolt"
)

// A snapshot is one state of the file, pinned by a read transaction: its pages
// are not used again while it is open.
//
// There is one current snapshot, which every commit replaces. So the pages it
// keeps from being used again are those of one commit, and an idle store keeps
// none: pages become free by commits only. All reading holds it for 1,000 keys
// at most.
type snapshot struct {
	file *boltFile
	tx   *bbolt.Tx // nil: nobody writes the file
	txID int       // of the transaction that made it
	refs atomic.Int64
	done chan struct{} // closed when refs is 0

	policy, due, expiry, evict tree
	exempt                     tree // if hasExempt
	hasExempt                  bool
	hints                      *hints // nil: none, in a store that only reads

	counts   counts
	newest   int64
	fileSize int64 // bytes of all pages
	used     int64 // bytes of the pages in use
}

// snapshot pins the newest state. The caller holds one reference.
func (b *boltFile) snapshot() (*snapshot, error) {
	if b.broken {
		return nil, fmt.Errorf("%w: bbolt gave it up", ErrUnreadable)
	}
	sn := &snapshot{file: b, done: make(chan struct{})}
	sn.refs.Store(1)
	err := guard(func() (err error) {
		if sn.tx, err = b.db.Begin(false); err != nil {
			return err
		}
		sn.txID = sn.tx.ID()
		size := uint64(b.db.Info().PageSize)
		stats := b.db.Stats()
		sn.fileSize = sn.tx.Size()
		sn.used = sn.fileSize - int64(stats.FreePageN+stats.PendingPageN)*int64(size)
		return sn.open(size, uint64(sn.tx.Size())/size, uint64(sn.tx.Cursor().Bucket().Root()))
	})
	if err != nil {
		b.broken = b.broken || isFault(err)
		sn.rollback()
		return nil, err
	}
	return sn, nil
}

// open finds the buckets, from the root page on.
func (sn *snapshot) open(pageSize, limit, root uint64) error {
	p := pages{data: sn.file.data, size: pageSize, limit: limit}
	if limit > uint64(len(p.data))/pageSize {
		p.limit = uint64(len(p.data)) / pageSize
	}
	top := tree{pages: p, root: root}
	m, err := top.bucket(bucketMeta)
	if err != nil {
		return err
	}
	schema, err := m.get(keySchema)
	if err != nil {
		return err
	}
	if len(schema) != 4 {
		return fmt.Errorf("the schema's number: %w", errNoBucket)
	}
	switch n := binary.LittleEndian.Uint32(schema); {
	case n > schemaVersion:
		return &SchemaError{Schema: n}
	case n < schemaVersion: // there never was one; a later schema migrates here
		return fmt.Errorf("schema %d: %w", n, errNoBucket)
	}
	c, err := m.get(keyCounts)
	if err != nil {
		return err
	}
	sn.counts = decodeCounts(c)
	newest, err := m.get(keyNewest)
	if err != nil {
		return err
	}
	if len(newest) == 8 {
		sn.newest = int64(binary.LittleEndian.Uint64(newest))
	}
	for _, b := range []struct {
		name []byte
		tree *tree
	}{{bucketPolicy, &sn.policy}, {bucketDue, &sn.due}, {bucketExpiry, &sn.expiry}, {bucketEvict, &sn.evict}} {
		if *b.tree, err = top.bucket(b.name); err != nil {
			return err
		}
	}
	return sn.openExempt(&top)
}

// hold adds a reference unless the last one is gone.
func (sn *snapshot) hold() bool {
	for {
		n := sn.refs.Load()
		if n == 0 {
			return false
		}
		if sn.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (sn *snapshot) release() {
	if sn.refs.Add(-1) == 0 {
		close(sn.done)
	}
}

// rollback ends the transaction. Nobody may read the snapshot any more.
func (sn *snapshot) rollback() {
	if sn.tx == nil || sn.file.broken {
		return
	}
	if err := guard(sn.tx.Rollback); err != nil {
		sn.file.broken = isFault(err)
	}
	sn.tx = nil
}

// retire gives up the holder's reference to sn, a state that was replaced, and
// ends the transactions of those that nobody reads any more.
func (b *boltFile) retire(sn *snapshot) {
	if sn != nil {
		sn.release()
		b.retired = append(b.retired, sn)
	}
	kept := b.retired[:0]
	for _, old := range b.retired {
		select {
		case <-old.done:
			old.rollback()
		default:
			kept = append(kept, old)
		}
	}
	clear(b.retired[len(kept):])
	b.retired = kept
}
