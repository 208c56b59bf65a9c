package cache_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
)

func BenchmarkLookup(b *testing.B) {
	s, _ := openNew(b)
	const n = 20_000
	for from := 0; from < n; from += 1000 {
		var ops []cache.Op
		for i := range 1000 {
			ops = append(ops, cache.Op{Put: record(fmt.Sprintf("d%d.example", from+i))})
		}
		write(b, s, ops...)
	}
	domains := make([][]byte, 2*n)
	for i := range domains {
		domains[i] = fmt.Appendf(nil, "d%d.example", i)
	}
	for _, test := range []struct {
		name  string
		first int
	}{{"held", 0}, {"missing", n}} {
		b.Run(test.name, func(b *testing.B) {
			var hit cache.Hit
			b.ReportAllocs()
			for b.Loop() {
				_ = s.Lookup(domains[test.first+rand.IntN(n)], &hit)
			}
		})
	}
}
