package cache_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// A journal holds the lines of a log, and may be read while it is written.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

func logged(o cache.Options) (cache.Options, *journal) {
	b := new(journal)
	o.Log = slog.New(slog.NewTextHandler(b, nil))
	return o, b
}

// aMinute lets the store look at its path.
func aMinute() {
	time.Sleep(time.Minute + time.Second)
	synctest.Wait()
}

func TestTheCacheStaysInMemoryUntilItsPathCanBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "missing", "cache.db")
		o, log := logged(options())
		s := open(t, path, o)
		write(t, s, puts(record("a.example"))...)
		mustHold(t, s, record("a.example"))
		if err := s.WriteExemptions([]exempt.Exemption{{Domain: "x.example", Until: at(day)}}); err != nil {
			t.Fatal(err)
		}
		aMinute()
		aMinute()
		if why := s.Stats().MemoryOnly; !errors.Is(why, os.ErrNotExist) || strings.Count(log.String(), "kept in memory") != 1 {
			t.Errorf("%v\n%s", why, log)
		}
		if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		aMinute()
		if st := s.Stats(); st.MemoryOnly != nil || st.Policies() != 1 {
			t.Errorf("%+v", st)
		}
		closeStore(t, s)
		s = open(t, path, o)
		mustHold(t, s, record("a.example"))
		if list, err := s.Exemptions(); err != nil || len(list) != 1 {
			t.Error(list, err)
		}
	})
}

func TestALinkLeadsToTheFileAlsoWhereThatIsNotThereYet(t *testing.T) {
	dir := t.TempDir()
	for name, target := range map[string]string{"a.db": "data/a.db", "b.db": filepath.Join(dir, "data", "b.db"), "c.db": "b2.db", "b2.db": "data/c.db"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		s := open(t, filepath.Join(dir, "a.db"), options())
		write(t, s, puts(record("a.example"))...)
		if err := os.Mkdir(filepath.Join(dir, "data"), 0o700); err != nil {
			t.Fatal(err)
		}
		aMinute()
		if st := s.Stats(); st.MemoryOnly != nil {
			t.Error(st.MemoryOnly)
		}
		closeStore(t, s)
	})
	for _, name := range []string{"a.db", "b.db", "c.db"} {
		s := open(t, filepath.Join(dir, name), options())
		if st := s.Stats(); st.MemoryOnly != nil || name == "a.db" && st.Policies() != 1 {
			t.Errorf("%s: %+v", name, st)
		}
		closeStore(t, s)
		if info, err := os.Lstat(filepath.Join(dir, "data", name)); err != nil || !info.Mode().IsRegular() {
			t.Errorf("%s: %v", name, err)
		}
		if info, err := os.Lstat(filepath.Join(dir, name)); err != nil || info.Mode()&os.ModeSymlink == 0 {
			t.Errorf("%s: the link is gone: %v", name, err)
		}
	}
}

func TestAFileRemovedOrReplacedUnderTheStoreIsMadeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other, otherPath := openNew(t)
		newer, older := record("both.example"), record("both.example")
		newer.Fetched, newer.ID = at(time.Hour), "newer"
		write(t, other, puts(record("theirs.example"), older)...)
		closeStore(t, other)

		o, log := logged(options())
		path := filepath.Join(t.TempDir(), "cache.db")
		s := open(t, path, o)
		write(t, s, puts(record("ours.example"), newer)...)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		aMinute()
		write(t, s, puts(record("later.example"))...)
		if err := os.Rename(otherPath, path); err != nil {
			t.Fatal(err)
		}
		aMinute()
		if err := os.Rename(path, path+".away"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("no cache"), 0o600); err != nil {
			t.Fatal(err)
		}
		aMinute()
		if n := strings.Count(log.String(), `level=ERROR msg="the cache file was removed or replaced`); n != 3 || len(asides(t, path)) != 1 {
			t.Errorf("%d lines about it in the log\n%s", n, log)
		}
		closeStore(t, s)
		s = open(t, path, options())
		for _, r := range []*cache.Record{record("ours.example"), record("later.example"), record("theirs.example"), newer} {
			mustHold(t, s, r)
		}
	})
}

