package cache

import (
	"hash/fnv"
	"io"
)

// A meta is a meta page: where one state of the file begins.
type meta struct {
	pageSize uint32
	root     uint64
	freelist uint64
	limit    uint64
	txid     uint64
}

const (
	metaMagic    = 0xED0CDAED
	metaVersion  = 2
	metaSize     = pageHeader + 64
	metaChecksum = pageHeader + 56 // FNV-1a of what stands before it in the meta

	minPageSize = 1 << 10
	maxPageSize = 1 << 16
	noFreelist  = ^uint64(0)
)

// readMeta reads the meta page at offset; ok says whether it is whole.
func readMeta(f io.ReaderAt, offset int64) (m meta, ok bool) {
	var b [metaSize]byte
	if _, err := f.ReadAt(b[:], offset); err != nil {
		return m, false
	}
	sum := fnv.New64a()
	sum.Write(b[pageHeader:metaChecksum])
	if native.Uint32(b[16:]) != metaMagic || native.Uint32(b[20:]) != metaVersion ||
		native.Uint64(b[metaChecksum:]) != sum.Sum64() {
		return m, false
	}
	m = meta{
		pageSize: native.Uint32(b[24:]),
		root:     native.Uint64(b[32:]),
		freelist: native.Uint64(b[48:]),
		limit:    native.Uint64(b[56:]),
		txid:     native.Uint64(b[64:]),
	}
	power := m.pageSize >= minPageSize && m.pageSize <= maxPageSize && m.pageSize&(m.pageSize-1) == 0
	return m, power && m.limit > firstPage+1
}

// readMetas returns the newest whole meta page, and how many are whole; there
// should be two.
func readMetas(f io.ReaderAt) (newest meta, whole int) {
	first, ok := readMeta(f, 0)
	if ok {
		newest, whole = first, 1
	}
	for size := int64(minPageSize); size <= maxPageSize; size *= 2 {
		second, ok2 := readMeta(f, size)
		if !ok2 || int64(second.pageSize) != size || ok && second.pageSize != first.pageSize {
			continue
		}
		if !ok || second.txid > first.txid {
			newest = second
		}
		return newest, whole + 1
	}
	return newest, whole
}
