package cache_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
)

// victims is how many enforced policies the files hold that are damaged here:
// enough for branch pages, and some with overflow pages.
const victims = 400

func victim(i int) *cache.Record {
	r := record(fmt.Sprintf("d%03d.example", i))
	r.Text = bytes.Repeat([]byte("text "), 20+i%50)
	if i%40 == 0 {
		r.Text = bytes.Repeat([]byte("text "), 2000)
	}
	return r
}

// wholeFile returns the bytes of a file with the victims, written in several
// commits.
func wholeFile(t testing.TB) []byte {
	t.Helper()
	s, path := openNew(t)
	for from := 0; from < victims; from += 50 {
		var ops []cache.Op
		for i := from; i < from+50; i++ {
			ops = append(ops, cache.Op{Put: victim(i)})
		}
		write(t, s, ops...)
	}
	closeStore(t, s)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// bbolt makes the file longer than its pages; the metas say how many there are.
	used := max(binary.LittleEndian.Uint64(b[56:]), binary.LittleEndian.Uint64(b[4096+56:]))
	return b[:used*4096]
}

var valueMark = []byte("\x00\x01\xffSTS\xfe")

// surviving returns the domains of which there is a value with the right checksum
// in the bytes.
func surviving(b []byte) map[string]bool {
	found := map[string]bool{}
	for at := 0; ; at++ {
		i := bytes.Index(b[at:], valueMark)
		if i < 0 {
			return found
		}
		at += i
		if len(b)-at < 116 || b[at+7] != 1 {
			continue
		}
		v := b[at:]
		if n := int(binary.LittleEndian.Uint32(v[12:])); n >= 116 && n <= len(v) &&
			crc32.Checksum(v[12:n], crc32.MakeTable(crc32.Castagnoli)) == binary.LittleEndian.Uint32(v[8:]) {
			found[string(v[116:116+int(v[102])])] = true
		}
	}
}

// A harm is something that happens to a file.
type harm struct {
	name string
	do   func(b []byte) []byte
	// A bit that flips in the number of a page's elements hides some of them, and
	// bbolt has no checksum of it: a few policies may be missed and then lost.
	mayHide bool
}

func harms(b []byte) (list []harm) {
	add := func(name string, do func(b []byte) []byte) {
		list = append(list, harm{name, do, strings.HasPrefix(name, "bits")})
	}
	over := func(from, to int, with func([]byte)) func([]byte) []byte {
		return func(b []byte) []byte {
			with(b[from:min(to, len(b))])
			return b
		}
	}
	fills := []struct {
		name string
		fill func([]byte)
	}{
		{"zeroes", func(b []byte) { clear(b) }},
		{"ones", func(b []byte) {
			for i := range b {
				b[i] = 0xff
			}
		}},
		{"noise", func(b []byte) {
			rnd := rand.New(rand.NewPCG(uint64(len(b)), 3))
			for i := range b {
				b[i] = byte(rnd.Uint32())
			}
		}},
	}
	pages := len(b) / 4096
	for p := 0; p < pages; p += 1 + pages/40 {
		add(fmt.Sprintf("cut to %d pages", p), func(b []byte) []byte { return b[:p*4096] })
	}
	for _, n := range []int{1, 4095, 4097, 20_000, len(b) - 1} {
		add(fmt.Sprintf("cut to %d bytes", n), func(b []byte) []byte { return b[:n] })
	}
	for _, f := range fills {
		add("all "+f.name, over(0, len(b), f.fill))
		add(f.name+" over both meta pages", over(0, 8192, f.fill))
		add(f.name+" over the middle", over(len(b)/3, len(b)*2/3, f.fill))
		add(f.name+" over the first meta page", over(0, 4096, f.fill))
		add(f.name+" over the second meta page", over(4096, 8192, f.fill))
		add(f.name+" over the first half", over(0, len(b)/2, f.fill))
		add(f.name+" over a few bytes in the middle", over(len(b)/2+100, len(b)/2+140, f.fill))
		add(f.name+" over all but the meta pages", over(8192, len(b), f.fill))
		for p := 2; p < pages; p += 1 + pages/30 {
			add(fmt.Sprintf("%s over page %d", f.name, p), over(p*4096, (p+1)*4096, f.fill))
		}
	}
	add("a text file", func([]byte) []byte { return []byte(strings.Repeat("not a database\n", 2000)) })
	add("each page moved by one", func(b []byte) []byte { return append(b[4096:], make([]byte, 4096)...) })
	flip := func(b []byte, at, bit int) {
		// Not in a branch page's references: pages that lead back to themselves end the
		// process, and have a test of their own.
		if page := b[at/4096*4096:]; binary.LittleEndian.Uint16(page[8:]) != 1 || at%4096 < 16 || at%16 < 8 {
			b[at] ^= 1 << bit
		}
	}
	for seed := 0; seed < 100; seed++ {
		rnd := rand.New(rand.NewPCG(uint64(seed), 9))
		add(fmt.Sprintf("bits flipped, seed %d", seed), func(b []byte) []byte {
			for range 1 + seed*seed/4 {
				flip(b, rnd.IntN(len(b)), rnd.IntN(8))
			}
			return b
		})
		add(fmt.Sprintf("bits flipped in the headers of pages, seed %d", seed), func(b []byte) []byte {
			for range 4 {
				flip(b, rnd.IntN(pages)*4096+rnd.IntN(200), rnd.IntN(8))
			}
			return b
		})
	}
	return list
}

