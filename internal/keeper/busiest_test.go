package keeper

import (
	"fmt"
	"testing"
	"time"
)

// busyAt counts lookups of domains, each far enough from the one before to be
// of the sample.
func busyAt(k *Keeper, at time.Time, domains ...string) time.Time {
	for _, d := range domains {
		k.busiest.see([]byte(d), at)
		at = at.Add(sampleEvery)
	}
	return at
}

func TestTheBusiestDomainsStayThroughAFloodOfNames(t *testing.T) {
	k, at := new(Keeper), time.Unix(1e9, 0)
	for i := range 20_000 {
		at = busyAt(k, at, "busy.test", fmt.Sprintf("once-%d.test", i), "second.test", fmt.Sprintf("never-%d.test", i))
	}
	got := k.Busiest(2)
	if len(got) != 2 || got[0].Domain != "busy.test" || got[1].Domain != "second.test" {
		t.Fatalf("got %v", got)
	}
	for _, b := range got {
		if b.Share < 0.24 || b.Share > 0.25 {
			t.Errorf("%s: share %v, want a quarter", b.Domain, b.Share)
		}
	}
	if n, indexed := len(k.busiest.domains), len(k.busiest.index); n != maxBusy || indexed != n {
		t.Errorf("%d domains are counted, %d are in the index", n, indexed)
	}
}

func TestLookupsInOneMomentAreCountedOnce(t *testing.T) {
	k, at := new(Keeper), time.Unix(1e9, 0)
	for range 1000 {
		k.busiest.see([]byte("burst.test"), at)
	}
	if k.busiest.total != 1 {
		t.Errorf("%v are counted", k.busiest.total)
	}
	// A clock that is set back does not end the counting.
	k.busiest.see([]byte("burst.test"), at.Add(-time.Hour))
	if k.busiest.total != 2 {
		t.Errorf("%v are counted after the clock was set back", k.busiest.total)
	}
}

func TestWhatWasBusyLongAgoIsForgotten(t *testing.T) {
	k, at := new(Keeper), time.Unix(1e9, 0)
	for range 10 {
		at = busyAt(k, at, "old.test")
	}
	busyAt(k, at.Add(2*busyHalfLife), "new.test", "new.test", "new.test")
	got := k.Busiest(10)
	if len(got) != 2 || got[0].Domain != "new.test" || got[1].Share != 2.5/5.5 {
		t.Errorf("got %v", got)
	}
	busyAt(k, at.Add(3650*24*time.Hour), "newest.test")
	if got := k.Busiest(10); len(got) != 1 || got[0] != (Busy{"newest.test", 1}) {
		t.Errorf("got %v", got)
	}
}

func BenchmarkALookupThatIsNotOfTheSample(b *testing.B) {
	k, domain, now := new(Keeper), []byte("busy.test"), time.Now()
	b.ReportAllocs()
	for b.Loop() {
		k.busiest.see(domain, now)
	}
}

// BenchmarkANewDomainInTheSample is what a thousand lookups a second cost at
// most, where no domain is asked for twice.
func BenchmarkANewDomainInTheSample(b *testing.B) {
	k, at := new(Keeper), time.Unix(1e9, 0)
	names := make([]string, 4*maxBusy)
	for i := range names {
		names[i] = fmt.Sprintf("mail%04d.example", i)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		at = busyAt(k, at, names[i%len(names)])
	}
}