// Of two files the newest fetch of a domain counts, but none that is weaker.
func TestAFileThatReplacesAnotherWeakensNoPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other, otherPath := openNew(t)
		none := func(domain string) *cache.Record {
			r := record(domain)
			r.Mode, r.Fetched, r.Expires = policy.ModeNone, at(time.Hour), at(8*day)
			return r
		}
		write(t, other, puts(none("ours.example"), record("theirs.example"))...)
		closeStore(t, other)
		s, path := openNew(t)
		write(t, s, puts(record("ours.example"), none("theirs.example"))...)
		if err := os.Rename(otherPath, path); err != nil {
			t.Fatal(err)
		}
		aMinute()
		mustHold(t, s, record("ours.example"))
		mustHold(t, s, record("theirs.example"))
	})
}

func TestANewFileBelongsToTheOwnerOfItsFolder(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root makes files for others")
	}
	path := filepath.Join(t.TempDir(), "cache.db")
	if err := os.Chown(filepath.Dir(path), 4711, 4712); err != nil {
		t.Fatal(err)
	}
	for _, before := range []string{"", "no cache"} { // no file, and a damaged one
		if before != "" {
			if err := os.WriteFile(path, []byte(before), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s := open(t, path, options())
		for _, name := range []string{path, path + ".starts"} {
			if info, err := os.Stat(name); err != nil || !strings.Contains(fmt.Sprintf("%+v", info.Sys()), "Uid:4711 Gid:4712") {
				t.Errorf("%+v, %v", info, err)
			}
		}
		closeStore(t, s)
	}
}

// asides returns the files that were set aside.
func asides(t *testing.T, path string) []string {
	t.Helper()
	list, err := filepath.Glob(path + ".damaged-*")
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func settled(t *testing.T, s *cache.Store) {
	t.Helper()
	await(t, "the end of the salvage", func() bool { return !s.Stats().Salvaging })
}

func TestASalvageKeepsTheNewestEnforcedPoliciesAndMakesThemDue(t *testing.T) {
	s, path := openNew(t)
	first, second, testing, none := record("a.example"), record("a.example"), record("t.example"), record("n.example")
	second.ID, testing.Mode, none.Mode = "2", policy.ModeTesting, policy.ModeNone
	write(t, s, puts(first, testing, none)...)
	write(t, s, puts(second)...)
	if err := s.WriteExemptions([]exempt.Exemption{{Domain: "x.example", Until: at(day)}}); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[bytes.Index(b, []byte("t.example\x31"))+2]++ // a policy that cannot be read any more
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	o, log := logged(options())
	o.Now = func() time.Time { return at(time.Hour) }
	s = open(t, path, o)
	var hit cache.Hit
	if err := s.Lookup([]byte("t.example"), &hit); !errors.Is(err, cache.ErrUnreadable) {
		t.Fatal(err)
	}
	settled(t, s)
	second.Due, second.FetchAt, second.FetchUnusedAt = at(time.Hour), at(time.Hour), at(time.Hour)
	mustHold(t, s, second)
	mustMiss(t, s, "n.example")
	if err := s.Lookup([]byte("t.example"), &hit); !errors.As(err, new(*cache.DamagedError)) {
		t.Error(err)
	}
	expectDue(t, s, cache.LaneNormal, at(time.Hour), 10, time.Time{}, "a.example", "t.example")
	if list, err := s.Exemptions(); err != nil || len(list) != 1 {
		t.Error(list, err)
	}
	r := s.Stats().Salvage
	if r == nil || r.Recovered != 1 || r.Damaged != 1 || r.MovedTo != asides(t, path)[0] || strings.Count(log.String(), "were carried over") != 1 {
		t.Errorf("%+v\n%s", r, log)
	}
	closeStore(t, s)
	o.Now = func() time.Time { return at(8 * day) }
	s = open(t, path, o)
	mustMiss(t, s, "t.example") // a week later
}

func TestAnInterruptedSalvageContinuesAfterTheNextStart(t *testing.T) {
	s, path := openNew(t)
	write(t, s, puts(record("a.example"))...)
	closeStore(t, s)
	if err := os.Rename(path, path+".damaged-20270101T000000"); err != nil {
		t.Fatal(err)
	}
	s = open(t, path, options())
	fresh := record("b.example")
	write(t, s, puts(fresh)...)
	closeStore(t, s)
	edit(t, path, func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("meta")).Put([]byte("salvage"), []byte("cache.db.damaged-20270101T000000"))
	})
	s = open(t, path, options())
	settled(t, s)
	mustHold(t, s, fresh)
	if r, err := s.Get("a.example"); err != nil || !r.Due.Equal(noon) {
		t.Errorf("%+v, %v", r, err)
	}
	closeStore(t, s)
	s = open(t, path, options())
	if s.Stats().Salvage != nil {
		t.Error("it is searched again")
	}
}

