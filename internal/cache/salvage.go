package cache

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

const (
	scanWindow = 4 << 20 // bytes of a file that are read at once
	scanStep   = 4096    // bytes that are read at once where the disk reports errors
)

// A source is a damaged file whose policies are to be carried over.
type source struct {
	path   string
	report Report
}

// search carries over the policies of the sources. After a failed write it tries
// again a minute later.
func (s *Store) search() {
	for len(s.sources) > 0 {
		src := s.sources[0]
		err := s.searchIn(&src)
		if errors.Is(err, ErrClosed) {
			return
		}
		if err != nil {
			s.log.Error("policies cannot be carried over into the new cache file", "from", src.path, "err", err, "next", "it is tried again in a minute")
			return
		}
		s.report.Store(&src.report)
		s.log.Error("the policies of the damaged cache file were carried over", "path", s.path, "moved_to", src.report.MovedTo,
			"recovered", src.report.Recovered, "damaged", src.report.Damaged, "lost", src.report.Lost, "err", src.report.Why)
		s.sources = s.sources[1:]
	}
	if file := s.file.Load(); file == nil || !file.IsBroken() {
		s.salvaging.Store(false)
	}
}

// searchIn reads a damaged file from front to back for enforced policies, and makes
// them due at once. It ignores other modes: such a value may be an old one on a free
// page, and would hide that a newer enforced policy was lost.
//
// Then it reads the file once through bbolt, to find held policies that cannot be
// read. This may end the process, so the file leaves the list before.
func (s *Store) searchIn(src *source) error {
	fd, err := os.Open(src.path)
	if err == nil {
		err = s.scan(fd, &src.report)
		_ = fd.Close()
	}
	if errors.As(err, new(*os.PathError)) { // the file cannot be opened
		src.report.Why, err = errors.Join(src.report.Why, err), nil
	}
	if err == nil {
		err = s.update(func(w *writing) error { return s.putSearches(w.tx, s.sources[1:]) })
	}
	if err == nil && !errors.Is(src.report.Why, errCrashed) {
		err = s.findUnreadable(src)
	}
	return err
}

// putSearches stores the names of the files not searched yet.
func (s *Store) putSearches(tx *bbolt.Tx, sources []source) error {
	var names []string
	for _, src := range sources {
		if src.path != s.path {
			names = append(names, filepath.Base(src.path))
		}
	}
	return tx.Bucket(bucketMeta).Put(keySalvage, []byte(strings.Join(names, "\n")))
}

// scan carries over the enforced policies in the bytes of a file, wherever they
// are.
func (s *Store) scan(fd *os.File, report *Report) error {
	window := make([]byte, scanWindow)
	for at := int64(0); ; {
		window = readWindow(fd, window[:scanWindow], at)
		last := len(window) < scanWindow
		found, done := valuesIn(window, last)
		var recovered int
		err := s.update(func(w *writing) (err error) {
			recovered, err = w.recover(found)
			return err
		})
		if err != nil {
			return err
		}
		report.Recovered += recovered
		if last {
			return nil
		}
		at += int64(done)
	}
}

// readWindow fills window from the offset at; what the disk cannot read is zero.
func readWindow(r io.ReaderAt, window []byte, at int64) []byte {
	n, err := r.ReadAt(window, at)
	if err == nil || errors.Is(err, io.EOF) {
		return window[:n]
	}
	for from := 0; from < len(window); from += scanStep {
		part := window[from : from+scanStep]
		n, err := r.ReadAt(part, at+int64(from))
		if errors.Is(err, io.EOF) {
			return window[:from+n]
		}
		clear(part[n:])
	}
	return window
}

