package cache

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

const smallSize = 1 << 20

// sized is a record of about n bytes, so that few of them fill a store.
func sized(domain string, mode policy.Mode, n int, used time.Time) *Record {
	r := record(domain)
	r.Mode, r.Used = mode, used
	r.Text = bytes.Repeat([]byte("x"), n)
	return r
}

// fill writes records one by one until the store gives one up or refuses one.
func fill(t *testing.T, s *Store, next func(i int) *Record) (put []string, last WriteResult) {
	t.Helper()
	for i := range 10_000 {
		r := next(i)
		last = mustWrite(t, s, Op{Put: r})
		if len(last.Refused)+len(last.Evicted) > 0 {
			if len(last.Refused) == 0 {
				put = append(put, r.Domain)
			}
			return put, last
		}
		put = append(put, r.Domain)
	}
	t.Fatal("10,000 records of 2 KB go into 1 MiB")
	return nil, last
}

func openSmall(t *testing.T) *Store {
	o := testOptions()
	o.MaxSize = smallSize
	return withoutSync(openAt(t, filepath.Join(t.TempDir(), "cache.db"), o))
}

func TestAFullStoreRefusesANewcomerRatherThanGiveUpAnEnforcedPolicyInUse(t *testing.T) {
	s := openSmall(t)
	put, last := fill(t, s, func(i int) *Record {
		return sized(fmt.Sprintf("d%04d.example", i), policy.ModeEnforce, 2000, at(-time.Duration(i%6)*day))
	})
	if len(last.Evicted) != 0 || len(last.Refused) != 1 || len(put) < 100 {
		t.Fatalf("after %d: %+v", len(put), last)
	}
	for _, d := range put {
		if _, err := s.Get(d); err != nil {
			t.Fatalf("%s: %v", d, err)
		}
	}
	// What is held may be replaced, and grow.
	mustWrite(t, s, Op{Put: sized(put[0], policy.ModeEnforce, 30_000, noon)})
	if used := s.Stats().UsedSize; used > smallSize+64<<10 {
		t.Errorf("used: %d", used)
	}
	checkStore(t, s)
}

func TestAFullStoreGivesUpExpiredThenOtherModesThenIdleEnforcedPolicies(t *testing.T) {
	s := openSmall(t)
	kinds := []func(domain string) *Record{
		func(d string) *Record { return sized(d, policy.ModeEnforce, 2000, noon) },
		func(d string) *Record { return sized(d, policy.ModeEnforce, 2000, at(-8*day)) }, // idle
		func(d string) *Record { return sized(d, policy.ModeTesting, 2000, noon) },
		func(d string) *Record { // expired
			r := sized(d, policy.ModeEnforce, 2000, noon)
			r.Expires = at(-time.Hour)
			return r
		},
	}
	kindOf := map[string]int{}
	put, last := fill(t, s, func(i int) *Record {
		d := fmt.Sprintf("d%04d.example", i)
		kindOf[d] = i % len(kinds)
		return kinds[i%len(kinds)](d)
	})
	var order []int // the kinds in the order in which they are given up
	note := func(w WriteResult) {
		for _, d := range w.Evicted {
			if k, old := kindOf[d]; old && (len(order) == 0 || order[len(order)-1] != k) {
				order = append(order, k)
			}
		}
	}
	note(last)
	refused := false
	for i := range 10_000 {
		last = mustWrite(t, s, Op{Put: sized(fmt.Sprintf("new%04d.example", i), policy.ModeEnforce, 2000, noon)})
		note(last)
		if refused = len(last.Refused) > 0; refused {
			break
		}
	}
	if !refused || !slices.Equal(order, []int{3, 2, 1}) {
		t.Errorf("refused %v, order %v", refused, order)
	}
	var left [4]int
	for _, d := range put {
		if _, err := s.Get(d); err == nil {
			left[kindOf[d]]++
		}
	}
	// The last idle one may be too small to help.
	if left[0] != len(put)/4 && left[0] != len(put)/4+1 || left[1] > 1 || left[2]+left[3] > 0 {
		t.Errorf("of %d are left: %v", len(put), left)
	}
	checkStore(t, s)
}

