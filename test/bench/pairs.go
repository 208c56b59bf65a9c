package main

import (
	"fmt"
	"math"
	"slices"
)

// Numbers of pairs. The median of an odd number is a measured value.
const (
	leastPairs   = 7
	defaultPairs = 21
)

// A measure does one side's share of the work and returns its CPU time for one
// piece of work in nanoseconds.
type measure func() (float64, error)

// A comparison returns a row's value for the CPU times of one pair.
type comparison func(ours, limit float64) float64

func ratio(ours, limit float64) float64 { return ours / limit }

// excess returns the difference in microseconds.
func excess(ours, limit float64) float64 { return (ours - limit) / 1e3 }

// pairs measures both sides in turn: a warm-up pair and then pairCount pairs.
// Every other pair begins with the limit.
func (b *bench) pairs(ours, limit measure, compare comparison) (result, error) {
	var values, oursAll, limitAll []float64
	for i := range b.pairCount + 1 {
		first, second := ours, limit
		if i%2 == 1 {
			first, second = limit, ours
		}
		x, err := first()
		if err != nil {
			return result{}, err
		}
		y, err := second()
		if err != nil {
			return result{}, err
		}
		if err := b.ctx.Err(); err != nil {
			return result{}, err
		}
		if i%2 == 1 {
			x, y = y, x
		}
		if i == 0 {
			continue // the warm-up
		}
		oursAll, limitAll = append(oursAll, x), append(limitAll, y)
		values = append(values, compare(x, y))
	}
	r := several(values, "pairs")
	r.from, r.to = medianInterval(values)
	r.note = fmt.Sprintf("%.2f µs, the limit %.2f µs", median(oursAll)/1e3, median(limitAll)/1e3)
	return r, nil
}

// several returns the result of several measurements.
func several(values []float64, counted string) result {
	return result{
		value: median(values), low: slices.Min(values), high: slices.Max(values),
		count: len(values), counted: counted,
	}
}

// confidence is the least probability that the median lies in its interval.
const confidence = 0.95

// medianInterval returns two of the values that enclose the median of their
// distribution with at least that confidence. It holds for any distribution:
// each value is above or below the median with probability 1/2.
func medianInterval(values []float64) (from, to float64) {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	cut := 0                            // values to leave out at each end
	chance := math.Pow(0.5, float64(n)) // probability that exactly cut values are below the median
	for outside := chance; 2*outside <= 1-confidence && cut < (n-1)/2; {
		chance *= float64(n-cut) / float64(cut+1)
		outside += chance
		if 2*outside <= 1-confidence {
			cut++
		}
	}
	return sorted[cut], sorted[n-1-cut]
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 0 {
		return (sorted[middle-1] + sorted[middle]) / 2
	}
	return sorted[middle]
}
