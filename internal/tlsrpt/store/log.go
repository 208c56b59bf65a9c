package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sts-tlsmap/sts-tlsmap/internal/boltfile"
)

const (
	logMark    = ".log-"   // and when the segment was begun, in its name
	maxSegment = 11 << 20  // bytes; a merge holds a segment in memory
	maxLog     = 256 << 20 // bytes of batches that wait to be merged
	headSize   = 8         // length and CRC-32C of a batch
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A log is the batches that are not merged yet, in files beside the database (segments).
// A batch each second in a bucket of the database was measured at 4.2 KB a session, with
// a million sessions a day: each commit writes five pages or more.
//
// A crash may cut the last batch of a segment. A new run begins a new segment.
type log struct {
	path string       // of the database
	size atomic.Int64 // bytes of all segments

	mu   sync.Mutex // for what follows
	fd   *os.File   // the segment that is written; nil: the next batch begins one
	good int64      // bytes of its whole batches
}

// append writes a batch, which is on disk when append returns nil. After an error it can
// be written again: it overwrites what came of the attempt.
func (l *log) append(b *Batch) (err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd == nil {
		if l.fd, err = boltfile.Create(fmt.Sprintf("%s%s%016x", l.path, logMark, time.Now().UnixNano())); err != nil {
			return err
		}
		l.good = 0
		syncFolder(l.path)
	}
	framed := b.encode(make([]byte, headSize))
	binary.LittleEndian.PutUint32(framed, uint32(len(framed)-headSize))
	binary.LittleEndian.PutUint32(framed[4:], crc32.Checksum(framed[headSize:], castagnoli))
	if _, err = l.fd.WriteAt(framed, l.good); err == nil {
		err = l.fd.Sync()
	}
	if err != nil {
		return err
	}
	l.good += int64(len(framed))
	l.size.Add(int64(len(framed)))
	if l.good >= maxSegment {
		_ = l.sealLocked() // else the next batch tries it again
	}
	return nil
}

// seal ends the segment that is written, if there is one: it can be merged.
func (l *log) seal() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sealLocked()
}

func (l *log) sealLocked() error {
	if l.fd == nil {
		return nil
	}
	if err := l.fd.Truncate(l.good); err != nil { // a batch that failed may be written again elsewhere
		return err
	}
	_ = l.fd.Close()
	l.fd = nil
	return nil
}

// sealed returns the names of the sealed segments, and notes the size of the log.
func (l *log) sealed() (names []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	size := int64(0)
	files, _ := os.ReadDir(filepath.Dir(l.path))
	for _, file := range files {
		name := filepath.Join(filepath.Dir(l.path), file.Name())
		switch info, err := file.Info(); {
		case err != nil || !strings.HasPrefix(name, l.path+logMark):
		case l.fd != nil && name == l.fd.Name():
			size += l.good
		default:
			size += info.Size()
			names = append(names, name)
		}
	}
	l.size.Store(size)
	return names
}

// A segment is a sealed segment in memory, its sessions in the order of their keys.
// Sorting takes the memory of the segment, however many domains it has.
type segment struct {
	sessions [][]byte // see Batch
	texts    map[policyHash][]byte
	torn     int // bytes that are no whole batch, or no session
}

func readSegment(name string) (*segment, error) {
	b, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, unix.EIO) { // behind a broken sector nothing can be read
		return nil, err
	}
	s := &segment{texts: make(map[policyHash][]byte)}
	for len(b) >= headSize {
		n, sum := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
		if uint64(n) > uint64(len(b)-headSize) || crc32.Checksum(b[headSize:headSize+n], castagnoli) != sum {
			break
		}
		s.add(b[headSize : headSize+n])
		b = b[headSize+n:]
	}
	s.torn += len(b)
	slices.SortFunc(s.sessions, bytes.Compare)
	return s, nil
}

// syncFolder makes the names in the folder of a file last.
func syncFolder(path string) {
	if dir, err := os.Open(filepath.Dir(path)); err == nil {
		_ = dir.Sync()
		_ = dir.Close()
	}
}
