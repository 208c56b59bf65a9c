package main

import "testing"

// The numbers are from tables of the binomial distribution with p = 1/2.
func TestTheIntervalOfTheMedian(t *testing.T) {
	for n, cut := range map[int]int{7: 0, 9: 1, 15: 3, 21: 5, 31: 9, 101: 40} {
		var values []float64
		for i := range n {
			values = append(values, float64(n-i))
		}
		if from, to := medianInterval(values); from != float64(cut+1) || to != float64(n-cut) {
			t.Errorf("of %d values: from the %.0fth to the %.0fth, want %d left out at each end", n, from, to, cut)
		}
	}
}

func TestAVerdictIsUncertainIfTheBoundIsWithinTheInterval(t *testing.T) {
	for _, c := range []struct {
		value, from, to float64
		want            string
	}{
		{1.40, 1.30, 1.45, "holds"},
		{1.49, 1.40, 1.60, "holds (uncertain)"},
		{1.51, 1.40, 1.60, "does not hold (uncertain)"},
		{1.70, 1.60, 1.80, "does not hold"},
		{1.40, 0, 0, "holds"}, // a single value
	} {
		o := outcome{row: row{bound: 1.5}, result: result{value: c.value, from: c.from, to: c.to}}
		if got := o.verdict(); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}
