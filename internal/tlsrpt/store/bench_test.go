package store_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

// written returns the bytes that this process has handed to write system calls.
func written(b *testing.B) (n int64) {
	io, err := os.ReadFile("/proc/self/io")
	if err != nil {
		b.Skip(err)
	}
	_, rest, _ := strings.Cut(string(io), "wchar: ")
	if _, err := fmt.Sscan(rest, &n); err != nil {
		b.Fatal(err)
	}
	return n
}

// go test -run - -bench Day -benchtime 1x ./internal/tlsrpt/store
//
// A day of sessions, evenly spread: a batch each second, upkeep each minute, merges each
// hour, and the close of the day.
func BenchmarkDayOf1MSessionsOf100KDomains(b *testing.B) { dayOf(b, 1_000_000, 100_000) }
func BenchmarkDayOf10MSessionsOf1MDomains(b *testing.B)  { dayOf(b, 10_000_000, 1_000_000) }

func dayOf(b *testing.B, sessions, domains int) {
	dir := b.TempDir()
	if shm, err := os.MkdirTemp("/dev/shm", ""); err == nil { // the disk's speed is not measured
		defer os.RemoveAll(shm)
		dir = shm
	}
	path := filepath.Join(dir, "reports.db")
	var c clock
	c.nano.Store(day.Begin().UnixNano())
	s, err := store.Open(path, store.Options{Now: c.now})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	before, begun := written(b), time.Now()
	var batch store.Batch
	sent := 0
	for second := 1; second <= 86_400; second++ {
		batch.Reset(day)
		for ; sent < sessions*second/86_400; sent++ {
			domain := numbered(sent * 7919 % domains) // 7919 is prime: each domain as often
			e := success(domain)
			if sent%100 == 0 {
				e = failed(domain, expired(domain))
			}
			batch.Add(&e)
		}
		if err := s.Write(&batch); err != nil {
			b.Fatal(err)
		}
		c.add(time.Second)
		if second%60 == 0 {
			if err := s.Upkeep(); err != nil {
				b.Fatal(err)
			}
		}
	}
	c.add(10 * time.Minute)
	for range 2 {
		if err := s.Upkeep(); err != nil {
			b.Fatal(err)
		}
	}
	took := time.Since(begun)
	if closed, err := s.Closed(tlsrpt.Day(day), c.now()); !closed || s.Stats().Merged != uint64(sessions) {
		b.Fatalf("%v, %v, %+v", closed, err, s.Stats())
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(written(b)-before)/float64(sessions), "written-B/session")
	b.ReportMetric(float64(info.Size())/(1<<20), "file-MiB")
	b.ReportMetric(float64(m.Sys)/(1<<20), "memory-MiB")
	b.ReportMetric(took.Seconds(), "s/day")
	b.ReportMetric(0, "ns/op")
}
