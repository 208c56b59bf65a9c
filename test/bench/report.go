package main

import (
	"bytes"
	"fmt"
	"strings"
	"text/tabwriter"
)

// An outcome is a row with its result.
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

// spread returns the range of several values.
func (o outcome) spread() string {
	if o.result.count == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f to %.2f, %d %s", o.result.low, o.result.high, o.result.count, o.result.counted)
}

// interval returns the confidence interval of the median.
func (o outcome) interval() string {
	if o.result.to == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f to %.2f", o.result.from, o.result.to)
}

// verdict compares the value with the bound. If the bound lies within the
// interval, another run may end differently.
func (o outcome) verdict() string {
	verdict := "holds"
	switch {
	case o.err != nil:
		return "failed"
	case o.result.value > o.row.bound:
		verdict = "does not hold"
	}
	if o.result.from <= o.row.bound && o.row.bound < o.result.to {
		verdict += " (uncertain)"
	}
	return verdict
}

// table returns the table for the terminal.
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

// page returns the text of docs/performance.md.
func page(outcomes []outcome, m machine) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `# Performance

*For developers of sts-tlsmap. Paths are those of the source.*

Measured by `+"`make bench`"+`, which runs `+"`go run ./test/bench`"+` and writes this
page. %s

The rows compare CPU times, user and system time together: those of our process
for a piece of work with those of a bare program that does only the input and
output of the same work. Rows without a unit are ratios of the two, rows in µs
their difference. Both programs are under the same load in turn, in pairs, after
a warm-up. The figure is the median of the pairs, the range that of single pairs,
and the interval that of the median with 95 %% confidence, by order statistics.
A limit inside the interval makes the verdict uncertain: another run may end
differently. The load generator's time does not count.

%d clients do the lookups. Like smtp(8) processes they sleep until the reply
arrives. They ask at random times, %.0f a second in all, so that both sides have
the same load. In a closed loop they ask again at once.

| row | what | at most | measured | interval | range | |
|---|---|---|---|---|---|---|
`, m, lookupClients, paced.rate)
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
