package config

import (
	"math"
	"strconv"
	"strings"
	"time"
)

const day = 24 * time.Hour

// ParseDuration reads Go's durations, with d for days in front: "90s", "2d",
// "1d12h". Negative ones are none.
func ParseDuration(s string) (time.Duration, bool) {
	var days int64
	if n, rest, found := strings.Cut(s, "d"); found {
		var err error
		days, err = strconv.ParseInt(n, 10, 64)
		if err != nil || days < 0 || days > math.MaxInt64/int64(day)-1 || strings.HasPrefix(n, "+") {
			return 0, false
		}
		if rest == "" {
			return time.Duration(days) * day, true
		}
		s = rest
	}
	t, err := time.ParseDuration(s)
	if err != nil || t < 0 || strings.HasPrefix(s, "+") {
		return 0, false
	}
	total := time.Duration(days)*day + t
	return total, total >= t // false if it went over the top
}

var sizes = []struct {
	unit string
	of   int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

// ParseSize reads a size in bytes: a whole number and B, KiB, MiB, GiB or TiB.
func ParseSize(s string) (int64, bool) {
	for _, u := range sizes {
		n, found := strings.CutSuffix(s, u.unit)
		if !found {
			continue
		}
		v, err := strconv.ParseInt(strings.TrimSpace(n), 10, 64)
		if err != nil || v < 0 || v > math.MaxInt64/u.of {
			return 0, false
		}
		return v * u.of, true
	}
	v, err := strconv.ParseInt(s, 10, 64)
	return v, err == nil && v >= 0
}
