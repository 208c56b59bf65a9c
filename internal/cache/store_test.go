package cache

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// noon is the clock of all tests that do not move it.
var noon = time.Unix(1_800_000_000, 0).UTC()

func at(d time.Duration) time.Time { return noon.Add(d) }

const day = 24 * time.Hour

// record is an enforced policy for a week, fetched and used at noon.
func record(domain string) *Record {
	return &Record{
		Domain: domain, ID: "1", Mode: policy.ModeEnforce,
		Text:    []byte("version: STSv1\nmode: enforce\nmx: mx." + domain + "\nmax_age: 604800\n"),
		Ready:   []byte("secure match=mx." + domain + " servername=hostname"),
		Fetched: noon, Expires: at(7 * day), Checked: noon, Used: noon,
		CheckAt: at(day), FetchAt: at(day), FetchUnusedAt: at(4 * day),
		Due: at(day),
	}
}

func testOptions() Options {
	return Options{MaxSize: 64 << 20, Now: func() time.Time { return noon }}
}

func openAt(t testing.TB, path string, o Options) *Store {
	t.Helper()
	s, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil && !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
	return s
}

func openNew(t testing.TB) *Store {
	t.Helper()
	return openAt(t, filepath.Join(t.TempDir(), "cache.db"), testOptions())
}

// withoutSync is for tests that commit often and never crash.
func withoutSync(s *Store) *Store {
	s.file.db.NoSync, s.file.db.NoGrowSync = true, true
	return s
}

func puts(records ...*Record) []Op {
	ops := make([]Op, len(records))
	for i, r := range records {
		ops[i].Put = r
	}
	return ops
}

