package cache

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// lost is the number of policies lost for the log.
func (r *Report) lost() any {
	return r.Lost
}

const (
	carryCount = 1000    // policies in one commit of a salvage
	carryBytes = 4 << 20 // and bytes
	scanWindow = 4 << 20 // bytes of the file read at once
	scanStep   = 4096    // bytes read at once where the disk reports errors

	// memorySize is MaxSize at most where there is no room on the disk to save a
	// damaged file to, and the cache is in memory.
	memorySize = 128 << 20
)

// damage reports whether err, of opening a file, means that the file is no good,
// and not that there is no space, no memory or no such directory.
func damage(err error) bool {
	for _, bad := range []error{
		bolterrors.ErrInvalid, bolterrors.ErrVersionMismatch, bolterrors.ErrChecksum,
		unix.EIO, fs.ErrPermission,
	} {
		if errors.Is(err, bad) {
			return true
		}
	}
	return unreadable(err)
}

// salvage makes a new file of what can be read of the one at the store's path,
// which cannot be opened because of why, and puts it in that one's place.
func (s *Store) salvage(why error) (*boltFile, *snapshot, Report, error) {
	from, sn, whole, err := openMapped(s.path)
	if from != nil {
		s.log.Error("the cache file is damaged; saving what can be read", "path", s.path, "err", why)
	}
	if err != nil {
		s.log.Error("nothing of the cache file can be read", "path", s.path, "err", err)
	}
	src := source{current: sn, complete: whole == 2}
	if from != nil {
		src.file = from.fd
		defer from.close()
	}
	file, next, report, err := s.replaceFile(src)
	if noRoom(err) && s.removeAside() {
		file, next, report, err = s.replaceFile(src)
	}
	if err != nil {
		s.log.Error("what can be read of the damaged cache file cannot be saved to the disk; going on without a file",
			"path", s.path, "err", err)
		file, next, report, err = s.toMemory(src)
	}
	report.Why = why
	if err != nil {
		return nil, nil, report, fmt.Errorf("save what can be read of the damaged file: %w", err)
	}
	s.logReport(report)
	return file, next, report, nil
}

// noRoom reports whether err means that the disk is full.
func noRoom(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG)
}

func (s *Store) logReport(r Report) {
	advice := r.Advice()
	if r.MovedTo == "" {
		s.log.Error("the damaged cache file was left in its place, and what could be read of it is in memory only: nothing that is found now outlives the daemon",
			"path", s.path, "recovered", r.Recovered, "damaged", r.Damaged, "lost", r.lost(), "err", r.Why,
			"next", cmp.Or(advice, "make room on the disk, or see who owns the cache's folder, and restart the daemon"))
		return
	}
	what := "the damaged cache file was moved aside, and a new one was started"
	if r.Lost < 0 {
		what = "the cache file could not be opened; it was moved aside, and a new one was started"
	}
	args := []any{"path", s.path, "moved_to", r.MovedTo, "recovered", r.Recovered, "damaged", r.Damaged, "lost", r.lost(), "err", r.Why}
	if advice != "" {
		args = append(args, "next", advice)
	}
	s.log.Error(what, args...)
}

// A source is a damaged file.
type source struct {
	file     *os.File  // nil: it cannot be read at all
	current  *snapshot // nil: its pages do not show where they begin
	complete bool      // current is the newest state
}

// replaceFile carries over what can be read of src into a new file, and puts
// that in the place of the file at the store's path, which is moved aside.
func (s *Store) replaceFile(src source) (*boltFile, *snapshot, Report, error) {
	var report Report
	path := s.path + rebuildSuffix
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, report, err
	}
	file, sn, report, err := s.carryInto(path, 0, src)
	if err != nil {
		if e := os.Remove(path); !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
		return nil, nil, report, err
	}
	if report.MovedTo, err = putInPlace(path, s.path, time.Now()); err != nil {
		file.retire(sn)
		return nil, nil, report, errors.Join(err, file.close(), os.Remove(path))
	}
	if err := syncDir(s.path); err != nil { // too late to turn back
		s.log.Warn("cannot sync the directory of the cache file", "path", s.path, "err", err)
	}
	s.pruneAside(report.MovedTo)
	return file, sn, report, nil
}

// carryInto carries over what can be read of src into a new file at path. Most,
// unless it is 0, is how many bytes it may take: then only what protects mail is
// carried over.
func (s *Store) carryInto(path string, most int64, src source) (*boltFile, *snapshot, Report, error) {
	var report Report
	file, err := openBoltFile(path, s.options.MaxSize, false)
	if err != nil {
		return nil, nil, report, err
	}
	c := carrier{store: s, to: file, most: most}
	if err = c.carry(src); err == nil {
		report.Recovered, report.Damaged, report.Lost = c.recovered, c.damaged, c.lost(src)
		file.db.NoSync, file.db.NoGrowSync = false, false
		err = c.finish()
	}
	var sn *snapshot
	if err == nil {
		sn, err = file.snapshot()
	}
	if err != nil {
		return nil, nil, report, errors.Join(err, file.close())
	}
	return file, sn, report, nil
}

