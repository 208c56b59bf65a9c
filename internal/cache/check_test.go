package cache

import (
	"bytes"
	"testing"
)

// checkStore walks through the whole store: every value is whole, every index
// entry has its record, every record its entries, and the counts are right.
func checkStore(t testing.TB, s *Store) {
	t.Helper()
	sn := s.current()
	defer sn.release()
	var got counts
	entries := map[string]int{"due": 0, "expiry": 0, "evict": 0}
	each(t, &sn.policy, func(k, raw []byte) {
		v, err := parseAt(k, raw)
		if err != nil {
			t.Fatalf("%s: %v", k, err)
		}
		got[countOf(v)]++
		e := keysOf(k, v)
		for name, x := range map[string]struct {
			tree *tree
			key  []byte
		}{"due": {&sn.due, e.due}, "expiry": {&sn.expiry, e.expiry}, "evict": {&sn.evict, e.evict}} {
			if x.key == nil {
				continue
			}
			entries[name]++
			if entry, err := x.tree.get(x.key); entry == nil || err != nil {
				t.Errorf("%s has no entry in %s (%v)", k, name, err)
			}
		}
	})
	if got != sn.counts {
		t.Errorf("counts are %v, not %v", sn.counts, got)
	}
	for name, tr := range map[string]*tree{"due": &sn.due, "expiry": &sn.expiry, "evict": &sn.evict} {
		n := 0
		each(t, tr, func(_, _ []byte) { n++ })
		if n != entries[name] {
			t.Errorf("%s has %d entries, not %d", name, n, entries[name])
		}
	}
}

func each(t testing.TB, tr *tree, use func(k, v []byte)) {
	t.Helper()
	w := newWalk(tr, nil)
	var last []byte
	for more := true; more; {
		var err error
		more, err = w.next(func(k, v []byte) error {
			if bytes.Compare(k, last) <= 0 {
				t.Errorf("keys out of order: %q after %q", k, last)
			}
			last = bytes.Clone(k)
			use(k, v)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
