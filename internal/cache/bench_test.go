package cache

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

const benchPolicies = 1_000_000

func benchDomain(i int) string { return fmt.Sprintf("mail%07d.customer-%d.example", i, i%977) }

// benchRecord is a policy as large ones of the big providers are.
func benchRecord(i int, now time.Time) *Record {
	d := benchDomain(i)
	text := "version: STSv1\r\nmode: enforce\r\nmx: mx1." + d + "\r\nmx: mx2." + d + "\r\nmx: *.backup." + d + "\r\nmax_age: 604800\r\n"
	ready := "secure match=mx1." + d + ":mx2." + d + ":.backup." + d + " servername=hostname"
	fetched := now.Add(-time.Duration(i%86400) * time.Second)
	return &Record{
		Domain: d, ID: "20240101000000", Mode: policy.ModeEnforce, Text: []byte(text), Ready: []byte(ready),
		Fetched: fetched, Expires: fetched.Add(7 * 24 * time.Hour), Checked: fetched, Used: now.Truncate(24 * time.Hour),
		CheckAt: fetched.Add(20 * time.Hour), FetchAt: fetched.Add(22 * time.Hour), FetchUnusedAt: fetched.Add(100 * time.Hour),
		Lane: Lane(i % 4), Due: fetched.Add(20*time.Hour + time.Duration(i%7919)*time.Second),
	}
}

var benchNow = time.Unix(1_800_000_000, 0)

// benchStore returns a store with a million policies, put in random order. The
// file is kept for the next benchmark: CACHE_BENCH_DIR says where.
func benchStore(b testing.TB) *Store {
	dir := os.Getenv("CACHE_BENCH_DIR")
	if dir == "" {
		dir = b.TempDir()
	}
	path := filepath.Join(dir, "million.db")
	s, err := Open(path, Options{Now: func() time.Time { return benchNow }})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	if s.Stats().Policies() == benchPolicies {
		return s
	}
	s.file.db.NoSync, s.file.db.NoGrowSync = true, true
	order := rand.New(rand.NewPCG(1, 2)).Perm(benchPolicies)
	const batch = 2000
	for at := 0; at < len(order); at += batch {
		var ops []Op
		for _, i := range order[at : at+batch] {
			ops = append(ops, Op{Put: benchRecord(i, benchNow)})
		}
		if _, err := s.Write(ops); err != nil {
			b.Fatal(err)
		}
	}
	s.file.db.NoSync, s.file.db.NoGrowSync = false, false
	s.file.db.Sync()
	return s
}

func BenchmarkLookupRandomOfAMillion(b *testing.B) {
	s := benchStore(b)
	domains := make([][]byte, 1<<16)
	for i := range domains {
		domains[i] = []byte(benchDomain(rand.IntN(benchPolicies)))
	}
	var hit Hit
	b.ReportAllocs()
	i := 0
	defer cpuTime(b)()
	for b.Loop() {
		if err := s.Lookup(domains[i&(len(domains)-1)], &hit); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

func BenchmarkLookupMissOfAMillion(b *testing.B) {
	s := benchStore(b)
	var hit Hit
	d := []byte("mail0500000.customer-nobody.example")
	b.ReportAllocs()
	defer cpuTime(b)()
	for b.Loop() {
		if err := s.Lookup(d, &hit); err != ErrNotFound {
			b.Fatal(err)
		}
	}
}

func BenchmarkCommitOfAMillion(b *testing.B) {
	for _, n := range []int{1, 64, 256} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := benchStore(b)
			b.ReportAllocs()
			k := 0
			for b.Loop() {
				k++
				ops := make([]Op, n)
				for j := range ops {
					// Fetched anew: every index entry but that of its use changes.
					ops[j].Put = benchRecord(rand.IntN(benchPolicies), benchNow.Add(time.Duration(k)*time.Minute))
				}
				if _, err := s.Write(ops); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(anonMiB(b), "anon-MiB")
		})
	}
}

func BenchmarkDueOfAMillion(b *testing.B) {
	s := benchStore(b)
	b.ReportAllocs()
	defer cpuTime(b)()
	for b.Loop() {
		if _, _, err := s.Due(1, benchNow.Add(-3*time.Hour), 64); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpenOfAMillion(b *testing.B) {
	s := benchStore(b)
	path := s.path
	st := s.Stats()
	s.Close()
	defer cpuTime(b)()
	for b.Loop() {
		s, err := Open(path, Options{})
		if err != nil {
			b.Fatal(err)
		}
		var hit Hit
		if err := s.Lookup([]byte(benchDomain(1)), &hit); err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
	b.ReportMetric(float64(st.FileSize)/(1<<20), "file-MiB")
	b.ReportMetric(float64(st.UsedSize)/(1<<20), "used-MiB")
	b.ReportMetric(anonMiB(b), "anon-MiB")
}

// cpuTime reports the CPU time of the loop that follows beside the elapsed time,
// which a busy machine and a slow disk make longer.
func cpuTime(b *testing.B) func() {
	used := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := used()
	return func() { b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op") }
}

// anonMiB returns the anonymous resident memory of this process.
func anonMiB(b *testing.B) float64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "RssAnon:")
	var kB float64
	if _, err := fmt.Sscan(rest, &kB); err != nil {
		b.Fatal(err)
	}
	return kB / 1024
}

func BenchmarkSalvageOfAMillion(b *testing.B) {
	s := benchStore(b)
	path := s.path
	closeStore(b, s)
	defer cpuTime(b)()
	for b.Loop() {
		b.StopTimer()
		copied := filepath.Join(b.TempDir(), "cache.db")
		if out, err := exec.Command("cp", path, copied).CombinedOutput(); err != nil {
			b.Fatal(string(out))
		}
		f, err := os.OpenFile(copied, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt(make([]byte, 4096), 0)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		s, err := Open(copied, Options{})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if r := s.Stats().Salvage; r == nil || r.Recovered != benchPolicies {
			b.Fatalf("%+v", r)
		}
		b.ReportMetric(anonMiB(b), "anon-MiB")
		closeStore(b, s)
		b.StartTimer()
	}
}

// What a lookup would cost through bbolt's own transactions and cursors.
func BenchmarkLookupRandomOfAMillionThroughBbolt(b *testing.B) {
	s := benchStore(b)
	domains := make([][]byte, 1<<16)
	for i := range domains {
		domains[i] = []byte(benchDomain(rand.IntN(benchPolicies)))
	}
	var ready []byte
	b.ReportAllocs()
	i := 0
	defer cpuTime(b)()
	for b.Loop() {
		d := domains[i&(len(domains)-1)]
		err := guard(func() error {
			return s.file.db.View(func(tx *bbolt.Tx) error {
				v, err := parseAt(d, tx.Bucket(bucketPolicy).Get(d))
				if err != nil {
					return err
				}
				ready = append(ready[:0], v.Ready()...)
				return nil
			})
		})
		if err != nil {
			b.Fatal(err)
		}
		i++
	}
}
