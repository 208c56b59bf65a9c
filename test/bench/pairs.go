package main

import (
	"fmt"
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

// pairs measures the two sides in turn: a warm-up pair, and then those that
// count. Every other pair begins with the other side.
func (b *bench) pairs(ours, limit measure) (result, error) {
	var ratios, oursAll, limitAll []float64
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
		ratios = append(ratios, x/y)
	}
	return result{
		value: median(ratios),
		low:   slices.Min(ratios), high: slices.Max(ratios),
		count: len(ratios), counted: "pairs",
		note: fmt.Sprintf("%.2f µs, the limit %.2f µs", median(oursAll)/1e3, median(limitAll)/1e3),
	}, nil
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 0 {
		return (sorted[middle-1] + sorted[middle]) / 2
	}
	return sorted[middle]
}
