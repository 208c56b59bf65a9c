package cache

import (
	"errors"
	"math"
	"os"
	"slices"
)

// readFreelist checks the list of free pages, which bbolt believes as it is, and
// calls use with each: page numbers in order, none twice, all within the file.
func readFreelist(f *os.File, m meta, use func(id uint64)) error {
	if m.freelist == noFreelist {
		return nil
	}
	bad := errors.Join(ErrUnreadable, errFreelist)
	if m.freelist < firstPage || m.freelist >= m.limit {
		return bad
	}
	at := int64(m.freelist) * int64(m.pageSize)
	var head [pageHeader + 8]byte
	if _, err := f.ReadAt(head[:], at); err != nil {
		return errors.Join(bad, err)
	}
	if native.Uint64(head[:]) != m.freelist || native.Uint16(head[8:]) != flagFreelist {
		return bad
	}
	n, from := uint64(native.Uint16(head[10:])), at+pageHeader
	if n == math.MaxUint16 { // the number does not fit and is the first element
		n, from = native.Uint64(head[pageHeader:]), from+8
	}
	room := (uint64(native.Uint32(head[12:]))+1)*uint64(m.pageSize) - pageHeader
	if n >= m.limit || n*8 > room {
		return bad
	}
	last := uint64(firstPage - 1)
	buf := make([]byte, 64<<10)
	for n > 0 {
		part := buf[:min(n*8, uint64(len(buf)))]
		if _, err := f.ReadAt(part, from); err != nil {
			return errors.Join(bad, err)
		}
		for i := 0; i < len(part); i += 8 {
			id := native.Uint64(part[i:])
			if id <= last || id >= m.limit {
				return bad
			}
			last = id
			use(id)
		}
		from += int64(len(part))
		n -= uint64(len(part) / 8)
	}
	return nil
}

// A freeSet are the pages of a file that its newest state does not use: those
// of the list, and those behind the last one.
type freeSet struct {
	pageSize int64
	ids      []uint64 // in order
	limit    uint64   // the first page behind the last one in use
}

// freePages reads which pages are free. It is an error if that cannot be told.
func freePages(f *os.File) (*freeSet, error) {
	m, whole := readMetas(f)
	if whole < 2 {
		return nil, errors.Join(ErrUnreadable, errNotWhole)
	}
	if m.freelist == noFreelist {
		return nil, errors.Join(ErrUnreadable, errFreelist)
	}
	free := &freeSet{pageSize: int64(m.pageSize), limit: m.limit}
	err := readFreelist(f, m, func(id uint64) { free.ids = append(free.ids, id) })
	return free, err
}

// blank zeroes what in window, which is read from offset at, lies on free pages.
// A nil set has none.
func (fs *freeSet) blank(window []byte, at int64) {
	if fs == nil {
		return
	}
	end := at + int64(len(window))
	zero := func(from, to int64) {
		if from, to = max(from, at), min(to, end); from < to {
			clear(window[from-at : to-at])
		}
	}
	i, _ := slices.BinarySearch(fs.ids, uint64(at/fs.pageSize))
	for ; i < len(fs.ids) && int64(fs.ids[i])*fs.pageSize < end; i++ {
		from := int64(fs.ids[i]) * fs.pageSize
		zero(from, from+fs.pageSize)
	}
	zero(int64(fs.limit)*fs.pageSize, end)
}
