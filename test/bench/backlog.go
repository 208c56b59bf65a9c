package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

const (
	backlogRate  = 20               // policies a second: the default of [refresh] fetch_rate
	backlogEvery = 1000             // simulated seconds between reports
	backlogStop  = 24 * time.Hour   // how long the policies have been due at the start
	backlogSlack = 1.02             // permitted deviation of the duration from the rate
	backlogGrown = 1.05             // permitted growth of the file
	memoryFolder = "/dev/shm"       // fsync costs nothing there
	backlogDone  = "all fetched in" // begins the last line of the side
)

// overdueMillion measures how much the anonymous memory of a keeper grows
// while it works off a million policies, all due at once after a long stop. A
// wrong rate and a growing file are errors.
//
// bbolt remembers the pages that it has written since it was opened
// (freelist.shared.allocs), 11.5 MiB in all for a million policies, so some
// growth is expected.
//
// The store is real. Time is simulated and the network answers at once, so
// that fourteen hours pass in a minute or two.
func overdueMillion(b *bench) (result, error) {
	m, err := b.shop.million()
	if err != nil {
		return result{}, err
	}
	folder, err := os.MkdirTemp(memoryFolder, "sts-tlsmap-bench-")
	if err != nil {
		folder = b.shop.dir
	} else {
		b.atEnd(func() { os.RemoveAll(folder) })
	}
	path := filepath.Join(folder, "backlog.db")
	if err := copyFile(m.path, path); err != nil {
		return result{}, err
	}
	before, err := os.Stat(path)
	if err != nil {
		return result{}, err
	}
	p, err := b.startSide("backlog", path, strconv.FormatInt(m.made.Add(millionDueIn+backlogStop).Unix(), 10))
	if err != nil {
		return result{}, err
	}
	w := p.watchMemory(b.ctx)
	seconds, err := followBacklog(p)
	peak, watchErr := w.stop()
	switch {
	case err != nil:
		return result{}, err
	case watchErr != nil:
		return result{}, watchErr
	}
	if want := float64(millionPolicies) / backlogRate; seconds > want*backlogSlack || seconds < want*(2-backlogSlack) {
		return result{}, fmt.Errorf("the backlog took %.0f s of simulated time; at %d a second it must be %.0f s", seconds, backlogRate, want)
	}
	after, err := os.Stat(path)
	if err != nil {
		return result{}, err
	}
	if float64(after.Size()) > float64(before.Size())*backlogGrown {
		return result{}, fmt.Errorf("the file grows: from %d MiB to %d MiB", before.Size()/mib, after.Size()/mib)
	}
	quarters := w.quarters()
	return result{
		value: quarters[3] - quarters[1],
		note: fmt.Sprintf("%.1f MiB at most; by quarters of the time %.1f MiB; done in %.0f s of simulated time, %.1f a second",
			peak/mib, quarters, seconds, millionPolicies/seconds),
	}, nil
}

// followBacklog reads the side's reports to the last one and returns the
// simulated duration.
func followBacklog(p *process) (seconds float64, err error) {
	last := ""
	for {
		line, err := p.lines.ReadString('\n')
		switch line = strings.TrimSpace(line); {
		case err == io.EOF:
			return 0, fmt.Errorf("the simulation ended after %q", last)
		case err != nil:
			return 0, err
		case strings.HasPrefix(line, backlogDone):
			return strconv.ParseFloat(strings.TrimSpace(strings.TrimPrefix(line, backlogDone)), 64)
		}
		last = line
	}
}

// quarters returns the largest sample of each quarter of the time in MiB.
func (w *memoryWatch) quarters() [4]float64 {
	var most [4]float64
	for i, s := range w.samples {
		q := i * len(most) / len(w.samples)
		most[q] = max(most[q], s/mib)
	}
	return most
}

// backlogSide simulates the backlog. It runs as a test, since only tests have
// simulated time.
func backlogSide(args []string) error {
	unix, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	ready("-")
	simulation := func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { workOff(t, args[0], time.Unix(unix, 0)) })
	}
	always := func(string, string) (bool, error) { return true, nil }
	testing.Main(always, []testing.InternalTest{{Name: "backlog", F: simulation}}, nil, nil) // ends the process
	return nil
}

// workOff runs a keeper from start until it has fetched the million policies.
func workOff(t *testing.T, path string, start time.Time) {
	time.Sleep(time.Until(start))
	store, err := cache.Open(path, cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	k := keeper.New(keeper.Options{
		Store: store, Network: instantNet{}, MatchList: tlsmap.MatchList, MatchListCurrent: tlsmap.MatchListCurrent,
		Observe: func(keeper.Event) {}, Log: slog.New(slog.DiscardHandler),
		LookupTimeout: 20 * time.Second, FetchTimeout: 30 * time.Second, LookupConcurrency: 256,
		Recheck: 5 * time.Minute, UnusedAfter: 90 * 24 * time.Hour, FetchRate: backlogRate, RefreshConcurrency: 32,
	})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- k.Run(ctx) }()
	for fetched := int64(0); fetched < millionPolicies && time.Since(start) < 2*millionPolicies/backlogRate*time.Second; {
		step := min(backlogEvery*time.Second, time.Duration(millionPolicies-fetched)*time.Second/backlogRate)
		time.Sleep(max(step, time.Second))
		fetched = k.Stats().Fetches
		fmt.Printf("%.0f s: %d policies fetched\n", time.Since(start).Seconds(), fetched)
	}
	fmt.Println(backlogDone, time.Since(start).Seconds())
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// instantNet is a network where every domain still publishes the same policy.
type instantNet struct{}

func (instantNet) Record(context.Context, string) (policy.Record, time.Duration, error) {
	return policy.Record{ID: millionID}, time.Hour, nil
}

func (instantNet) Fetch(_ context.Context, domain string, _ policy.Gate) (*policy.Fetched, error) {
	text := []byte(policyText(domain))
	p, err := policy.Parse(text)
	if err != nil {
		return nil, err
	}
	return &policy.Fetched{Text: text, Policy: p}, nil
}
