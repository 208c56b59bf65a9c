package observe

import (
	"cmp"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/reporting"
)

const tlsShown = 50 // destinations

// A tlsView is what the page about TLS reports says.
type tlsView struct {
	Wrong string // why there is no overview
	reporting.Overview
	Counted          string // when
	Chart            []column
	Scale            uint64 // failed sessions at the upper edge of the chart
	Waiting          int64  // bytes that wait to be counted
	Reports, Dropped []amount
	Open             int
	Oldest           string // the day of the first report that is not delivered; empty: there is none
}

type amount struct {
	What  string
	Count uint64
}

// amounts sorts numbers by name, those that are zero left out.
func amounts[K ~string](list []amount, prefix string, numbers map[K]uint64) []amount {
	for _, name := range slices.Sorted(maps.Keys(numbers)) {
		if numbers[name] > 0 {
			list = append(list, amount{prefix + string(name), numbers[name]})
		}
	}
	return list
}

// A column is a day in a chart: its left edge, and the failed sessions by harm, each on top
// of the one before, in percent of the chart.
type column struct {
	Day   tlsrpt.Day
	Label string
	reporting.Sessions
	X    float64
	Bars [len(reporting.Harms)]struct{ Y, Height float64 }
}

// columns makes a chart, the oldest day first. scale is the number of sessions at its upper
// edge; 0: all sessions of the day.
func (v *tlsView) columns(byDay []reporting.Sessions, scale uint64) (chart []column) {
	for i, s := range slices.Backward(byDay) {
		c, y := column{Day: v.Days[i], Sessions: s, X: 100 * float64(len(chart)) / float64(len(byDay))}, 100.0
		c.Label = c.Day.Begin().Format("2")
		if len(chart) == 0 || c.Label == "1" {
			c.Label = c.Day.Begin().Format("2 Jan")
		}
		for harm, n := range s.Failed {
			if n > 0 {
				b := &c.Bars[harm]
				b.Height = max(2, 100*float64(n)/float64(cmp.Or(scale, s.All))) // any failure shows
				y -= b.Height
				b.Y = y
			}
		}
		chart = append(chart, c)
	}
	return chart
}

// serveTLS shows the destinations with TLS failures, and how far the reports are.
func (o *Observer) serveTLS(w http.ResponseWriter, r *http.Request) {
	s := o.Stats().Reports
	v := &tlsView{Waiting: int64(s.Collect.RingSize) + s.Store.LogSize, Reports: amounts(nil, "", s.Deliver.Reports), Open: s.Deliver.Open}
	if !s.Deliver.Oldest.IsZero() {
		v.Oldest = s.Deliver.Oldest.UTC().Add(-time.Second).Format(time.DateOnly)
	}
	v.Dropped = amounts(amounts(nil, "", s.Collect.Dropped), "store: ", s.Store.Dropped)
	v.Dropped = amounts(v.Dropped, "", map[string]uint64{"failed lookups, too many at once": s.Lost})
	var err error
	if v.Overview, err = o.TLS(); err != nil {
		v.Wrong = text.Printable(strings.ReplaceAll(err.Error(), "\n", ": "))
	}
	v.Worst = v.Worst[:min(len(v.Worst), tlsShown)]
	v.Counted, v.Scale = text.Clock(v.At), 10
	for i := 0; slices.ContainsFunc(v.ByDay[:], func(s reporting.Sessions) bool { return s.Failures() > v.Scale }); i++ {
		v.Scale = v.Scale / [...]uint64{1, 2, 1}[i%3] * [...]uint64{2, 5, 2}[i%3] // 10, 20, 50, 100
	}
	v.Chart = v.columns(v.ByDay[:], v.Scale)
	o.servePage(w, r, "tls", view{TLS: v})
}

// Half is half the scale.
func (v *tlsView) Half() uint64 { return v.Scale / 2 }

// Strip is the chart of a destination, by the share of its sessions that failed.
func (v *tlsView) Strip(f reporting.Failing) []column { return v.columns(f.ByDay[:], 0) }