func TestReplacementsThatGrowDoNotTakeTheFileBeyondTheSlack(t *testing.T) {
	s := openSmall(t)
	put, _ := fill(t, s, func(i int) *Record { return sized(fmt.Sprintf("d%04d.example", i), policy.ModeEnforce, 1000, noon) })
	put = put[:len(put)-1] // the last one may have been refused
	refused := map[string]bool{}
	for _, d := range put {
		w := mustWrite(t, s, Op{Put: sized(d, policy.ModeEnforce, 60_000, noon)})
		for _, d := range w.Refused {
			refused[d] = true
		}
		if len(w.Evicted) > 0 {
			t.Fatalf("%+v", w)
		}
		if used := s.Stats().UsedSize; used > smallSize+smallSize/growSlack+128<<10 {
			t.Fatalf("%d bytes of used pages", used)
		}
	}
	if len(refused) == 0 || len(refused) == len(put) {
		t.Fatalf("%d of %d were refused", len(refused), len(put))
	}
	for _, d := range put {
		if r, err := s.Get(d); refused[d] != (err == ErrNotFound) || err == nil && len(r.Text) != 60_000 {
			t.Errorf("%s, refused: %v: a text of %d bytes, %v", d, refused[d], len(r.Text), err)
		}
	}
	checkStore(t, s)
}

func TestAPolicyThatDoesNotGrowIsNeverRefused(t *testing.T) {
	s := openSmall(t)
	put, _ := fill(t, s, func(i int) *Record { return sized(fmt.Sprintf("d%04d.example", i), policy.ModeEnforce, 1000, noon) })
	full := false
	for i := 1; !full && i < len(put); i++ {
		full = len(mustWrite(t, s, Op{Put: sized(put[i], policy.ModeEnforce, 60_000, noon)}).Refused) > 0
	}
	if !full {
		t.Fatal("none was refused")
	}
	for _, change := range []func(*Record){
		func(r *Record) { r.LastError, r.PendingID = strings.Repeat("x", MaxLastError), strings.Repeat("y", 32) },
		func(r *Record) { r.Text = r.Text[:500] },
	} {
		r := sized(put[0], policy.ModeEnforce, 1000, noon)
		change(r)
		if w := mustWrite(t, s, Op{Put: r}); len(w.Refused) > 0 {
			t.Errorf("%+v", w)
		}
		mustHold(t, s, r)
	}
	checkStore(t, s)
}

func TestAnIdlePolicyThatIsInUseNowIsNotGivenUp(t *testing.T) {
	used := map[string]bool{"d0000.example": true, "d0003.example": true}
	o := testOptions()
	o.MaxSize = smallSize
	o.InUse = func(domain []byte) bool { return used[string(domain)] }
	s := withoutSync(openAt(t, filepath.Join(t.TempDir(), "cache.db"), o))
	fill(t, s, func(i int) *Record {
		return sized(fmt.Sprintf("d%04d.example", i), policy.ModeEnforce, 2000, at(-30*day))
	})
	for i := range 2000 {
		w := mustWrite(t, s, Op{Put: sized(fmt.Sprintf("new%04d.example", i), policy.ModeEnforce, 2000, noon)})
		for _, d := range w.Evicted {
			if used[d] {
				t.Fatalf("%s was given up", d)
			}
		}
		if len(w.Refused) > 0 {
			break
		}
	}
	if _, err := s.Get("d0001.example"); err != ErrNotFound {
		t.Errorf("an idle one that is not in use is still there: %v", err)
	}
	checkStore(t, s)
}

