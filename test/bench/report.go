package main

import (
	"bytes"
	"fmt"
	"runtime"
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

func (o outcome) verdict() string {
	switch {
	case o.err != nil:
		return "failed"
	case o.result.value > o.row.bound:
		return "missed"
	}
	return "held"
}

// table is what the terminal shows.
func table(outcomes []outcome) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ROW\tAT MOST\tMEASURED\tRANGE\t")
	for _, o := range outcomes {
		if o.err != nil {
			fmt.Fprintf(w, "%s\t%s\tfailed: %v\t\t\n", o.row.name, o.amount(o.row.bound), o.err)
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", o.row.name, o.amount(o.row.bound), o.measured(), o.spread(), o.verdict())
	}
	w.Flush()
	return b.String()
}

// page is docs/performance.md.
func page(outcomes []outcome) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `# Performance

Measured by `+"`make bench`"+`, which runs `+"`go run ./test/bench`"+` and writes this
page; %s on %s/%s.

A row without a unit is a ratio of CPU times: what our process uses for a piece
of work, user and system time together, over what a bare program uses that does
the input and output of the same work and nothing else. The two stand under the
same load in turn, in pairs, after a warm-up; the figure is the median of the
pairs' ratios, and the range is that of single pairs. The load generator's time
is in neither.

| row | what | at most | measured | range | |
|---|---|---|---|---|---|
`, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	for _, o := range outcomes {
		measured := o.measured()
		if o.err != nil {
			measured = "-"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n",
			o.row.name, o.row.what, o.amount(o.row.bound), measured, o.spread(), o.verdict())
	}
	return b.Bytes()
}
