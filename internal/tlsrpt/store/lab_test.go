package store_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/deliver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

const (
	day  = tlsrpt.Day("2026-11-30")
	next = tlsrpt.Day("2026-12-01")
)

// A clock is set by the test.
type clock struct{ nano atomic.Int64 }

func (c *clock) set(text string) {
	t, err := time.Parse("2006-01-02 15:04", text)
	if err != nil {
		panic(err)
	}
	c.nano.Store(t.UnixNano())
}

func (c *clock) now() time.Time { return time.Unix(0, c.nano.Load()).UTC() }

func (c *clock) add(d time.Duration) { c.nano.Add(int64(d)) }

// A lines is a log for tests.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

type lab struct {
	*store.Store
	t     testing.TB
	path  string
	clock clock
	log   lines
	o     store.Options
	batch store.Batch
}

// deliver reads what it reports from a store.
var _ deliver.Store = (*store.Store)(nil)

// newLab opens a new store at noon of 2026-11-30.
func newLab(t testing.TB, o store.Options) *lab {
	t.Helper()
	l := &lab{t: t, path: filepath.Join(t.TempDir(), "reports.db"), o: o}
	l.clock.set("2026-11-30 12:00")
	l.o.Now = l.clock.now
	l.o.Log = slog.New(slog.NewTextHandler(&l.log, nil))
	l.open()
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func (l *lab) open() {
	l.t.Helper()
	var err error
	if l.Store, err = store.Open(l.path, l.o); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) reopen() {
	l.t.Helper()
	if err := l.Close(); err != nil {
		l.t.Fatal(err)
	}
	l.open()
}

// write writes a batch of the clock's day.
func (l *lab) write(events ...tlsrpt.Event) {
	l.t.Helper()
	l.batch.Reset(tlsrpt.DayOf(l.clock.now()))
	for i := range events {
		l.batch.Add(&events[i])
	}
	if err := l.Write(&l.batch); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) upkeep() {
	l.t.Helper()
	if err := l.Upkeep(); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) merge() {
	l.t.Helper()
	if err := l.Merge(); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) load(day tlsrpt.Day, domain string) tlsrpt.DomainDay {
	l.t.Helper()
	d, err := l.Load(day, domain)
	if err != nil || d.Domain != domain || d.Day != day {
		l.t.Fatalf("%+v, %v", d, err)
	}
	return d
}

// mustCount checks the sessions of a domain's day, over its policies.
func (l *lab) mustCount(day tlsrpt.Day, domain string, successful, failed uint64) {
	l.t.Helper()
	var got [2]uint64
	for _, p := range l.load(day, domain).Policies {
		got[0] += p.Successful
		got[1] += p.Failed
	}
	if got != [2]uint64{successful, failed} {
		l.t.Errorf("%s on %s: %d, want %d and %d; %+v", domain, day, got, successful, failed, l.Stats())
	}
}

func (l *lab) mustDrop(reason string, n uint64) {
	l.t.Helper()
	if got := l.Stats().Dropped[reason]; got != n {
		l.t.Errorf("dropped: %v, want %s: %d", l.Stats().Dropped, reason, n)
	}
}

func stsPolicy(domain string) tlsrpt.Policy {
	return tlsrpt.Policy{Type: tlsrpt.TypeSTS, Domain: domain, MXHosts: []string{"mx." + domain},
		Strings: []string{"version: STSv1", "mode: enforce", "mx: mx." + domain, "max_age: 604800"}}
}

func success(domain string) tlsrpt.Event {
	return tlsrpt.Event{Domain: domain, Policy: stsPolicy(domain)}
}

func failed(domain string, failures ...tlsrpt.Failure) tlsrpt.Event {
	return tlsrpt.Event{Domain: domain, Policy: stsPolicy(domain), Failed: true, Failures: failures}
}

func expired(domain string) tlsrpt.Failure {
	return tlsrpt.Failure{Result: tlsrpt.CertificateExpired, MXHost: "mx." + domain, HELO: "mx." + domain,
		SendingIP: netip.MustParseAddr("192.0.2.9"), ReceivingIP: netip.MustParseAddr("2001:db8::1")}
}

func numbered(n int) string { return fmt.Sprintf("d%06d.test", n) }
