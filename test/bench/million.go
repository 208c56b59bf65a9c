package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

const (
	millionPolicies = 1_000_000

	// The file is filled in random order within a window, so that its pages are
	// as full as those of a file that grew over time. Sequential writes fill
	// pages differently.
	millionWindow = 50_000
	millionBatch  = 5_000 // policies in one commit

	// All policies live for a year and are due in two months, so that a daemon
	// has nothing to refresh.
	millionMaxAge = 365 * 24 * time.Hour
	millionDueIn  = 60 * 24 * time.Hour
	millionGoodIn = 45 * 24 * time.Hour // older files are created anew

	millionID = "20260101T000000"
)

// A million is a cache file with a million policies.
type million struct {
	path string
	made time.Time // when all of them were fetched, checked and used
}

// millionDomain returns the i-th domain. All have the same length.
func millionDomain(i int) string { return string(appendMillionDomain(nil, i)) }

func appendMillionDomain(dst []byte, i int) []byte {
	var digits [7]byte
	for at := len(digits) - 1; at >= 0; at-- {
		digits[at] = byte('0' + i%10)
		i /= 10
	}
	return append(append(append(dst, "mail"...), digits[:]...), ".customers.example"...)
}

// policyText returns a policy as providers publish it for their customers.
func policyText(domain string) string {
	return fmt.Sprintf("version: STSv1\r\nmode: enforce\r\nmx: mx1.%[1]s\r\nmx: mx2.%[1]s\r\nmx: *.backup.%[1]s\r\nmax_age: %[2]d\r\n",
		domain, int64(millionMaxAge/time.Second))
}

// replyFor returns the daemon's reply in map postfix.
func replyFor(domain string) string {
	return fmt.Sprintf("OK secure match=mx1.%[1]s:mx2.%[1]s:.backup.%[1]s servername=hostname", domain)
}

// recordOf returns the record of a policy fetched at a time and due later.
func recordOf(domain string, fetched time.Time, later time.Duration) (*cache.Record, error) {
	text := []byte(policyText(domain))
	p, err := policy.Parse(text)
	if err != nil {
		return nil, err
	}
	due := fetched.Add(later)
	return &cache.Record{
		Domain: domain, ID: millionID, Mode: p.Mode, Text: text, Match: tlsmap.MatchList(p),
		Fetched: fetched, Expires: fetched.Add(p.MaxAge), Checked: fetched, Used: fetched, Regular: true,
		FetchAt: due, FetchUnusedAt: due, Lane: cache.LaneNormal, Due: due,
	}, nil
}

// openMillion returns the file in the user's cache directory. It creates the
// file if it is missing, too old, or not what today's program would write.
func openMillion() (*million, error) {
	folder, err := os.UserCacheDir()
	if err != nil {
		folder = os.TempDir()
	}
	folder = filepath.Join(folder, "sts-tlsmap-bench")
	m := &million{path: filepath.Join(folder, "million.db")}
	var locked *cache.LockedError
	why := m.look()
	if errors.As(why, &locked) {
		return nil, why
	}
	if why != nil {
		fmt.Fprintf(os.Stderr, "making %s: %v\n", m.path, why)
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return nil, err
		}
		if err := m.make(); err != nil {
			return nil, fmt.Errorf("making %s: %w", m.path, err)
		}
		if err := m.look(); err != nil {
			return nil, err
		}
	}
	return m, m.read()
}

// read reads the file into the page cache.
func (m *million) read() error {
	f, err := os.Open(m.path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(io.Discard, f)
	return err
}

// look returns why the file cannot be used.
func (m *million) look() error {
	store, err := cache.OpenReadOnly(m.path)
	if err != nil {
		return err
	}
	defer store.Close()
	if n := store.Stats().Policies(); n != millionPolicies {
		return fmt.Errorf("wrong number of policies: %d", n)
	}
	got, err := store.Get(millionDomain(millionPolicies / 2))
	if err != nil {
		return err
	}
	want, err := recordOf(got.Domain, got.Fetched, millionDueIn)
	if err != nil {
		return err
	}
	if fmt.Sprint(got) != fmt.Sprint(*want) {
		return errors.New("its records differ from today's")
	}
	if time.Since(got.Fetched) > millionGoodIn {
		return errors.New("too old")
	}
	m.made = got.Fetched
	return nil
}

// make creates the file in memory if there is room, since it needs many
// commits, and then moves it to its place.
func (m *million) make() (err error) {
	folder, err := os.MkdirTemp(memoryFolder, "sts-tlsmap-bench-")
	if err != nil {
		folder, err = os.MkdirTemp(filepath.Dir(m.path), "draft-")
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	draft := filepath.Join(folder, "million.db")
	store, err := cache.Open(draft, cache.Options{})
	if err != nil {
		return err
	}
	if err := errors.Join(fillMillion(store), store.Close()); err != nil {
		return err
	}
	placed := m.path + ".draft"
	if err := copyFile(draft, placed); err != nil {
		return err
	}
	return os.Rename(placed, m.path)
}

func fillMillion(store *cache.Store) error {
	made := time.Now().Truncate(time.Second)
	ops := make([]cache.Op, 0, millionBatch)
	for first := 0; first < millionPolicies; first += millionWindow {
		for _, i := range rand.New(rand.NewPCG(1, uint64(first))).Perm(millionWindow) {
			r, err := recordOf(millionDomain(first+i), made, millionDueIn)
			if err != nil {
				return err
			}
			if ops = append(ops, cache.Op{Put: r}); len(ops) < millionBatch {
				continue
			}
			if _, err := store.Write(ops); err != nil {
				return err
			}
			ops = ops[:0]
		}
	}
	return nil
}
