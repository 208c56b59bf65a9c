package observe

import (
	"fmt"
	"time"
)

// The plot's measures, in the units of its viewBox.
const (
	chartWidth, chartHeight = 720, 200
	chartLeft, chartTop     = 56, 12 // room for the numbers
	chartRight, chartBottom = 8, 30
	barGap                  = 3
)

// A chart is a plot of stacked bars.
type chart struct {
	Width, Height int
	Left, Right   int // where the plot begins and ends
	Base          int // of the bars
	Bars          []bar
	Ticks         []tick  // of the vertical axis
	Labels        []label // of the horizontal one
}

type bar struct {
	Title        string // of the whole bar, for a pointer over it
	X, W, Height int
	Parts        []part // from below
}

type part struct {
	Class   string
	X, Y, W int
	H       float64
}

type tick struct {
	Y    int
	Text string
}

type label struct {
	X    int
	Text string
}

var dueClasses = [dueKinds]string{dueCheck: "check", dueFetch: "fetch", dueRetry: "retry"}

// dueChart plots what is overdue, and what is due in each of the next hours.
func dueChart(s *sample, now time.Time) *chart {
	c := &chart{Width: chartWidth, Height: chartHeight, Left: chartLeft, Right: chartWidth - chartRight, Base: chartHeight - chartBottom}
	columns := append([][dueKinds]int64{s.overdue}, s.hours[:]...)
	most := int64(0)
	for _, counts := range columns {
		most = max(most, sum(counts))
	}
	top := ceiling(most)
	for _, n := range []int64{0, top / 2, top} {
		c.Ticks = append(c.Ticks, tick{Y: c.Base - int(float64(c.Base-chartTop)*float64(n)/float64(top)), Text: count(n)})
	}
	step := (c.Right - c.Left) / len(columns)
	for i, counts := range columns {
		x := c.Left + i*step
		c.Bars = append(c.Bars, c.stack(counts, top, x, step-barGap, columnTitle(i, counts, now)))
		switch {
		case i == 0:
			c.Labels = append(c.Labels, label{X: x + step/2, Text: "overdue"})
		case i%3 == 0:
			c.Labels = append(c.Labels, label{X: x, Text: now.Add(time.Duration(i-1) * time.Hour).Local().Format("15:04")})
		}
	}
	return c
}

func (c *chart) stack(counts [dueKinds]int64, top int64, x, w int, title string) bar {
	b := bar{Title: title, X: x, W: w, Height: c.Base}
	y := float64(c.Base)
	for kind, n := range counts {
		if n == 0 {
			continue
		}
		h := float64(c.Base-chartTop) * float64(n) / float64(top)
		y -= h
		b.Parts = append(b.Parts, part{Class: dueClasses[kind], X: x, Y: int(y + 0.5), W: w, H: max(h, 1)})
	}
	return b
}

func columnTitle(i int, counts [dueKinds]int64, now time.Time) string {
	when := "overdue"
	if i > 0 {
		from := now.Add(time.Duration(i-1) * time.Hour).Local()
		when = from.Format("15:04") + " to " + from.Add(time.Hour).Format("15:04")
	}
	return fmt.Sprintf("%s: %s TXT records, %s policies, %s policies after a failure",
		when, count(counts[dueCheck]), count(counts[dueFetch]), count(counts[dueRetry]))
}

func sum(counts [dueKinds]int64) int64 {
	var n int64
	for _, c := range counts {
		n += c
	}
	return n
}

// ceiling is an even number of one digit and zeros, n or more, but for 10.
func ceiling(n int64) int64 {
	for unit := int64(1); ; unit *= 10 {
		for _, digit := range []int64{2, 4, 6, 8, 10} {
			if n <= digit*unit {
				return digit * unit
			}
		}
	}
}

// count writes a number with its thousands apart.
func count(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
