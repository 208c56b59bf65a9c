package observe

import (
	"fmt"
	"time"
)

// The plot's measures, in the units of its viewBox.
const (
	chartWidth, chartHeight = 720, 200
	chartLeft, chartTop     = 56, 12 // room for the numbers
	chartRight, chartBase   = chartWidth - 8, chartHeight - 30
	barGap                  = 3
)

// A chart plots how many policies are due in each of the next hours.
type chart struct {
	Width, Height, Left, Right, Base int
	Complete                         bool // all that is due was counted
	Bars                             []bar
	Ticks                            []tick // of the vertical axis
}

type bar struct {
	Title      string // shown for a pointer over the bar
	Label      string // below it
	X, Y, W, H int
}

type tick struct {
	Y    int
	Text string
}

func newChart(counts []int, complete bool, now time.Time) *chart {
	c := &chart{Width: chartWidth, Height: chartHeight, Left: chartLeft, Right: chartRight, Base: chartBase, Complete: complete}
	most := 1
	for _, n := range counts {
		most = max(most, n)
	}
	top := ceiling(most)
	height := func(n int) int { return (chartBase - chartTop) * n / top }
	for _, n := range []int{0, top / 2, top} {
		c.Ticks = append(c.Ticks, tick{Y: chartBase - height(n), Text: thousands(int64(n))})
	}
	step := (chartRight - chartLeft) / len(counts)
	for i, n := range counts {
		from := now.Add(time.Duration(i) * time.Hour).Local()
		b := bar{
			Title: fmt.Sprintf("%s to %s: %s", from.Format("15:04"), from.Add(time.Hour).Format("15:04"), thousands(int64(n))),
			X:     chartLeft + i*step, W: step - barGap, H: height(n),
		}
		switch {
		case i == 0:
			b.Title, b.Label = "overdue, and to "+b.Title[len("15:04 to "):], "now"
		case i%3 == 0:
			b.Label = from.Format("15:04")
		}
		if n > 0 {
			b.H = max(b.H, 1)
		}
		b.Y = chartBase - b.H
		c.Bars = append(c.Bars, b)
	}
	return c
}

// ceiling returns the least of 2, 4, 6, 8, 10, 20, 40, ... that is n or more.
func ceiling(n int) int {
	for unit := 1; ; unit *= 10 {
		for digit := 2; digit <= 10; digit += 2 {
			if n <= digit*unit {
				return digit * unit
			}
		}
	}
}

// thousands writes a number as 1,234,567.
func thousands(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
