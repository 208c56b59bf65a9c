package main

import (
	"fmt"
	"math"
	"slices"
)

// Numbers of pairs. An odd one has a median that was measured.
const (
	leastPairs   = 7
	defaultPairs = 21
)

// A measure does one side's share of the work and returns the CPU time it took
// per piece, in nanoseconds.
type measure func() (float64, error)

// pairs measures the two sides in turn: a warm-up pair, and then the n that
// count. Every other pair begins with the other side.
func (b *bench) pairs(n int, ours, limit measure) (result, error) {
	var ratios, oursAll, limitAll []float64
	for i := range n + 1 {
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
		ratios = append(ratios, x/y)
	}
	from, to := medianInterval(ratios)
	return result{
		value: median(ratios),
		low:   slices.Min(ratios), high: slices.Max(ratios),
		from: from, to: to,
		count: len(ratios), counted: "pairs",
		note: fmt.Sprintf("%.2f µs, the limit %.2f µs", median(oursAll)/1e3, median(limitAll)/1e3),
	}, nil
}

// confidence is how sure it is to be that the median lies in its interval.
const confidence = 0.95

// medianInterval returns two of the values between which the median of what
// they are drawn from lies, with that confidence or more: whatever their
// distribution, each is above it or below it as a coin falls.
func medianInterval(values []float64) (from, to float64) {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	cut := 0                            // values that may be left out at each end
	chance := math.Pow(0.5, float64(n)) // that exactly cut values are below the median
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
