package cache

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
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
	damage error
}

// search carries over what the sources hold. What cannot be written now is tried
// again after the next minute.
func (s *Store) search() {
	for len(s.sources) > 0 {
		src := s.sources[0]
		err := s.searchIn(src, s.sources[1:])
		if errors.Is(err, ErrClosed) {
			return
		}
		if err != nil {
			s.log.Error("policies cannot be carried over into the new cache file", "from", src.path, "err", err, "next", "it is tried again in a minute")
			return
		}
		s.sources = s.sources[1:]
	}
	s.salvaging.Store(false)
}

// putSearches stores the names of the files that are still to be searched.
func (s *Store) putSearches(tx *bbolt.Tx, sources []source) error {
	var names []string
	for _, src := range sources {
		if src.path != s.path {
			names = append(names, filepath.Base(src.path))
		}
	}
	return tx.Bucket(bucketMeta).Put(keySalvage, []byte(strings.Join(names, "\n")))
}

// searchIn reads a damaged file from front to back for enforced policies. Those of
// other modes are left: they may be old ones, from free pages, and take away the
// protection of an enforced policy that was lost. What is found is due at once.
//
// Then it goes once through the file by bbolt, for policies that are held and
// cannot be read. That may end the process, so the file is off the list before.
func (s *Store) searchIn(src source, rest []source) error {
	report := s.newReport(src)
	if fd, err := os.Open(src.path); err != nil {
		report.Why = errors.Join(report.Why, err)
	} else {
		defer fd.Close()
		if err := s.scan(fd, report); err != nil {
			return err
		}
	}
	if err := s.update(func(w *writing) error { return s.putSearches(w.tx, rest) }); err != nil {
		return err
	}
	if err := s.findUnreadable(src, report); err != nil {
		return err
	}
	s.report.Store(report)
	s.log.Error("the policies of the damaged cache file were carried over", "path", s.path, "moved_to", report.MovedTo,
		"recovered", report.Recovered, "damaged", report.Damaged, "lost", report.Lost, "err", report.Why)
	return nil
}

func (s *Store) newReport(src source) *Report {
	report := &Report{Why: src.damage, Lost: -1}
	if src.path != s.path {
		report.MovedTo = src.path
	}
	return report
}

// scan carries over the enforced policies in the bytes of a file, wherever they
// are.
func (s *Store) scan(fd *os.File, report *Report) error {
	window := make([]byte, scanWindow)
	for at := int64(0); ; {
		window = readWindow(fd, window[:scanWindow], at)
		last := len(window) < scanWindow
		found, done := valuesIn(window, last)
		n := 0
		err := s.update(func(w *writing) (err error) {
			n, err = w.recover(found)
			return err
		})
		if err != nil || last {
			report.Recovered += n
			return err
		}
		report.Recovered += n
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
		clear(part[n:])
		if errors.Is(err, io.EOF) {
			return window[:from+n]
		}
	}
	return window
}

// valuesIn returns copies of the enforced policies in window, and how many of its
// bytes are done with: not a value that may go on behind it, unless it is the last.
func valuesIn(window []byte, last bool) (found []value, done int) {
	for at := 0; ; {
		i := bytes.Index(window[at:], mark)
		if i < 0 {
			return found, max(at, len(window)-len(mark)+1)
		}
		at += i
		rest := window[at:]
		if !last && len(rest) < MaxValue {
			return found, at
		}
		at += len(mark)
		if len(rest) < headerSize {
			continue
		}
		v, err := parse(rest[:min(value(rest).size32(offLength), len(rest))])
		if err == nil && v.mode() == policy.ModeEnforce {
			found = append(found, bytes.Clone(v))
		}
	}
}

// recover puts policies that were found, but none for a domain of which there is a
// newer one, and returns how many domains came in.
func (w *writing) recover(found []value) (n int, err error) {
	for _, v := range found {
		domain := v.domain()
		old := w.policy.Get(domain)
		if known, err := parseAt(domain, old); err == nil && known.sequence() >= v.sequence() || footprint(domain, v) > w.room {
			continue
		}
		v[offLane] = byte(LaneNormal)
		for _, offset := range []int{offDue, offFetchAt, offFetchUnusedAt} {
			v.put(offset, w.now)
		}
		v.seal(v.sequence())
		if err := w.set(domain, v); err != nil {
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
func (s *Store) findUnreadable(src source, report *Report) error {
	if errors.Is(src.damage, errCrashed) {
		return nil
	}
	file, err := openToRead(src.path)
	if err != nil {
		return nil
	}
	defer file.close()
	_, err = file.batches(func(batch []change) error {
		n := 0
		err := s.update(func(w *writing) error {
			for _, c := range batch {
				_, err := parseAt(c.domain, c.raw)
				if err == nil || len(c.domain) > MaxDomain || w.policy.Get(c.domain) != nil {
					continue
				}
				if err := w.put(newTombstone(c.domain, err, w.now)); err != nil {
					return err
				}
				n++
			}
			return nil
		})
		report.Damaged += n
		return err
	})
	report.Lost = max(int(file.state.Load().counts[policy.ModeEnforce])-report.Recovered-report.Damaged, 0)
	return err
}

// bury replaces a damaged value by a tombstone.
func (s *Store) bury(domain string) {
	err := s.update(func(w *writing) error {
		raw := w.policy.Get([]byte(domain))
		_, err := parseAt([]byte(domain), raw)
		if err == nil || raw == nil {
			return nil
		}
		return w.put(newTombstone([]byte(domain), err, w.now))
	})
	if err != nil && !errors.Is(err, ErrClosed) {
		s.log.Warn("a damaged policy cannot be replaced by a note", "domain", domain, "err", err)
	}
}

// batches calls do with what the file holds, in the order of the domains and a
// limited number at a time. unread is an error of reading; err is that of do.
func (f *boltFile) batches(do func([]change) error) (unread, err error) {
	for after := ""; ; {
		var batch []change
		size := 0
		unread := f.view(func(tx *bbolt.Tx) error {
			return ascend(tx, bucketPolicy, startAfter(after), func(k, raw []byte) ([]byte, error) {
				if len(batch) == MaxPage || size >= maxListBytes {
					return nil, errStop
				}
				batch = append(batch, change{domain: bytes.Clone(k), raw: bytes.Clone(raw)})
				size += len(raw)
				return nil, nil
			})
		})
		if len(batch) > 0 {
			if err := do(batch); err != nil {
				return unread, err
			}
			after = string(batch[len(batch)-1].domain)
		}
		if unread != nil || len(batch) == 0 {
			return unread, nil
		}
	}
}

// copyAll copies what one file holds into another. The caller has the turn, or the
// file is not used yet. A file in memory takes enforced policies first.
func (s *Store) copyAll(from, to *boltFile) error {
	enforcedOnly := from.info.Size() > to.maxSize
	unread, err := from.batches(func(batch []change) error {
		return s.updateIn(to, func(w *writing) error {
			for _, c := range batch {
				v, err := parseAt(c.domain, c.raw)
				known, none := parseAt(c.domain, w.policy.Get(c.domain))
				if err != nil || none == nil && known.time(offFetched) >= v.time(offFetched) ||
					enforcedOnly && v.mode() != policy.ModeEnforce || footprint(c.domain, v) > w.room {
					continue
				}
				if err := w.put(c); err != nil {
					return err
				}
			}
			return nil
		})
	})
	return errors.Join(unread, err, s.copyExemptions(from, to))
}

// dropSource forgets a source that the current file has taken over.
func (s *Store) dropSource(path string) {
	s.sources = slices.DeleteFunc(s.sources, func(src source) bool { return src.path == path })
}
