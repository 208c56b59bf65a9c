package cache

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

func TestDueReturnsThoseWithTheLeastLifeLeftFirst(t *testing.T) {
	s := openNew(t)
	var ops []Op
	for i := range 50 {
		r := record(fmt.Sprintf("d%02d.example", i))
		r.Due = at(-time.Duration(i) * time.Minute)
		r.Expires = at(time.Duration(50-i) * day)
		ops = append(ops, Op{Put: r})
	}
	mustWrite(t, s, ops...)
	due, next, err := s.Due(0, noon, 3)
	if err != nil || len(due) != 3 || due[0].Domain != "d49.example" || due[1].Domain != "d48.example" || due[2].Domain != "d47.example" {
		t.Fatalf("%+v, %v, %v", due, next, err)
	}
	if !due[0].Expires.Equal(at(day)) || !due[0].Due.Equal(at(-49*time.Minute)) {
		t.Errorf("%+v", due[0])
	}
}

func TestDueSaysWhenTheNextOneIs(t *testing.T) {
	s := openNew(t)
	now := noon
	expect := func(lane Lane, n int, want time.Time) {
		t.Helper()
		due, next, err := s.Due(lane, now, 10)
		if err != nil || len(due) != n || !next.Equal(want) {
			t.Fatalf("%d due, next %v, %v; want %d, %v", len(due), next, err, n, want)
		}
	}
	expect(0, 0, time.Time{})
	a, b := record("a.example"), record("b.example")
	a.Due, b.Due, b.Lane = at(time.Hour), at(2*time.Hour), 1
	mustWrite(t, s, puts(a, b)...)
	expect(0, 0, at(time.Hour))
	expect(0, 0, at(time.Hour)) // the second time from memory
	expect(1, 0, at(2*time.Hour))
	c := record("c.example")
	c.Due = at(time.Minute)
	mustWrite(t, s, Op{Put: c})
	expect(0, 0, at(time.Minute))
	now = at(time.Minute)
	expect(0, 1, at(time.Hour))
	now = at(time.Hour)
	expect(0, 2, time.Time{})
	mustWrite(t, s, Op{Delete: "a.example"}, Op{Delete: "c.example"})
	expect(0, 0, time.Time{})
	expect(1, 0, at(2*time.Hour))
}

func TestARecordWithoutADueTimeWaitsForNothing(t *testing.T) {
	s := openNew(t)
	r := record("a.example")
	r.Due = time.Time{}
	mustWrite(t, s, Op{Put: r})
	due, next, err := s.Due(0, at(1000*day), 10)
	if err != nil || len(due) != 0 || !next.IsZero() {
		t.Errorf("%v, %v, %v", due, next, err)
	}
	checkStore(t, s)
}

func TestDueReadsWhatIsDueAndOneEntryForEachSlotOfTheExpiry(t *testing.T) {
	s := openNew(t)
	var ops []Op
	for i := range 5000 {
		r := record(fmt.Sprintf("d%04d.example", i))
		r.Due, r.Expires = at(time.Duration(i+1)*time.Second), at(time.Duration(i%10)*day)
		if i < 5 {
			r.Due = noon
		}
		ops = append(ops, Op{Put: r})
	}
	mustWrite(t, s, ops...)
	q := dueWalk{store: s, now: noon.Unix(), max: 100, next: 1 << 62}
	for from := []byte{0}; from != nil; {
		var err error
		if from, err = q.page(from); err != nil {
			t.Fatal(err)
		}
	}
	if len(q.found) != 5 || q.read > 5+10+1 {
		t.Errorf("found %d, read %d entries", len(q.found), q.read)
	}
}

func TestDueOfThousandsComesInPagesOfOneState(t *testing.T) {
	s := openNew(t)
	var ops []Op
	for i := range 3000 {
		r := record(fmt.Sprintf("d%04d.example", i))
		r.Due, r.Expires = at(time.Hour), at(time.Duration(i)*6*time.Hour)
		ops = append(ops, Op{Put: r})
	}
	late := record("late.example")
	late.Due, late.Expires = noon, at(365*day)
	mustWrite(t, s, append(ops, Op{Put: late})...)
	due, next, err := s.Due(0, noon, 100)
	if err != nil || len(due) != 1 || due[0].Domain != "late.example" || !next.Equal(at(time.Hour)) {
		t.Errorf("%v, %v, %v", due, next, err)
	}
}

// bendIndex changes the due index behind the store's back.
func bendIndex(t *testing.T, s *Store, bend func(due *bbolt.Bucket) error) {
	t.Helper()
	err := s.file.update(func(tx *bbolt.Tx) error { return bend(bucketsOf(tx).due) })
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, s, Op{Put: record("z.example")}) // makes it the current state
	s.lines.forget()
}