// answers looks all victims up. None may be other than it was, and none that
// survives may be said not to be there. It returns how many are whole.
func answers(t testing.TB, s *cache.Store, survives map[string]bool, mayHide bool) (whole int) {
	t.Helper()
	var hit cache.Hit
	for i := range victims {
		want := victim(i)
		err := s.Lookup([]byte(want.Domain), &hit)
		switch {
		case err == nil:
			whole++
			if !bytes.Equal(hit.Match, want.Match) || hit.Expires != want.Expires.Unix() {
				t.Errorf("%s: %+v", want.Domain, hit)
			}
		case err == cache.ErrNotFound && survives[want.Domain] && !mayHide:
			t.Errorf("%s: %v", want.Domain, err)
		case err != cache.ErrNotFound && !errors.Is(err, cache.ErrUnreadable) && !errors.As(err, new(*cache.DamagedError)):
			t.Errorf("%s: %v", want.Domain, err)
		}
	}
	return whole
}

// writeAtLast writes a record: damage that no lookup has met may fail a write or
// two before the file is replaced.
func writeAtLast(t testing.TB, s *cache.Store, r *cache.Record) {
	t.Helper()
	await(t, "a write", func() bool {
		_, err := s.Write(puts(r))
		if err != nil && !errors.Is(err, cache.ErrUnreadable) {
			t.Fatal(err)
		}
		return err == nil
	})
}

// survived checks a store whose file was damaged, now and after a restart.
func survived(t *testing.T, s *cache.Store, path string, harmed []byte, mayHide bool) {
	t.Helper()
	survives := surviving(harmed)
	round := func() int {
		whole := answers(t, s, survives, mayHide) // first: a write may take the free pages where something survives
		if _, err := s.Purge(at(-day), 10); err != nil && !errors.Is(err, cache.ErrUnreadable) {
			t.Error(err)
		}
		if _, _, err := s.Due(cache.LaneNormal, at(2*day), cache.MaxPage); err != nil && !errors.Is(err, cache.ErrUnreadable) {
			t.Error(err)
		}
		return whole
	}
	for met := uint64(1); met != s.Stats().Unreadable; { // until nothing is met that was not known
		met = s.Stats().Unreadable
		round()
		writeAtLast(t, s, record("fresh.example"))
		await(t, "the end of the salvage", func() bool { return !s.Stats().Salvaging })
	}
	delete(survives, "fresh.example")
	least := len(survives)
	if mayHide {
		least = least * 9 / 10
	}
	for range 2 {
		if whole := round(); s.Stats().Salvage != nil && whole < least {
			t.Errorf("%d policies are left; %d survived", whole, len(survives))
		}
		if err := s.Lookup([]byte("fresh.example"), new(cache.Hit)); err != nil {
			t.Errorf("what was written: %v", err)
		}
		closeStore(t, s)
		s = open(t, path, options())
	}
}

func damageMatrix(t *testing.T, every bool) {
	whole := wholeFile(t)
	for i, h := range harms(whole) {
		if !every && i%15 != 0 {
			continue
		}
		harmed := h.do(bytes.Clone(whole))
		t.Run("closed, "+h.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "cache.db")
			if err := os.WriteFile(path, harmed, 0o600); err != nil {
				t.Fatal(err)
			}
			survived(t, open(t, path, options()), path, harmed, h.mayHide)
		})
		t.Run("open, "+h.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "cache.db")
			if err := os.WriteFile(path, whole, 0o600); err != nil {
				t.Fatal(err)
			}
			s := open(t, path, options())
			overwrite(t, path, harmed)
			survived(t, s, path, harmed, h.mayHide)
		})
	}
}

func TestReadablePoliciesSurviveADamagedFile(t *testing.T) { damageMatrix(t, false) }

func sealOld(v []byte) {
	binary.LittleEndian.PutUint32(v[8:], crc32.Checksum(v[12:], crc32.MakeTable(crc32.Castagnoli)))
}