func mustWrite(t testing.TB, s *Store, ops ...Op) WriteResult {
	t.Helper()
	result, err := s.Write(ops)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func mustHold(t testing.TB, s *Store, want *Record) {
	t.Helper()
	got, err := s.Get(want.Domain)
	if err != nil {
		t.Fatalf("Get(%s): %v", want.Domain, err)
	}
	if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", *want) {
		t.Fatalf("Get(%s):\n got %+v\nwant %+v", want.Domain, got, *want)
	}
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestARecordComesBackAsItWasWrittenAlsoAfterReopening(t *testing.T) {
	s := openNew(t)
	full := record("example.com")
	full.PendingID, full.Failures, full.FailedAt, full.LastError, full.Lane = "2", 3, at(time.Hour), "no route", 5
	bare := &Record{Domain: "none.example", Mode: policy.ModeNone, Text: []byte{}, Ready: []byte{}}
	mustWrite(t, s, puts(full, bare)...)
	mustHold(t, s, full)
	mustHold(t, s, bare)
	closeStore(t, s)
	s = openAt(t, s.path, testOptions())
	mustHold(t, s, full)
	mustHold(t, s, bare)
	if st := s.Stats(); st.Policies() != 2 || st.ByMode[policy.ModeEnforce] != 1 || st.ByMode[policy.ModeNone] != 1 || !st.Newest.Equal(at(time.Hour)) {
		t.Errorf("Stats() = %+v", st)
	}
	checkStore(t, s)
}

func TestLookupReadsWhatAReplyNeedsAndAllocatesNothing(t *testing.T) {
	s := openNew(t)
	r := record("example.com")
	mustWrite(t, s, puts(r, record("other.example"))...)
	var hit Hit
	domain := []byte("example.com")
	if err := s.Lookup(domain, &hit); err != nil {
		t.Fatal(err)
	}
	if hit.Mode != r.Mode || hit.Fetched != r.Fetched.Unix() || hit.Expires != r.Expires.Unix() ||
		hit.Checked != r.Checked.Unix() || !bytes.Equal(hit.Ready, r.Ready) {
		t.Errorf("Lookup: %+v", hit)
	}
	if err := s.Lookup([]byte("exampl.com"), &hit); err != ErrNotFound {
		t.Errorf("Lookup of a domain that is not there: %v", err)
	}
	if n := testing.AllocsPerRun(100, func() { s.Lookup(domain, &hit) }); n != 0 {
		t.Errorf("Lookup allocates %v times", n)
	}
}

func TestAPutReplacesAndADeleteTakesAwayWithAllIndexEntries(t *testing.T) {
	s := openNew(t)
	mustWrite(t, s, puts(record("a.example"), record("b.example"))...)
	changed := record("a.example")
	changed.Mode, changed.Expires, changed.Due, changed.Lane, changed.Used = policy.ModeTesting, at(9*day), at(2*day), 3, at(3*day)
	mustWrite(t, s, Op{Put: changed}, Op{Delete: "b.example"}, Op{Delete: "never.example"})
	mustHold(t, s, changed)
	if _, err := s.Get("b.example"); err != ErrNotFound {
		t.Errorf("a deleted record: %v", err)
	}
	checkStore(t, s)
}

func TestOfTwoChangesToADomainInOneWriteTheLastCounts(t *testing.T) {
	s := openNew(t)
	second := record("a.example")
	second.ID = "2"
	mustWrite(t, s, Op{Put: record("a.example")}, Op{Put: second}, Op{Put: record("b.example")}, Op{Delete: "b.example"})
	mustHold(t, s, second)
	if _, err := s.Get("b.example"); err != ErrNotFound {
		t.Errorf("put, then deleted: %v", err)
	}
	checkStore(t, s)
}

func TestAWriteWithARecordThatCannotBeStoredWritesNothing(t *testing.T) {
	for name, spoil := range map[string]func(*Record){
		"no domain":             func(r *Record) { r.Domain = "" },
		"a domain too long":     func(r *Record) { r.Domain = string(bytes.Repeat([]byte("a"), MaxDomain+1)) },
		"no mode":               func(r *Record) { r.Mode = 0 },
		"a lane that is not":    func(r *Record) { r.Lane = MaxLanes },
		"an id too long":        func(r *Record) { r.ID = string(bytes.Repeat([]byte("1"), MaxID+1)) },
		"larger than a value":   func(r *Record) { r.Text = make([]byte, MaxValue) },
		"the mark of a value":   func(r *Record) { r.Text = append([]byte("mode: "), mark...) },
		"a mark over two parts": func(r *Record) { r.Text, r.Ready = mark[:3], mark[3:] },
	} {
		t.Run(name, func(t *testing.T) {
			s := openNew(t)
			bad := record("bad.example")
			spoil(bad)
			if _, err := s.Write(puts(record("good.example"), bad)); err == nil {
				t.Fatal("it was written")
			}
			if _, err := s.Get("good.example"); err != ErrNotFound {
				t.Errorf("its companion: %v", err)
			}
			checkStore(t, s)
		})
	}
}

func TestALongLastErrorIsCut(t *testing.T) {
	s := openNew(t)
	r := record("a.example")
	r.LastError = string(bytes.Repeat([]byte("x"), 2*MaxLastError))
	mustWrite(t, s, Op{Put: r})
	got, err := s.Get("a.example")
	if err != nil || len(got.LastError) != MaxLastError {
		t.Errorf("%d bytes, %v", len(got.LastError), err)
	}
}

func TestAPolicyOf64KiBIsStored(t *testing.T) {
	s := openNew(t)
	r := record("large.example")
	r.Text, r.Ready = bytes.Repeat([]byte("t"), 64<<10), bytes.Repeat([]byte("r"), 100_000)
	mustWrite(t, s, puts(record("a.example"), r, record("z.example"))...)
	mustHold(t, s, r)
	checkStore(t, s)
}

func TestListGoesThroughAllPageByPage(t *testing.T) {
	s := openNew(t)
	var want []string
	var ops []Op
	for i := range 2500 {
		d := fmt.Sprintf("d%04d.example", i)
		want = append(want, d)
		ops = append(ops, Op{Put: record(d)})
	}
	mustWrite(t, s, ops...)
	for _, page := range []int{1, 7, 1000, 1 << 30} {
		var got []string
		after := ""
		for {
			list, next, err := s.List(after, page)
			if err != nil {
				t.Fatal(err)
			}
			if len(list) > min(page, MaxPage) {
				t.Fatalf("a page of %d", len(list))
			}
			for _, r := range list {
				got = append(got, r.Domain)
			}
			if next == "" {
				break
			}
			after = next
		}
		if !slices.Equal(got, want) {
			t.Errorf("pages of %d: %d domains, not %d", page, len(got), len(want))
		}
	}
}

func TestListBoundsThePageInBytesToo(t *testing.T) {
	s := openNew(t)
	var ops []Op
	for i := range 100 {
		r := record(fmt.Sprintf("d%02d.example", i))
		r.Text = bytes.Repeat([]byte("t"), 64<<10)
		ops = append(ops, Op{Put: r})
	}
	mustWrite(t, s, ops...)
	list, next, err := s.List("", 100)
	if err != nil || len(list) < 10 || len(list) > 70 || next != list[len(list)-1].Domain {
		t.Errorf("%d records of 64 KiB, the next after %q, %v", len(list), next, err)
	}
}

func TestPurgeDeletesWhatRanOutBeforeAndNothingElse(t *testing.T) {
	s := openNew(t)
	var ops []Op
	for i := range 20 {
		r := record(fmt.Sprintf("d%02d.example", i))
		r.Expires = at(time.Duration(i) * time.Hour)
		ops = append(ops, Op{Put: r})
	}
	mustWrite(t, s, ops...)
	first, err := s.Purge(at(10*time.Hour), 4)
	if err != nil || !slices.Equal(first, []string{"d00.example", "d01.example", "d02.example", "d03.example"}) {
		t.Fatalf("%v, %v", first, err)
	}
	checkStore(t, s)
	rest, err := s.Purge(at(10*time.Hour), 100)
	if err != nil || len(rest) != 6 {
		t.Fatalf("%v, %v", rest, err)
	}
	if more, err := s.Purge(at(10*time.Hour), 100); err != nil || len(more) != 0 {
		t.Fatalf("%v, %v", more, err)
	}
	if n := s.Stats().Policies(); n != 10 {
		t.Errorf("%d are left", n)
	}
	checkStore(t, s)
}

func TestWhatNobodyReadsIsNotPinned(t *testing.T) {
	s := withoutSync(openNew(t))
	for range 10 {
		mustWrite(t, s, puts(record("example.com"))...)
		if n := len(s.file.retired); n != 0 {
			t.Fatalf("%d states that were replaced are kept", n)
		}
	}
	reader := s.current()
	mustWrite(t, s, puts(record("example.com"))...)
	mustWrite(t, s, puts(record("example.com"))...)
	if n := len(s.file.retired); n != 1 {
		t.Errorf("%d states are kept for one reader", n)
	}
	if v, err := reader.policy.get([]byte("example.com")); err != nil || v == nil {
		t.Errorf("the reader's state has %q, %v", v, err)
	}
	reader.release()
}

func TestAClosedStoreSaysSo(t *testing.T) {
	s := openNew(t)
	closeStore(t, s)
	var hit Hit
	_, getErr := s.Get("a.example")
	_, writeErr := s.Write(puts(record("a.example")))
	_, _, listErr := s.List("", 1)
	_, _, dueErr := s.Due(0, noon, 1)
	_, purgeErr := s.Purge(noon, 1)
	for i, err := range []error{s.Lookup([]byte("a.example"), &hit), getErr, writeErr, listErr, dueErr, purgeErr, s.Close()} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("call %d: %v", i, err)
		}
	}
	s.Stats()
}