// valuesIn returns the enforced policies in window, and how many bytes it has used.
// A value that may continue behind the window is not used, unless the window is the
// last.
func valuesIn(window []byte, last bool) (found []*value, done int) {
	for at := 0; ; at += len(mark) {
		i := bytes.Index(window[at:], mark[:])
		if i < 0 {
			return found, max(at, len(window)-len(mark)+1)
		}
		at += i
		rest := window[at:]
		if !last && len(rest) < MaxValue {
			return found, at
		}
		if len(rest) >= headerSize {
			length := int(binary.LittleEndian.Uint32(rest[checksummed:]))
			if v, err := parseAny(rest[:min(length, len(rest))]); err == nil && policy.Mode(v.Mode) == policy.ModeEnforce {
				found = append(found, v)
			}
		}
	}
}

// recover stores found policies, except where the store has a newer one for the
// domain. It returns the number of new domains.
func (w *writing) recover(found []*value) (n int, err error) {
	for _, v := range found {
		old := w.policy.Get(v.domain)
		if known, err := parse(v.domain, old); err == nil && known.Sequence >= v.Sequence {
			continue
		}
		v.Lane, v.Due, v.FetchAt, v.FetchUnused = uint8(LaneNormal), w.now, w.now, w.now
		raw := v.bytes(v.Sequence)
		if footprint(v.domain, raw) > w.room {
			continue
		}
		if err := w.set(v.domain, raw); err != nil {
			return n, err
		}
		if old == nil {
			n++
		}
	}
	return n, nil
}

// findUnreadable puts a tombstone for each policy that a damaged file holds with a
// wrong checksum, and counts what was lost.
func (s *Store) findUnreadable(src *source) error {
	file, err := openToRead(src.path)
	if err != nil {
		return nil
	}
	defer file.close()
	_, err = file.pages(func(page []stored) error {
		damaged := 0
		err := s.update(func(w *writing) error {
			for _, p := range page {
				if _, err := parse(p.domain, p.raw); err == nil || w.policy.Get(p.domain) != nil {
					continue
				}
				if err := w.put(p.domain, newTombstone(p.domain, w.now)); err != nil {
					return err
				}
				damaged++
			}
			return nil
		})
		src.report.Damaged += damaged
		return err
	})
	src.report.Lost = max(int(file.state.Load().counts[policy.ModeEnforce])-src.report.Recovered-src.report.Damaged, 0)
	return err
}

// pages calls do with the values of the file, in the order of the domains. unread is
// an error from reading, err an error from do.
func (f *boltFile) pages(do func([]stored) error) (unread, err error) {
	for after := ""; ; {
		var page []stored
		unread = f.View(func(tx *bbolt.Tx) (err error) {
			page, err = readPage(tx, after, MaxPage)
			return err
		})
		if len(page) > 0 {
			if err := do(page); err != nil {
				return unread, err
			}
			after = string(page[len(page)-1].domain)
		}
		if unread != nil || len(page) == 0 {
			return unread, nil
		}
	}
}

// beats says whether a policy takes the place of another when files are merged:
// the newest fetch wins, and is never weaker.
func (w *writing) beats(v, known *value) bool {
	if a, b := w.protects(v), w.protects(known); a != b {
		return a
	}
	return v.Fetched > known.Fetched
}

// copyAll copies what one file holds into another. The caller has the turn, or the
// file is not in use yet. Where not all may fit, only enforced policies are copied.
func (s *Store) copyAll(from, to *boltFile) error {
	enforcedOnly := from.OpenedSize() > to.maxSize
	unread, err := from.pages(func(page []stored) error {
		return s.updateIn(to, func(w *writing) error {
			for _, p := range page {
				v, err := parse(p.domain, p.raw)
				if err != nil || enforcedOnly && policy.Mode(v.Mode) != policy.ModeEnforce || footprint(p.domain, p.raw) > w.room {
					continue
				}
				if known, err := parse(p.domain, w.policy.Get(p.domain)); err == nil && !w.beats(v, known) {
					continue
				}
				if err := w.put(p.domain, v); err != nil {
					return err
				}
			}
			return nil
		})
	})
	return errors.Join(unread, err, s.copyExemptions(from, to))
}
