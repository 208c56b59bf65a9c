package observe

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
)

// due returns a record that is due, with as much life left.
func due(in, left time.Duration) cache.Record {
	return cache.Record{Due: noon.Add(in), FetchAt: noon.Add(in), Expires: noon.Add(left)}
}

func TestEachPolicyStandsInTheHourInWhichItIsDue(t *testing.T) {
	const day = 24 * time.Hour
	records := []cache.Record{
		due(-time.Minute, day+1), due(time.Minute, 3*day), due(90*time.Minute, 3*day), due(23*time.Hour+1, 60*day),
		due(day, 100*day),  // later
		due(-time.Hour, 0), // expired: only to be deleted
		{Due: noon.Add(9 * day), Expires: noon.Add(2 * day)}, // not used any more
		{Due: noon.Add(time.Minute), CheckAt: noon.Add(time.Minute), Failures: 3, Expires: noon.Add(2 * day)},
		{Due: noon.Add(time.Minute), Failures: 3, Expires: noon.Add(2 * day)},
	}
	for i := range records {
		records[i].Domain = fmt.Sprintf("%d.test", i)
	}
	s, err := draw(func(after string, _ int) ([]cache.Record, string, error) {
		if after != "" {
			return nil, "", nil
		}
		return records, "", nil
	}, int64(len(records)), noon)
	if err != nil || !s.all || s.read != len(records) {
		t.Fatalf("%+v, %v", s, err)
	}
	if s.overdue != [dueKinds]int64{dueFetch: 1} || s.later != 3 {
		t.Errorf("overdue %v, later %d", s.overdue, s.later)
	}
	if s.hours[0] != [dueKinds]int64{1, 1, 1} || s.hours[1][dueFetch] != 1 || s.hours[23][dueFetch] != 1 {
		t.Errorf("hours %v", s.hours)
	}
	if s.lives != [len(lives)]int64{1, 0, 6, 0, 1, 1} {
		t.Errorf("lives %v", s.lives)
	}
}

func TestALargeCacheIsSampledAndNotReadThrough(t *testing.T) {
	const total = 1_000_000
	reads := 0
	s, err := draw(func(string, int) ([]cache.Record, string, error) {
		reads++
		page := make([]cache.Record, samplePage)
		for i := range page {
			page[i] = due(time.Duration(i%10)*time.Hour+time.Minute, 240*time.Hour)
		}
		return page, "more", nil
	}, total, noon)
	if err != nil || s.all || reads != samplePages || s.read != samplePages*samplePage {
		t.Fatalf("%d reads of %d records, all: %v, %v", reads, s.read, s.all, err)
	}
	if s.hours[3][dueFetch] != total/10 || s.lives[3] != total {
		t.Errorf("%d in the fourth hour, %v", s.hours[3][dueFetch], s.lives)
	}
}

func TestTheSampleOfACacheWhoseNamesBeginAlikeIsNotEmpty(t *testing.T) {
	s, err := draw(func(after string, _ int) ([]cache.Record, string, error) {
		if after > "" {
			return nil, "", nil // all are before any place
		}
		return []cache.Record{due(time.Minute, time.Hour)}, "", nil
	}, 100_000, noon)
	if err != nil || s.read != samplePages || s.hours[0][dueFetch] != 100_000 {
		t.Errorf("%d read, %v, %v", s.read, s.hours[0], err)
	}
}

func TestACacheThatCannotBeReadHasNoSample(t *testing.T) {
	bad := errors.New("unreadable")
	if _, err := draw(func(string, int) ([]cache.Record, string, error) { return nil, "", bad }, 3, noon); err != bad {
		t.Errorf("got %v", err)
	}
}

func TestBarsStayWithinThePlot(t *testing.T) {
	for _, n := range []int64{0, 1, 2, 3, 7, 11, 999, 20_000, 123_456_789} {
		s := &sample{overdue: [dueKinds]int64{n, n / 2, n / 3}}
		s.hours[plotHours-1][dueRetry] = n
		c := dueChart(s, noon)
		for _, b := range c.Bars {
			if b.X < c.Left || b.X+b.W > c.Right {
				t.Errorf("%d: a bar from %d to %d", n, b.X, b.X+b.W)
			}
			for _, p := range b.Parts {
				if p.Y < chartTop-1 || float64(p.Y)+p.H > float64(c.Base)+1 {
					t.Errorf("%d: a part from %d, %v high", n, p.Y, p.H)
				}
			}
		}
		most := sum(s.overdue)
		if top := ceiling(most); top < most || top%2 != 0 || c.Ticks[2].Text != count(top) {
			t.Errorf("%d: the axis ends at %s", n, c.Ticks[2].Text)
		}
	}
	if got := count(-1234567) + " " + count(999) + " " + count(1000); got != "-1,234,567 999 1,000" {
		t.Errorf("got %s", got)
	}
}
