package cache_test

import (
	"encoding/binary"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
)

// expectDue checks what is due in a lane.
func expectDue(t *testing.T, s *cache.Store, lane cache.Lane, now time.Time, limit int, next time.Time, want ...string) {
	t.Helper()
	due, at, err := s.Due(lane, now, limit)
	var got []string
	for _, d := range due {
		got = append(got, d.Domain)
	}
	if err != nil || !at.Equal(next) || !slices.Equal(got, want) {
		t.Errorf("%q, next %v, %v; not %q, %v", got, at, err, want, next)
	}
}

func TestDueReturnsThoseWithTheLeastLifeLeftFirst(t *testing.T) {
	s, _ := openNew(t)
	var ops []cache.Op
	for i := range 50 {
		r := record(fmt.Sprintf("d%02d.example", i))
		r.Due, r.Expires = at(-time.Duration(i)*time.Minute), at(time.Duration(50-i)*day)
		ops = append(ops, cache.Op{Put: r})
	}
	write(t, s, ops...)
	expectDue(t, s, cache.LaneNormal, noon, 3, time.Time{}, "d49.example", "d48.example", "d47.example")
	if due, _, _ := s.Due(cache.LaneNormal, noon, 1); !due[0].Expires.Equal(at(day)) || !due[0].Due.Equal(at(-49*time.Minute)) {
		t.Errorf("%+v", due[0])
	}
}

func TestLanesAreReadApartAndSayWhenTheNextRecordIsDue(t *testing.T) {
	s, _ := openNew(t)
	expectDue(t, s, cache.LaneNormal, noon, 10, time.Time{})
	a, b, never := record("a.example"), record("b.example"), record("never.example")
	a.Due, b.Due, b.Lane, never.Due = at(time.Hour), at(2*time.Hour), cache.LaneTroubled, time.Time{}
	write(t, s, puts(a, b, never)...)
	expectDue(t, s, cache.LaneNormal, noon, 10, at(time.Hour))
	expectDue(t, s, cache.LaneNormal, at(time.Hour), 10, time.Time{}, "a.example")
	expectDue(t, s, cache.LaneTroubled, at(time.Hour), 10, at(2*time.Hour))
	a.Due = at(3 * time.Hour)
	write(t, s, cache.Op{Put: a}, cache.Op{Delete: "b.example"})
	expectDue(t, s, cache.LaneNormal, at(time.Hour), 10, at(3*time.Hour))
	expectDue(t, s, cache.LaneTroubled, at(1000*day), 10, time.Time{})
}

func TestThePolicyThatExpiresFirstComesFirstInAFlood(t *testing.T) {
	s, _ := openNew(t)
	var ops []cache.Op
	for i := range 100 { // max_age 1500, always overdue
		r := record(fmt.Sprintf("flood%d.example", i))
		r.Expires, r.Due = at(1500*time.Second), at(-time.Hour)
		ops = append(ops, cache.Op{Put: r})
	}
	honest := record("honest.example")
	honest.Fetched, honest.Expires, honest.Due = at(-6*day-12*time.Hour), at(12*time.Hour), noon
	write(t, s, append(ops, cache.Op{Put: honest})...)
	if due, _, err := s.Due(cache.LaneNormal, noon, 5); err != nil || len(due) != 5 || due[0].Domain != "honest.example" {
		t.Errorf("%+v, %v", due, err)
	}
}

