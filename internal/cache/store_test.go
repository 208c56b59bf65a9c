package cache_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

func TestWritesAreReadBackAfterReopening(t *testing.T) {
	s, path := openNew(t)
	full := record("full.example")
	full.PendingID, full.Failures, full.FailedAt, full.LastError = "2", 3, at(time.Hour), "connection refused"
	full.Slow, full.Regular, full.Unattended, full.Lane = true, true, 9, cache.LaneTroubled
	bare := &cache.Record{Domain: "none.example", Mode: policy.ModeNone, Text: []byte{}, Match: []byte{}, Expires: noon, Fetched: noon}
	write(t, s, puts(full, bare)...)
	for range 2 {
		mustHold(t, s, full)
		mustHold(t, s, bare)
		mustMiss(t, s, "other.example")
		if st := s.Stats(); st.Policies() != 2 || st.ByMode[policy.ModeEnforce] != 1 || !st.Heartbeat.Equal(noon) || st.MemoryOnly != nil || st.Salvage != nil {
			t.Errorf("%+v", st)
		}
		closeStore(t, s)
		s = open(t, path, options())
	}
	write(t, s, cache.Op{Delete: "full.example"}, cache.Op{Delete: "never.example"})
	mustMiss(t, s, "full.example")
	if n := s.Stats().Policies(); n != 1 {
		t.Error(n)
	}
}

func TestOfTwoOpsForOneDomainTheLastCounts(t *testing.T) {
	s, _ := openNew(t)
	first, second := record("a.example"), record("a.example")
	second.ID = "2"
	write(t, s, cache.Op{Put: first}, cache.Op{Delete: "a.example"}, cache.Op{Put: second})
	mustHold(t, s, second)
	write(t, s, cache.Op{Put: first}, cache.Op{Delete: "a.example"})
	mustMiss(t, s, "a.example")
}

func TestACommitThatEndsBesideALookupIsNoDamage(t *testing.T) {
	s, _ := openNew(t)
	write(t, s, puts(record("a.example"))...)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			var hit cache.Hit
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := s.Lookup([]byte("a.example"), &hit); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 300 {
		write(t, s, puts(record("a.example"))...)
	}
	close(stop)
	readers.Wait()
	if st := s.Stats(); st.Unreadable > 0 || st.Salvage != nil {
		t.Errorf("%d faults, salvage: %v", st.Unreadable, st.Salvage)
	}
}

func TestARecordThatCannotBeStoredFailsTheWholeWrite(t *testing.T) {
	s, _ := openNew(t)
	for name, spoil := range map[string]func(*cache.Record){
		"no domain":        func(r *cache.Record) { r.Domain = "" },
		"a long domain":    func(r *cache.Record) { r.Domain = strings.Repeat("a", 254) },
		"a long id":        func(r *cache.Record) { r.ID = strings.Repeat("1", 256) },
		"no mode":          func(r *cache.Record) { r.Mode = 0 },
		"an old lane":      func(r *cache.Record) { r.Lane = 3 },
		"a long text":      func(r *cache.Record) { r.Text = make([]byte, cache.MaxValue) },
		"the mark":         func(r *cache.Record) { r.Text = []byte("mx: \x00\x01\xffSTS\xfe") },
		"a mark in halves": func(r *cache.Record) { r.Text, r.Match = []byte("\x00\x01\xff"), []byte("STS\xfe") },
	} {
		bad := record("bad.example")
		spoil(bad)
		if bad.Storable() == nil {
			t.Errorf("%s: storable", name)
		}
		if _, err := s.Write(puts(record("good.example"), bad)); err == nil {
			t.Errorf("%s: written", name)
		}
		mustMiss(t, s, "good.example")
	}
}

func TestListPagesInTheOrderOfTheDomains(t *testing.T) {
	s, _ := openNew(t)
	var ops []cache.Op
	var want, got []string
	for i := range 25 {
		want = append(want, fmt.Sprintf("d%02d.example", i))
		ops = append(ops, cache.Op{Put: record(want[i])})
	}
	write(t, s, ops...)
	for after := ""; ; {
		page, next, err := s.List(after, 10)
		if err != nil || len(page) > 10 {
			t.Fatal(len(page), err)
		}
		for _, r := range page {
			got = append(got, r.Domain)
		}
		if next == "" {
			break
		}
		after = next
	}
	if !slices.Equal(got, want) {
		t.Error(got)
	}
}

func TestPurgeDeletesWhatRanOutBefore(t *testing.T) {
	s, _ := openNew(t)
	for i := range 10 {
		r := record(fmt.Sprintf("d%d.example", i))
		r.Expires = at(time.Duration(i) * time.Hour)
		write(t, s, puts(r)...)
	}
	if purged, err := s.Purge(at(3*time.Hour), 2); err != nil || !slices.Equal(purged, []string{"d0.example", "d1.example"}) {
		t.Error(purged, err)
	}
	if purged, err := s.Purge(at(3*time.Hour), 100); err != nil || !slices.Equal(purged, []string{"d2.example"}) {
		t.Error(purged, err)
	}
	if n := s.Stats().Policies(); n != 7 {
		t.Error(n)
	}
}

func TestExemptionsAreKept(t *testing.T) {
	s, path := openNew(t)
	want := []exempt.Exemption{{Domain: ".b.example", Until: at(day)}, {Domain: "a.example", Until: at(time.Hour)}}
	if err := s.WriteExemptions(want); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	s = open(t, path, options())
	if got, err := s.Exemptions(); err != nil || !slices.Equal(got, want) {
		t.Error(got, err)
	}
	if err := s.WriteExemptions(nil); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Exemptions(); err != nil || len(got) != 0 {
		t.Error(got, err)
	}
	if err := s.WriteExemptions(make([]exempt.Exemption, cache.MaxExemptions+1)); err == nil {
		t.Error("too many were stored")
	}
}

func TestAClosedStoreSaysSo(t *testing.T) {
	s, _ := openNew(t)
	closeStore(t, s)
	_, werr := s.Write(nil)
	_, _, derr := s.Due(cache.LaneNormal, noon, 1)
	for _, err := range []error{s.Lookup([]byte("a.example"), new(cache.Hit)), werr, derr, s.Close()} {
		if !errors.Is(err, cache.ErrClosed) {
			t.Error(err)
		}
	}
}

func TestOneProcessHasTheCacheAndOthersOnlyReadAClosedOne(t *testing.T) {
	s, path := openNew(t)
	write(t, s, puts(record("a.example"))...)
	var locked *cache.LockedError
	if _, err := cache.Open(path, options()); !errors.As(err, &locked) {
		t.Error(err)
	}
	if _, err := cache.OpenReadOnly(path); !errors.As(err, &locked) {
		t.Error(err)
	}
	closeStore(t, s)
	for range 2 { // two at once
		ro, err := cache.OpenReadOnly(path)
		if err != nil {
			t.Fatal(err)
		}
		defer ro.Close()
		mustHold(t, ro, record("a.example"))
		if _, err := ro.Write(nil); err != cache.ErrReadOnly && !errors.Is(err, cache.ErrReadOnly) {
			t.Error(err)
		}
	}
	if _, err := cache.OpenReadOnly(path + ".none"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestAPathThatIsNotAFileIsAnError(t *testing.T) {
	var notFile *cache.NotAFileError
	for _, path := range []string{t.TempDir(), "/dev/null"} {
		if _, err := cache.Open(path, options()); !errors.As(err, &notFile) {
			t.Error(path, err)
		}
	}
}
