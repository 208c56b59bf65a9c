package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
)

const (
	mib = 1 << 20

	// memoryOverdue of the million policies are due, and are fetched as fast as
	// the machine can. This is much faster than the default fetch_rate, so that
	// more fetches are in memory at once.
	memoryOverdue = 60_000
	memoryRefresh = "\n[refresh]\nfetch_rate = 10000\n"

	sampleEvery = 50 * time.Millisecond
	statsEvery  = 500 * time.Millisecond
	refreshTime = 10 * time.Minute // limit for fetching all that is due
)

// memoryOfAMillion measures the daemon's largest anonymous memory while it
// answers for each of a million policies and refreshes those due.
func memoryOfAMillion(b *bench) (result, error) {
	m, err := b.shop.million()
	if err != nil {
		return result{}, err
	}
	path := filepath.Join(b.shop.dir, "memory.db")
	b.atEnd(func() { os.Remove(path) })
	if err := copyFile(m.path, path); err != nil {
		return result{}, err
	}
	if err := makeOverdue(path); err != nil {
		return result{}, err
	}
	lab, err := b.startLab()
	if err != nil {
		return result{}, err
	}
	d, err := b.startDaemon(daemonConfig{cache: path, lab: lab, more: memoryRefresh})
	if err != nil {
		return result{}, err
	}
	w := d.watchMemory(b.ctx)
	err = b.lookUpEach(d)
	asked := w.last()
	if err == nil {
		err = d.refreshed(b.ctx)
	}
	took := time.Since(d.Began)
	peak, watchErr := w.stop()
	if err := errors.Join(err, watchErr); err != nil {
		return result{}, err
	}
	return result{
		value: peak / mib,
		note: fmt.Sprintf("%.1f MiB after a lookup of each; %d of %d were refreshed within %.0f s of the start; %.1f MiB at most by quarters of the time",
			asked/mib, memoryOverdue, millionPolicies, took.Seconds(), w.quarters()),
	}, nil
}

// makeOverdue makes memoryOverdue policies, spread over the whole file, due an
// hour ago.
func makeOverdue(path string) (err error) {
	store, err := cache.Open(path, cache.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	const batch = 1000
	due := time.Now().Add(-time.Hour)
	var ops []cache.Op
	for i := range memoryOverdue {
		r, err := store.Get(millionDomain(i * (millionPolicies / memoryOverdue)))
		if err != nil {
			return err
		}
		r.FetchAt, r.FetchUnusedAt, r.Due = due, due, due
		if ops = append(ops, cache.Op{Put: &r}); len(ops) < batch {
			continue
		}
		if _, err := store.Write(ops); err != nil {
			return err
		}
		ops = nil
	}
	return nil
}

// refreshed waits until the daemon has fetched all policies due.
func (d *daemon) refreshed(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, refreshTime)
	defer cancel()
	for {
		done, failed, err := d.fetches(ctx)
		switch {
		case err != nil:
			return err
		case failed > 0:
			return fmt.Errorf("%d of %d fetches failed:\n%s", failed, failed+done, tail(d.Log()))
		case done >= memoryOverdue:
			return nil
		}
		select {
		case <-time.After(statsEvery):
		case <-ctx.Done():
			return fmt.Errorf("only %d of %d policies fetched in time", done, memoryOverdue)
		}
	}
}

// anonymous returns the anonymous resident memory of the process in bytes. The
// kernel cannot reclaim it, unlike the pages of a mapped file.
func (p *process) anonymous() (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(line, "RssAnon:"); found {
			kib, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 64)
			return kib * 1024, err
		}
	}
	return 0, errors.New("no RssAnon in /proc")
}

// A memoryWatch samples a process's memory many times a second.
type memoryWatch struct {
	mu      sync.Mutex
	samples []float64
	err     error
	end     context.CancelFunc
	ended   chan struct{}
}

func (p *process) watchMemory(ctx context.Context) *memoryWatch {
	ctx, end := context.WithCancel(ctx)
	w := &memoryWatch{end: end, ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		tick := time.NewTicker(sampleEvery)
		defer tick.Stop()
		for w.sample(p) {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	return w
}

func (w *memoryWatch) sample(p *process) bool {
	bytes, err := p.anonymous()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.samples, w.err = append(w.samples, bytes), err
	return err == nil
}

// last returns the last sample, or 0 before the first.
func (w *memoryWatch) last() float64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.samples) == 0 {
		return 0
	}
	return w.samples[len(w.samples)-1]
}

// stop ends the watch and returns the largest sample.
func (w *memoryWatch) stop() (peak float64, err error) {
	w.end()
	<-w.ended
	for _, s := range w.samples {
		peak = max(peak, s)
	}
	return peak, w.err
}
