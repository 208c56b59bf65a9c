package cache_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// fill writes policies made by change until the store is full, and returns how
// many it took.
func fill(t *testing.T, s *cache.Store, change func(i int, r *cache.Record)) (n int) {
	t.Helper()
	for {
		var ops []cache.Op
		for range 50 {
			r := record(fmt.Sprintf("%c%d.held.example", 'a'+n%26, n))
			r.Text = bytes.Repeat([]byte("x"), 2000)
			change(n, r)
			ops = append(ops, cache.Op{Put: r})
			n++
		}
		if result := write(t, s, ops...); len(result.Refused)+len(result.Evicted) > 0 {
			return n
		}
		if n > 10_000 {
			t.Fatal("it does not become full")
		}
	}
}

func full(t *testing.T, change func(i int, r *cache.Record)) *cache.Store {
	t.Helper()
	o := options()
	o.MaxSize = 1 << 20
	s := open(t, filepath.Join(t.TempDir(), "cache.db"), o)
	fill(t, s, change)
	return s
}

func TestAFullStoreRefusesRatherThanDisplaceAPolicyInRegularUse(t *testing.T) {
	s := full(t, func(i int, r *cache.Record) { r.Regular, r.Used = true, at(-20*day) })
	large := record("new.example")
	large.Text = make([]byte, 50_000)
	before := s.Stats().Policies()
	if result := write(t, s, puts(large)...); !slices.Equal(result.Refused, []string{"new.example"}) || len(result.Evicted) != 0 {
		t.Errorf("%+v", result)
	}
	mustMiss(t, s, "new.example")
	if n := s.Stats().Policies(); n != before {
		t.Error(n, before)
	}
}

func TestAFullStoreEvictsTheLeastRecentlyUsedForEnforcedPoliciesOnly(t *testing.T) {
	s := full(t, func(i int, r *cache.Record) {
		if r.Used = at(-20 * day); i%2 == 0 {
			r.Used = at(-time.Hour)
		}
	})
	for i := range 20 {
		for _, mode := range []policy.Mode{policy.ModeNone, policy.ModeTesting} {
			r := record(fmt.Sprintf("other%d.example", i))
			r.Mode, r.Text = mode, make([]byte, 50_000)
			if result := write(t, s, puts(r)...); len(result.Refused) != 1 || len(result.Evicted) != 0 {
				t.Errorf("%v: %+v", mode, result)
			}
		}
	}
	young, evicted := 0, 0
	for i := range 30 {
		r := record(fmt.Sprintf("new%d.example", i))
		r.Text = make([]byte, 6000)
		result := write(t, s, puts(r)...)
		if len(result.Refused) > 0 {
			t.Errorf("%+v", result)
		}
		for _, domain := range result.Evicted {
			var n int
			var c rune
			fmt.Sscanf(domain, "%c%d", &c, &n)
			if evicted++; n%2 == 0 {
				young++
			}
		}
	}
	if evicted < 20 || young > evicted/5 {
		t.Errorf("of %d that were given up, %d had been used an hour ago", evicted, young)
	}
}

func TestAFullStoreEvictsExpiredPoliciesFirst(t *testing.T) {
	s := full(t, func(i int, r *cache.Record) {
		if i < 40 {
			r.Expires = at(-time.Hour)
		} else {
			r.Regular = true
		}
	})
	r := record("new.example")
	r.Mode, r.Text = policy.ModeTesting, make([]byte, 5000)
	if result := write(t, s, puts(r)...); len(result.Refused) > 0 {
		t.Errorf("%+v", result)
	}
}

func TestAPolicyThatNoLongerFitsIsDeletedButItsNotesAlwaysFit(t *testing.T) {
	s := full(t, func(i int, r *cache.Record) { r.Regular = true })
	held, err := s.Get("a0.held.example")
	if err != nil {
		t.Fatal(err)
	}
	held.LastError, held.Failures = "connection refused", 7
	if result := write(t, s, cache.Op{Put: &held}); len(result.Refused) > 0 {
		t.Errorf("%+v", result)
	}
	mustHold(t, s, &held)
	held.Text = make([]byte, 900_000)
	if result := write(t, s, cache.Op{Put: &held}); !slices.Equal(result.Refused, []string{held.Domain}) {
		t.Errorf("%+v", result)
	}
	mustMiss(t, s, held.Domain)
}

func TestTheFileStaysNearMaxSize(t *testing.T) {
	s := full(t, func(int, *cache.Record) {})
	for i := range 100 {
		var ops []cache.Op
		for j := range 20 {
			r := record(fmt.Sprintf("%c%d.%d.flood.example", 'a'+(i*7+j)%26, i, j))
			r.Text = bytes.Repeat([]byte("y"), 500+i*20)
			ops = append(ops, cache.Op{Put: r})
		}
		write(t, s, ops...)
	}
	if st := s.Stats(); st.UsedSize > st.MaxSize*3/2 || st.Policies() < 100 {
		t.Errorf("%+v", st)
	}
}