// edit changes a closed file behind the store's back.
func edit(t *testing.T, path string, change func(*bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(path, 0, nil)
	if err == nil {
		err = db.Update(change)
	}
	if err == nil {
		err = db.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestStaleIndexEntriesAreSkippedAndThenDeleted(t *testing.T) {
	s, path := openNew(t)
	write(t, s, puts(record("a.example"))...)
	closeStore(t, s)
	entry := func(domain string) []byte {
		return append(binary.BigEndian.AppendUint64([]byte{8, 0, 0, 0, 1}, 1), domain...)
	}
	edit(t, path, func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte("due"))
		return cmpErr(b.Put(entry("a.example"), nil), b.Put(entry("gone.example"), nil))
	})
	s = open(t, path, options())
	expectDue(t, s, cache.LaneNormal, noon, 10, at(day))
	write(t, s, puts(record("b.example"))...)
	closeStore(t, s)
	edit(t, path, func(tx *bbolt.Tx) error {
		if n := tx.Bucket([]byte("due")).Stats().KeyN; n != 2 {
			t.Errorf("%d entries", n)
		}
		return nil
	})
}

func cmpErr(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// oldFile makes a file as the versions before 1.0 did: with lanes 0 to 7, an evict
// bucket, and the next TXT lookup in each value.
func oldFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cache.db")
	s := open(t, path, options())
	for lane := range 8 {
		write(t, s, puts(record(fmt.Sprintf("lane%d.example", lane)))...)
	}
	closeStore(t, s)
	edit(t, path, func(tx *bbolt.Tx) error {
		due, policies := tx.Bucket([]byte("due")), tx.Bucket([]byte("policy"))
		for lane := range 8 {
			domain := fmt.Sprintf("lane%d.example", lane)
			v := slices.Clone(policies.Get([]byte(domain)))
			v[101] = byte(lane)
			binary.LittleEndian.PutUint64(v[64:], uint64(noon.Unix())) // the next TXT lookup
			expires := noon.Add(time.Duration(8-lane) * 6 * time.Hour).Unix()
			binary.LittleEndian.PutUint64(v[32:], uint64(expires))
			sealOld(v)
			k := binary.BigEndian.AppendUint32([]byte{byte(lane)}, uint32(expires/(6*3600)))
			k = append(binary.BigEndian.AppendUint64(k, uint64(at(day).Unix())), domain...)
			x := append(binary.BigEndian.AppendUint64(nil, uint64(expires)), domain...)
			if err := cmpErr(policies.Put([]byte(domain), v), due.Put(k, nil), tx.Bucket([]byte("expiry")).Put(x, nil)); err != nil {
				return err
			}
		}
		c := due.Cursor()
		for k, _ := c.Seek([]byte{8}); k != nil && k[0] == 8; k, _ = c.Seek([]byte{8}) {
			if err := due.Delete(k); err != nil {
				return err
			}
		}
		b, err := tx.CreateBucket([]byte("evict"))
		return cmpErr(err, b.Put([]byte("\x01\x00\x00\x00\x00lane1.example"), nil))
	})
	return path
}

func TestAFileOfTheOldFormatIsReadAsItIsAndRewrittenWhenTouched(t *testing.T) {
	s := open(t, oldFile(t), options())
	if st := s.Stats(); st.Salvage != nil || st.Policies() != 8 {
		t.Fatalf("%+v", st)
	}
	expectDue(t, s, cache.LaneNormal, at(day), 10, time.Time{},
		"lane6.example", "lane5.example", "lane4.example", "lane3.example", "lane2.example", "lane1.example")
	expectDue(t, s, cache.LaneTroubled, at(day), 10, time.Time{}, "lane7.example")
	expectDue(t, s, cache.LaneQuiet, at(day), 10, time.Time{}, "lane0.example")
	r, err := s.Get("lane3.example")
	if err != nil || r.Lane != cache.LaneNormal {
		t.Fatalf("%+v, %v", r, err)
	}
	r.Due = at(2 * day)
	write(t, s, cache.Op{Put: &r}, cache.Op{Delete: "lane4.example"}, cache.Op{Delete: "lane7.example"})
	expectDue(t, s, cache.LaneNormal, at(day), 10, at(2*day), "lane6.example", "lane5.example", "lane2.example", "lane1.example")
	expectDue(t, s, cache.LaneTroubled, at(day), 10, time.Time{})
	if purged, err := s.Purge(at(100*day), 100); err != nil || len(purged) != 6 {
		t.Error(purged, err)
	}
}