func TestAPolicyOfNoneGivesUpNoEnforcedOneThatLives(t *testing.T) {
	s := openSmall(t)
	fill(t, s, func(i int) *Record {
		return sized(fmt.Sprintf("idle%04d.example", i), policy.ModeEnforce, 2000, at(-30*day))
	})
	refused := 0
	for i := range 30 {
		w := mustWrite(t, s, Op{Put: sized(fmt.Sprintf("none%d.example", i), policy.ModeNone, 2000*i, noon)})
		refused += len(w.Refused)
		for _, d := range w.Evicted {
			if strings.HasPrefix(d, "idle") {
				t.Fatalf("%s was given up", d)
			}
		}
	}
	if refused == 0 {
		t.Error("none was refused")
	}
}

func TestTheLeastRecentlyUsedOfAClassGoesFirst(t *testing.T) {
	s := openSmall(t)
	_, last := fill(t, s, func(i int) *Record {
		d := fmt.Sprintf("d%04d.example", i)
		return sized(d, policy.ModeNone, 2000, at(time.Duration(i)*day)) // by the day
	})
	if len(last.Evicted) == 0 || last.Evicted[0] != "d0000.example" {
		t.Errorf("%+v", last)
	}
}

func TestAPolicyIsNotGivenUpForAnotherOfTheSameWriteThatGrows(t *testing.T) {
	s := openSmall(t)
	put, _ := fill(t, s, func(i int) *Record {
		return sized(fmt.Sprintf("d%04d.example", i), policy.ModeEnforce, 2000, noon)
	})
	old := sized(put[0], policy.ModeTesting, 2000, noon)
	old.Expires = at(-time.Hour)
	mustWrite(t, s, Op{Put: old}, Op{Put: sized(put[2], policy.ModeEnforce, 30_000, noon)})
	// It is found anew, and enforced, while another one grows.
	found, grown := sized(put[0], policy.ModeEnforce, 1900, noon), sized(put[1], policy.ModeEnforce, 2200, noon)
	w := mustWrite(t, s, puts(found, grown)...)
	if len(w.Evicted) > 0 {
		t.Errorf("%+v", w)
	}
	mustHold(t, s, found)
	checkStore(t, s)
}

func TestARefusedNewcomerOfManyKilobytesMakesNobodyGo(t *testing.T) {
	s := openSmall(t)
	fill(t, s, func(i int) *Record {
		mode := policy.ModeEnforce
		if i < 3 {
			mode = policy.ModeNone
		}
		return sized(fmt.Sprintf("d%04d.example", i), mode, 2000, noon)
	})
	before := s.Stats().Policies()
	big, small := sized("big.example", policy.ModeEnforce, 60_000, noon), sized("small.example", policy.ModeEnforce, 500, noon)
	w := mustWrite(t, s, puts(big, small)...)
	if !slices.Equal(w.Refused, []string{"big.example"}) {
		t.Errorf("%+v", w)
	}
	if n := s.Stats().Policies(); n != before+1-int64(len(w.Evicted)) || len(w.Evicted) > 2 {
		t.Errorf("%d of %d are left, %+v", n, before, w)
	}
}

func TestUsedPagesStayBelowMaxSizeUnderAStreamOfNewcomers(t *testing.T) {
	s := openSmall(t)
	for i := range 300 {
		var ops []Op
		for j := range 20 {
			ops = append(ops, Op{Put: sized(fmt.Sprintf("d%d.example", (i*20+j)*7919%100_003), policy.ModeNone, 100+(i*j)%3000, at(time.Duration(i)*time.Hour))})
		}
		mustWrite(t, s, ops...)
		if used := s.Stats().UsedSize; used > smallSize*5/4 {
			t.Fatalf("after %d: %d bytes of used pages", i, used)
		}
	}
	st := s.Stats()
	if st.UsedSize < smallSize/2 || st.FileSize > 4*smallSize {
		t.Errorf("used %d, file %d", st.UsedSize, st.FileSize)
	}
	checkStore(t, s)
}