// toMemory carries over what can be read of src into a file without a name, in
// memory: where there is no room for another on the disk, lookups must be
// answered all the same, and the damaged file stays where it is for later.
func (s *Store) toMemory(src source) (*boltFile, *snapshot, Report, error) {
	fd, err := unix.MemfdCreate("sts-tlsmap-cache", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, nil, Report{}, fmt.Errorf("make a cache in memory: %w", err)
	}
	defer unix.Close(fd) // the name opens it once more
	s.options.MaxSize = min(s.options.MaxSize, memorySize)
	return s.carryInto(fmt.Sprintf("/proc/self/fd/%d", fd), memorySize/2, src)
}

// A carrier carries policies over, a batch at a time.
type carrier struct {
	store     *Store
	to        *boltFile
	batch     []Value
	asTheyAre []put // damaged ones, under their keys
	bytes     int
	scanning  bool
	enforced  bool  // only enforced policies are taken from the scan
	most      int64 // bytes of enforced policies, if there is no room for all; 0: there is
	taken     int64

	counts    counts
	newest    int64
	sequence  uint64
	recovered int
	damaged   int
	broken    int // values whose domain is not known
}

// carry goes through the pages in the order of the domains first, and over
// those that cannot be read. If anything was amiss it then looks through the
// file for values, wherever they stand. The newest of each domain wins.
//
// Not on the pages that are free, though: what stands there was replaced or
// deleted. Where it cannot be told which those are, only enforced policies are
// taken, since what is found may be an older version: one of another mode could
// stand in for an enforced policy that was lost with its page, and take away the
// protection, while an enforced one that has been replaced errs on the safe side.
func (c *carrier) carry(src source) error {
	amiss := src.current == nil || !src.complete
	if src.current != nil {
		bad, err := c.carryTree(src.current)
		if err == nil {
			err = c.carryExemptions(src.current)
		}
		if err != nil {
			return err
		}
		amiss = amiss || bad > 0 || c.damaged+c.broken > 0 || int64(c.recovered) < src.current.policies()
	}
	if amiss && src.file != nil {
		free, err := freePages(src.file)
		if err != nil || !src.complete {
			free, c.enforced = nil, true
		}
		if err := c.carryScan(src.file, free); err != nil {
			return err
		}
	}
	return nil
}

func (sn *snapshot) policies() int64 {
	var n int64
	for _, m := range sn.counts {
		n += m
	}
	return n
}

func (c *carrier) carryTree(sn *snapshot) (bad uint64, err error) {
	w := newWalk(&sn.policy, nil)
	for more := true; more; {
		more, err = w.next(func(k, raw []byte) error {
			v, err := parse(raw)
			switch {
			case err == nil: // under its own domain, should the key be another
				c.batch = append(c.batch, bytes.Clone(v))
			case len(k) <= MaxDomain && len(raw) > 0 && len(raw) <= MaxValue:
				c.asTheyAre = append(c.asTheyAre, put{domain: bytes.Clone(k), raw: bytes.Clone(raw)})
			default:
				c.broken++
			}
			c.bytes += len(raw)
			return nil
		})
		if err != nil && !unreadable(err) {
			return w.bad, err
		}
		if err := c.flushFull(); err != nil {
			return w.bad, err
		}
	}
	return w.bad, c.flush()
}

// carryScan looks for values in the bytes of the file, but for the free pages.
func (c *carrier) carryScan(f *os.File, free *freeSet) error {
	c.scanning = true
	info, err := f.Stat()
	if err != nil {
		return err
	}
	window := make([]byte, 0, scanWindow)
	for at := int64(0); at < info.Size(); {
		want := min(scanWindow, info.Size()-at)
		window = readWindow(f, window[:want], at)
		// A file may turn out to be shorter than it was said to be.
		last := at+want >= info.Size() || int64(len(window)) < want
		free.blank(window, at)
		used := c.scan(window, last)
		if err := c.flush(); err != nil {
			return err
		}
		if last {
			break
		}
		at += int64(used)
	}
	return nil
}

// readWindow fills window from offset at; what cannot be read is zero.
func readWindow(f *os.File, window []byte, at int64) []byte {
	n, err := f.ReadAt(window, at)
	if err == nil || errors.Is(err, io.EOF) {
		return window[:n]
	}
	for from := 0; from < len(window); from += scanStep {
		part := window[from:min(from+scanStep, len(window))]
		if n, err := f.ReadAt(part, at+int64(from)); err != nil {
			clear(part[n:])
		}
	}
	return window
}

