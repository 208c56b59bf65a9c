package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

const (
	daySessions, dayDomains           = 1_000_000, 100_000
	largeDaySessions, largeDayDomains = 10_000_000, 1_000_000
	dayVariable                       = "STS_TLSMAP_BENCH_LARGE_DAY" // set: the large day; then a limit that does not hold is an error
	dayMemory                         = 256                          // MiB
	dayWritten                        = 2048                         // bytes a session
)

// sessionsOfADay measures the memory of the store over a day of sessions, evenly spread,
// by a simulated clock: a batch each second, upkeep each minute, and the close of the day.
func sessionsOfADay(b *bench) (result, error) {
	sessions, domains := daySessions, dayDomains
	_, large := os.LookupEnv(dayVariable)
	if large {
		sessions, domains = largeDaySessions, largeDayDomains
	}
	folder, err := os.MkdirTemp(memoryFolder, "sts-tlsmap-bench-")
	if err != nil {
		return result{}, err
	}
	b.atEnd(func() { os.RemoveAll(folder) })
	p, err := b.startSide("day", folder, strconv.Itoa(sessions), strconv.Itoa(domains))
	if err != nil {
		return result{}, err
	}
	w := p.watchMemory(b.ctx)
	written, err := p.number()
	peak, watchErr := w.stop()
	switch {
	case err != nil:
		return result{}, err
	case watchErr != nil:
		return result{}, watchErr
	case written/sessions > dayWritten, large && peak/mib > dayMemory:
		return result{}, fmt.Errorf("%d bytes were written a session, with %.1f MiB of memory", written/sessions, peak/mib)
	}
	return result{value: peak / mib, note: fmt.Sprintf("%d bytes written a session; %d sessions of %d domains", written/sessions, sessions, domains)}, nil
}

// daySide prints how many bytes it has written.
func daySide(args []string) error {
	sessions, _ := strconv.Atoi(args[1])
	domains, _ := strconv.Atoi(args[2])
	const day = tlsrpt.Day("2026-11-30")
	now := day.Begin()
	s, err := store.Open(filepath.Join(args[0], "reports.db"), store.Options{Now: func() time.Time { return now }})
	if err != nil {
		return err
	}
	ready("-")
	var batch store.Batch
	for second, sent := 1, 0; second <= 86_400+11*60; second++ {
		batch.Reset(day)
		for ; sent < min(sessions*second/86_400, sessions); sent++ {
			batch.Add(daySession(sent, domains))
		}
		if batch.Sessions() > 0 {
			if err := s.Write(&batch); err != nil {
				return err
			}
		}
		if now = now.Add(time.Second); second%60 == 0 {
			if err := s.Upkeep(); err != nil {
				return err
			}
		}
	}
	if stage, err := s.Stage(day); stage != tlsrpt.StageClosed || s.Stats().Merged != uint64(sessions) {
		return fmt.Errorf("%q, %v, %+v", stage, err, s.Stats())
	}
	written, err := writtenBytes()
	if err != nil {
		return err
	}
	fmt.Println(written)
	return s.Close()
}

// daySession returns a session of a domain, each as often; one in a hundred failed.
func daySession(i, domains int) *tlsrpt.Event {
	domain := fmt.Sprintf("d%06d.test", i*7919%domains) // 7919 is prime
	mx := "mx." + domain
	e := &tlsrpt.Event{Domain: domain, Policy: tlsrpt.Policy{Type: tlsrpt.TypeSTS, Domain: domain, MXHosts: []string{mx},
		Strings: []string{"version: STSv1", "mode: enforce", "mx: " + mx, "max_age: 604800"}}}
	if e.Failed = i%100 == 0; e.Failed {
		e.Failures = []tlsrpt.Failure{{Result: tlsrpt.CertificateExpired, MXHost: mx, HELO: mx,
			SendingIP: netip.MustParseAddr("192.0.2.9"), ReceivingIP: netip.MustParseAddr("2001:db8::1")}}
	}
	return e
}

// writtenBytes returns the bytes that this process has handed to write system calls.
func writtenBytes() (n int64, err error) {
	io, err := os.ReadFile("/proc/self/io")
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(io), "wchar: ")
	_, err = fmt.Sscan(rest, &n)
	return n, err
}
