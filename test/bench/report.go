package main

import (
	"bytes"
	"fmt"
	"strings"
	"text/tabwriter"
)

// An outcome is a row and what became of it.
type outcome struct {
	row    row
	result result
	err    error
}

func (o outcome) String() string {
	if o.err != nil {
		return "failed: " + o.err.Error()
	}
	s := o.measured()
	if o.result.note != "" {
		s += " (" + o.result.note + ")"
	}
	return s + ", " + o.verdict()
}

func (o outcome) measured() string { return o.amount(o.result.value) }

func (o outcome) amount(v float64) string {
	return strings.TrimSpace(fmt.Sprintf("%.2f %s", v, o.row.unit))
}

// spread is the range of the pairs' ratios, or of what else there are several.
func (o outcome) spread() string {
	if o.result.count == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f to %.2f, %d %s", o.result.low, o.result.high, o.result.count, o.result.counted)
}

// interval is that of the median.
func (o outcome) interval() string {
	if o.result.to == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f to %.2f", o.result.from, o.result.to)
}

// verdict compares the value with the bound. Where the median of another run
// may as well be on the other side, it says so.
func (o outcome) verdict() string {
	about := ""
	if o.result.from <= o.row.bound && o.row.bound < o.result.to {
		about = "about "
	}
	switch {
	case o.err != nil:
		return "failed"
	case o.result.value > o.row.bound:
		return about + "missed"
	}
	return about + "held"
}

// table is what the terminal shows.
func table(outcomes []outcome) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ROW\tAT MOST\tMEASURED\tINTERVAL\tRANGE\t")
	for _, o := range outcomes {
		if o.err != nil {
			fmt.Fprintf(w, "%s\t%s\tfailed: %v\t\t\t\n", o.row.name, o.amount(o.row.bound), o.err)
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", o.row.name, o.amount(o.row.bound), o.measured(), o.interval(), o.spread(), o.verdict())
	}
	w.Flush()
	return b.String()
}

// page is docs/performance.md.
func page(outcomes []outcome, m machine) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `# Performance

Measured by `+"`make bench`"+`, which runs `+"`go run ./test/bench`"+` and writes this
page. %s

A row without a unit is a ratio of CPU times: what our process uses for a piece
of work, user and system time together, over what a bare program uses that does
the input and output of the same work and nothing else. The two stand under the
same load in turn, in pairs, after a warm-up; the figure is the median of the
pairs' ratios, and the range is that of single pairs. The interval is that in
which the median lies with 95 %% confidence, by order statistics: where the limit
is inside it, the row says "about", since another run may end on the other side.
The load generator's time is in neither.

The lookups of the first two rows are asked by %d clients that sleep until they
are answered, as smtp(8) processes do, at random times, %d a second in all: the
same load for both sides. What a row comes to with clients that ask again as soon
as they are answered stands beside it. There the faster side is under the greater
load, and the kernel interrupts the slower one more often to let a client go on.

| row | what | at most | measured | interval | range | |
|---|---|---|---|---|---|---|
`, m, lookupClients, lookupRate)
	for _, o := range outcomes {
		measured := o.measured()
		if o.err != nil {
			measured = "-"
		}
		if o.result.note != "" {
			measured += "; " + o.result.note
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s |\n",
			o.row.name, o.row.what, o.amount(o.row.bound), measured, o.interval(), o.spread(), o.verdict())
	}
	return b.Bytes()
}