// scan adds the values in window to the batch, and returns how many bytes of it
// are done with: not a value that may go on behind it, unless this is the last.
func (c *carrier) scan(window []byte, last bool) int {
	at := 0
	for {
		i := bytes.Index(window[at:], mark)
		if i < 0 {
			return max(at, len(window)-len(mark)+1)
		}
		at += i
		rest := window[at:]
		if !last && len(rest) < MaxValue {
			return at
		}
		v, ok := valueAtFront(rest)
		if !ok {
			c.broken++
			at += len(mark)
			continue
		}
		at += len(v)
		if !c.enforced {
			c.batch = append(c.batch, bytes.Clone(v))
		} else if v.Mode() == policy.ModeEnforce {
			c.batch = append(c.batch, v.dueAt(c.store.options.Now()))
		}
	}
}

// valueAtFront returns the value with which b begins.
func valueAtFront(b []byte) (Value, bool) {
	if len(b) < headerSize {
		return nil, false
	}
	length := uint64(binary.LittleEndian.Uint32(b[offLength:]))
	if length > uint64(len(b)) {
		return nil, false
	}
	v, err := parse(b[:length])
	return v, err == nil
}

func (c *carrier) flushFull() error {
	if len(c.batch)+len(c.asTheyAre) < carryCount && c.bytes < carryBytes {
		return nil
	}
	return c.flush()
}

func (c *carrier) flush() error {
	select {
	case <-c.store.closing:
		return ErrClosed
	default:
	}
	if len(c.batch)+len(c.asTheyAre) == 0 {
		return nil
	}
	err := c.to.update(func(tx *bbolt.Tx) error {
		b := bucketsOf(tx)
		if !c.scanning {
			b.policy.FillPercent = 0.9 // they come in order
		}
		for _, v := range c.batch {
			if err := c.put(b, v); err != nil {
				return err
			}
		}
		for _, d := range c.asTheyAre {
			if err := c.putDamaged(b, d); err != nil {
				return err
			}
		}
		return nil
	})
	clear(c.batch)
	clear(c.asTheyAre)
	c.batch, c.asTheyAre, c.bytes = c.batch[:0], c.asTheyAre[:0], 0
	return err
}

// put puts v unless there is a newer one of its domain, or a damaged one: that
// a newer one was lost does not make an older one right.
func (c *carrier) put(b buckets, v Value) error {
	domain := v.domain()
	change := put{domain: domain, raw: v}
	if c.most > 0 {
		if v.Mode() != policy.ModeEnforce || c.taken > c.most {
			return nil
		}
		c.taken += footprint(domain, v)
	}
	if old := b.policy.Get(domain); old != nil {
		known, err := parseAt(domain, old)
		if err != nil || known.sequence() >= v.sequence() {
			return nil
		}
		change.old = bytes.Clone(known)
		c.counts[countOf(known)]--
		c.recovered--
	}
	c.counts[countOf(v)]++
	c.recovered++
	c.newest = max(c.newest, v.newest())
	c.sequence = max(c.sequence, v.sequence())
	return b.store(change)
}

// putDamaged puts a value that cannot be read under its key, so that it stays
// known that there was a policy. It is due at once, and ends when its header
// says, or after the longest time that a policy can last.
func (c *carrier) putDamaged(b buckets, d put) error {
	if b.policy.Get(d.domain) != nil {
		return nil
	}
	now := c.store.options.Now().Unix()
	lane, expires := Lane(0), now+int64(policy.MaxMaxAge/time.Second)
	if len(d.raw) >= headerSize {
		if d.raw.lane() < maxLanes {
			lane = d.raw.lane()
		}
		if at := d.raw.Expires(); at > 0 && at < expires {
			expires = at
		}
	}
	c.counts[countOf(d.raw)]++
	c.damaged++
	if err := b.policy.Put(d.domain, d.raw); err != nil {
		return err
	}
	return b.index(keys{}, keys{
		due:    dueKey(lane, expires, now, d.domain),
		expiry: expiryKey(expires, d.domain),
		evict:  evictKey(classEnforced, now, d.domain),
	})
}

// lost returns how many policies there were and are not now: by the file's own
// count, if that can be read, else by the values that were found broken.
func (c *carrier) lost(src source) int {
	if src.current == nil {
		return c.broken
	}
	return max(int(src.current.policies())-c.recovered-c.damaged, 0)
}

func (c *carrier) finish() error {
	return c.to.update(func(tx *bbolt.Tx) error {
		return bucketsOf(tx).seal(c.counts, c.newest, c.sequence)
	})
}