func TestAnEntryBesideARecordsOwnIsTakenOutByTheNextWrite(t *testing.T) {
	s := openNew(t)
	mustWrite(t, s, Op{Put: record("a.example")})
	bendIndex(t, s, func(due *bbolt.Bucket) error {
		return due.Put(dueKey(0, noon.Unix(), noon.Unix(), []byte("a.example")), nil)
	})
	if due, _, err := s.Due(0, noon, 10); err != nil || len(due) != 0 {
		t.Fatalf("%v, %v", due, err)
	}
	mustWrite(t, s, Op{Put: record("c.example")})
	checkStore(t, s)
	if n := s.Stats().Rebuilds; n != 0 {
		t.Errorf("%d rebuilds", n)
	}
}

func TestAnEntryWithoutARecordHasTheFileRebuilt(t *testing.T) {
	for _, k := range [][]byte{dueKey(0, noon.Unix(), noon.Unix(), []byte("gone.example")), {0, 0, 0, 0, 0, 1}} {
		s := openNew(t)
		bendIndex(t, s, func(due *bbolt.Bucket) error { return due.Put(k, nil) })
		if due, _, err := s.Due(0, noon, 10); err != nil || len(due) != 0 {
			t.Fatalf("%v, %v", due, err)
		}
		awaitRebuild(t, s)
		checkStore(t, s)
	}
}

// A bit that flips in the index must not take a policy out of the refresh for
// ever: once its entry is met, the file is rebuilt, and Due returns all again.
func TestABitFlippedInTheDueIndexLosesNoRecord(t *testing.T) {
	const n = 3
	now := at(5 * day)
	due := func(s *Store) string {
		found := map[string]bool{}
		for lane := range Lane(MaxLanes) {
			list, _, err := s.Due(lane, now, 10)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range list {
				found[d.Domain] = true
			}
		}
		return fmt.Sprint(len(found))
	}
	s := openNew(t)
	for i := range n {
		mustWrite(t, s, Op{Put: record(fmt.Sprintf("d%d.example", i))})
	}
	key := keysOf([]byte("d2.example"), mustEncode(t, record("d2.example"))).due // the last one: the order of the keys says less
	closeStore(t, s)
	whole, err := os.ReadFile(s.path)
	if err != nil {
		t.Fatal(err)
	}
	for bit := 0; bit < len(key)*8; bit += 3 {
		if at := bit / 8; at == 0 && bit%8 >= 4 || at >= dueDue && at < dueDue+4 {
			continue // a lane that no one reads, and a time that never comes: see keeper.strayed
		}
		flipped := bytes.Clone(key)
		flipped[bit/8] ^= 1 << (bit % 8)
		path := filepath.Join(t.TempDir(), "cache.db")
		if err := os.WriteFile(path, bytes.ReplaceAll(whole, key, flipped), 0o600); err != nil {
			t.Fatal(err)
		}
		s := withoutSync(openAt(t, path, testOptions()))
		now = at(5 * day)
		if bit/8 >= dueDue && bit/8 < dueDue+8 {
			now = at(200 * 365 * day) // so that the wrong entry is met
		}
		before := due(s)
		awaitRebuild(t, s)
		if got := due(s); got != fmt.Sprint(n) {
			t.Errorf("bit %d of byte %d: %s of %d are due, %s before the rebuild", bit%8, bit/8, got, n, before)
		}
		closeStore(t, s)
	}
}

func mustEncode(t *testing.T, r *Record) Value {
	t.Helper()
	v, err := encode(r, 1)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestTheStoreAgreesWithASimpleModel does random things to a store and to a map.
func TestTheStoreAgreesWithASimpleModel(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			s := withoutSync(openNew(t))
			m := model{}
			now := noon
			for step := range 150 {
				now = now.Add(time.Duration(rnd.IntN(7200)) * time.Second)
				switch rnd.IntN(4) {
				case 0, 1:
					m.write(t, s, rnd, now)
				case 2:
					m.due(t, s, Lane(rnd.IntN(3)), now, 1+rnd.IntN(60))
				case 3:
					m.purge(t, s, now.Add(-2*time.Hour), 1+rnd.IntN(20))
				}
				if step%50 == 49 {
					m.same(t, s)
				}
			}
			closeStore(t, s)
			m.same(t, openAt(t, s.path, testOptions()))
		})
	}
}

type model map[string]*Record

