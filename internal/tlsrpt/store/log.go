package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/boltfile"
)

const (
	logSuffix  = ".log-" // and the segment's number, 16 hex digits
	maxSegment = 16 << 20
	maxLog     = 256 << 20 // bytes of batches that wait to be merged
	headSize   = 8         // length and CRC-32C of a batch
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A log is the batches that are not merged yet, in numbered files (segments) beside
// the database. A batch in bbolt costs 5 to 7 pages of 4 KiB: with a batch a second and
// a million sessions a day that was 2.7 KB a session; here it is the batch.
//
// Each start begins a new segment: a batch that a crash has cut is at the end of one.
type log struct {
	path   string
	fd     *os.File // the segment that is written; nil: the next batch begins one
	good   int64    // its bytes up to the end of the last whole batch
	last   uint64   // the last segment's number
	sealed []uint64 // those to be merged
	size   int64    // of the sealed ones
	buffer []byte
}

func (l *log) name(number uint64) string { return fmt.Sprintf("%s%s%016x", l.path, logSuffix, number) }

// open finds the segments of earlier runs. Those up to merged are removed.
func (l *log) open(merged uint64) error {
	l.last = max(l.last, merged)
	files, err := os.ReadDir(filepath.Dir(l.path))
	for _, file := range files {
		digits, ok := strings.CutPrefix(file.Name(), filepath.Base(l.path)+logSuffix)
		number, err := strconv.ParseUint(digits, 16, 64)
		if !ok || err != nil {
			continue
		}
		l.last = max(l.last, number)
		if number <= merged {
			_ = os.Remove(l.name(number))
		} else if info, err := file.Info(); err == nil {
			l.sealed = append(l.sealed, number)
			l.size += info.Size()
		}
	}
	slices.Sort(l.sealed)
	return err
}

// append writes a batch, which is on disk when append returns nil. After an error the
// batch is not in the log, or lost is true: then it may be.
func (l *log) append(b *Batch, known map[policyHash]struct{}) (lost bool, err error) {
	if l.fd == nil {
		if l.fd, err = boltfile.Create(l.name(l.last + 1)); err != nil {
			return false, err
		}
		l.last++
		l.good = 0
		syncFolder(l.path)
	}
	l.buffer = b.encode(append(l.buffer[:0], make([]byte, headSize)...), known)
	payload := l.buffer[headSize:]
	binary.LittleEndian.PutUint32(l.buffer, uint32(len(payload)))
	binary.LittleEndian.PutUint32(l.buffer[4:], crc32.Checksum(payload, castagnoli))
	_, err = l.fd.WriteAt(l.buffer, l.good)
	if err == nil {
		err = l.fd.Sync()
	}
	if err != nil {
		if cut := l.fd.Truncate(l.good); cut != nil {
			return true, errors.Join(err, cut, l.seal())
		}
		return false, err
	}
	l.good += int64(len(l.buffer))
	if l.good >= maxSegment {
		return false, l.seal()
	}
	return false, nil
}

// seal ends the segment that is written, if there is one: it can be merged.
func (l *log) seal() error {
	if l.fd == nil {
		return nil
	}
	err := l.fd.Close()
	l.fd = nil
	l.sealed = append(l.sealed, l.last)
	l.size += l.good
	l.good = 0
	return err
}

// read returns the batches of a sealed segment, none if it is gone, and how many bytes at
// its end are no whole batch or cannot be read. The error is that it cannot be opened.
func (l *log) read(number uint64) (batches []logged, torn int64, err error) {
	fd, err := os.Open(l.name(number))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	defer fd.Close()
	info, err := fd.Stat()
	if err != nil {
		return nil, 0, err
	}
	b := make([]byte, info.Size())
	n, _ := io.ReadFull(fd, b)
	torn, b = int64(len(b)-n), b[:n]
	for len(b) >= headSize {
		n, sum := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
		if uint64(n) > uint64(len(b)-headSize) || crc32.Checksum(b[headSize:headSize+n], castagnoli) != sum {
			break
		}
		if batch, ok := decodeBatch(b[headSize : headSize+n]); ok {
			batches = append(batches, batch)
		}
		b = b[headSize+n:]
	}
	return batches, torn + int64(len(b)), nil
}

// syncFolder makes the names in the folder of a file last.
func syncFolder(path string) {
	if dir, err := os.Open(filepath.Dir(path)); err == nil {
		_ = dir.Sync()
		_ = dir.Close()
	}
}