func TestAFileOfANewerProgramIsSetAside(t *testing.T) {
	s, path := openNew(t)
	closeStore(t, s)
	edit(t, path, func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("meta")).Put([]byte("schema"), binary.LittleEndian.AppendUint32(nil, 99))
	})
	if _, err := cache.OpenReadOnly(path); !errors.As(err, new(*cache.SchemaError)) {
		t.Error(err)
	}
	s = open(t, path, options())
	settled(t, s)
	write(t, s, puts(record("a.example"))...)
	if r := s.Stats().Salvage; r == nil || !strings.Contains(r.Advice(), r.MovedTo+" to "+path) {
		t.Errorf("%+v", r)
	}
}

func TestFewDamagedFilesAreKeptAndEachForAWeek(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache.db")
	now := noon
	o := options()
	o.Now = func() time.Time { return now }
	damage := func() (memoryOnly error) {
		if err := os.WriteFile(path, []byte("no cache"), 0o600); err != nil {
			t.Fatal(err)
		}
		s := open(t, path, o)
		defer closeStore(t, s)
		return s.Stats().MemoryOnly
	}
	for range 5 {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
	}
	before := asides(t, path)
	if err := damage(); err == nil || !slices.Equal(asides(t, path), before) {
		t.Error(err, asides(t, path))
	}
	now = at(8 * day)
	if err := damage(); err != nil || len(asides(t, path)) != 5 || slices.Contains(asides(t, path), before[0]) {
		t.Error(err, asides(t, path))
	}
}

func TestTenStartsThatCrashWithinAMinuteCountAsDamageOnceADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "cache.db")
		now := noon
		o := options()
		o.Now = func() time.Time { return now }
		s := open(t, path, o)
		write(t, s, puts(record("a.example"))...)
		closeStore(t, s)
		marker, crashed := path+".starts", []byte(nil)
		start := func() (setAside bool) {
			if crashed != nil { // Close has not been called
				if err := os.WriteFile(marker, crashed, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s = open(t, path, o)
			defer closeStore(t, s)
			settled(t, s)
			crashed, _ = os.ReadFile(marker)
			return s.Stats().Salvage != nil
		}
		for i := range 10 {
			if start() {
				t.Fatalf("set aside at start %d", i)
			}
		}
		if !start() {
			t.Fatal("not set aside after ten crashes")
		}
		for i := range 15 {
			if start() {
				t.Fatalf("set aside again, at start %d", i)
			}
		}
		now = at(25 * time.Hour)
		if !start() {
			t.Error("not set aside after a day")
		}
		if r, err := s.Get("a.example"); !errors.Is(err, cache.ErrClosed) {
			t.Error(r, err)
		}
		crashed = []byte("9 0")
		start()
		s = open(t, path, o)
		aMinute() // a start that lasts
		if b, _ := os.ReadFile(marker); bytes.HasPrefix(b, []byte("1")) {
			t.Errorf("%q", b)
		}
	})
}