func (m model) write(t *testing.T, s *Store, rnd *rand.Rand, now time.Time) {
	var ops []Op
	for range 1 + rnd.IntN(40) {
		d := fmt.Sprintf("d%d.example", rnd.IntN(400))
		if rnd.IntN(5) == 0 {
			ops = append(ops, Op{Delete: d})
			delete(m, d)
			continue
		}
		r := record(d)
		r.Mode = policy.Mode(1 + rnd.IntN(3))
		r.Lane = Lane(rnd.IntN(3))
		r.Expires = now.Add(time.Duration(rnd.IntN(5*86400)) * time.Second)
		r.Used = now.Truncate(day).Add(-time.Duration(rnd.IntN(20)) * day)
		r.Due = now.Add(time.Duration(rnd.IntN(86400)-43200) * time.Second)
		if rnd.IntN(10) == 0 {
			r.Due = time.Time{}
		}
		r.Text = make([]byte, rnd.IntN(2000))
		if rnd.IntN(30) == 0 {
			r.Text = make([]byte, rnd.IntN(40_000))
		}
		ops = append(ops, Op{Put: r})
		m[d] = r
	}
	mustWrite(t, s, ops...)
}

func (m model) due(t *testing.T, s *Store, lane Lane, now time.Time, max int) {
	t.Helper()
	got, next, err := s.Due(lane, now, max)
	if err != nil {
		t.Fatal(err)
	}
	var want []*Record
	var wantNext time.Time
	for _, r := range m {
		if r.Lane != lane || r.Due.IsZero() {
			continue
		}
		if !r.Due.After(now) {
			want = append(want, r)
		} else if wantNext.IsZero() || r.Due.Before(wantNext) {
			wantNext = r.Due
		}
	}
	if len(got) != min(max, len(want)) {
		t.Fatalf("%d due of %d, at most %d", len(got), len(want), max)
	}
	if len(want) < max && !next.Equal(wantNext) {
		t.Fatalf("next is %v, not %v", next, wantNext)
	}
	returned := map[string]bool{}
	for i, d := range got {
		r := m[d.Domain]
		if r == nil || !slices.Contains(want, r) || !r.Due.Equal(d.Due) || !r.Expires.Equal(d.Expires) || returned[d.Domain] {
			t.Fatalf("%+v is not due: %+v", d, r)
		}
		if i > 0 && d.Expires.Before(got[i-1].Expires) {
			t.Fatalf("%+v comes after %+v", d, got[i-1])
		}
		returned[d.Domain] = true
	}
	for _, r := range want {
		if last := len(got) - 1; !returned[r.Domain] && slotOf(r.Expires.Unix()) < slotOf(got[last].Expires.Unix()) {
			t.Fatalf("%s has less life left than %+v, and was left out", r.Domain, got[last])
		}
	}
}

func (m model) purge(t *testing.T, s *Store, before time.Time, max int) {
	t.Helper()
	got, err := s.Purge(before, max)
	if err != nil {
		t.Fatal(err)
	}
	gone := 0
	for _, r := range m {
		if r.Expires.Before(before) {
			gone++
		}
	}
	if len(got) != min(max, gone) {
		t.Fatalf("%d purged of %d, at most %d", len(got), gone, max)
	}
	for _, d := range got {
		if m[d] == nil || !m[d].Expires.Before(before) {
			t.Fatalf("%s was purged", d)
		}
		delete(m, d)
	}
}

func (m model) same(t *testing.T, s *Store) {
	t.Helper()
	for _, r := range m {
		mustHold(t, s, r)
	}
	if n := s.Stats().Policies(); n != int64(len(m)) {
		t.Fatalf("%d policies, not %d", n, len(m))
	}
	checkStore(t, s)
}

func TestDueEndsWhereMorePagesThanAPageOfKeysCannotBeRead(t *testing.T) {
	s := openNew(t)
	s.readOnly = true // no rebuild ends it
	const leaves, key = MaxPage + 200, "\x01%07d"
	root := make(page, pageHeader+leaves*(elementSize+len("\x010000000")))
	native.PutUint16(root[8:], flagBranch)
	native.PutUint16(root[10:], leaves)
	keys := pageHeader + leaves*elementSize
	for i := range leaves {
		at := pageHeader + i*elementSize
		native.PutUint32(root[at:], uint32(keys-at))
		native.PutUint32(root[at+4:], uint32(copy(root[keys:], fmt.Sprintf(key, i))))
		native.PutUint64(root[at+8:], 1<<40) // outside the file
		keys += len("\x010000000")
	}
	due := &s.snap.Load().due
	due.root, due.inline, due.limit = 0, root, 2*leaves

	done := make(chan error)
	go func() {
		_, _, err := s.Due(1, at(30*day), 10)
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it goes round and round")
	}
}
