package cache_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// noon is the clock of the tests that do not move it.
var noon = time.Unix(1_800_000_000, 0).UTC()

const day = 24 * time.Hour

func at(d time.Duration) time.Time { return noon.Add(d) }

// record is an enforced policy for a week, fetched and used at noon.
func record(domain string) *cache.Record {
	return &cache.Record{
		Domain: domain, ID: "1", Mode: policy.ModeEnforce,
		Text:    []byte("version: STSv1\nmode: enforce\nmx: mx." + domain + "\nmax_age: 604800\n"),
		Match:   []byte("\x01mx." + domain),
		Fetched: noon, Expires: at(7 * day), Checked: noon, Used: noon,
		FetchAt: at(day), FetchUnusedAt: at(4 * day),
		Lane: cache.LaneNormal, Due: at(day),
	}
}

func options() cache.Options {
	return cache.Options{MaxSize: 64 << 20, Now: func() time.Time { return noon }}
}

func open(t testing.TB, path string, o cache.Options) *cache.Store {
	t.Helper()
	s, err := cache.Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil && !errors.Is(err, cache.ErrClosed) {
			t.Error(err)
		}
	})
	return s
}

func openNew(t testing.TB) (s *cache.Store, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "cache.db")
	return open(t, path, options()), path
}

func closeStore(t testing.TB, s *cache.Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func puts(records ...*cache.Record) (ops []cache.Op) {
	for _, r := range records {
		ops = append(ops, cache.Op{Put: r})
	}
	return ops
}

func write(t testing.TB, s *cache.Store, ops ...cache.Op) cache.WriteResult {
	t.Helper()
	result, err := s.Write(ops)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// mustHold checks that a record is stored as it was written.
func mustHold(t testing.TB, s *cache.Store, want *cache.Record) {
	t.Helper()
	got, err := s.Get(want.Domain)
	if err != nil || fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", *want) {
		t.Errorf("%s:\n%+v, %v\nnot\n%+v", want.Domain, got, err, *want)
	}
	var hit cache.Hit
	if err := s.Lookup([]byte(want.Domain), &hit); err != nil || hit.Mode != want.Mode || hit.Fetched != want.Fetched.Unix() ||
		hit.Expires != want.Expires.Unix() || !bytes.Equal(hit.Match, want.Match) || !bytes.Equal(hit.Text, want.Text) {
		t.Errorf("%s: %+v, %v", want.Domain, hit, err)
	}
}

func mustMiss(t testing.TB, s *cache.Store, domain string) {
	t.Helper()
	if r, err := s.Get(domain); err != cache.ErrNotFound {
		t.Errorf("%s: %+v, %v", domain, r, err)
	}
}

// await waits until a condition holds, which the store brings about by itself.
func await(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("in vain: " + what)
		}
	}
}

// overwrite changes a file in place, as a disk or a program does that knows
// nothing of the store.
func overwrite(t testing.TB, path string, with []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		err = f.Truncate(int64(len(with)))
		_, werr := f.WriteAt(with, 0)
		err = errors.Join(err, werr, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}
