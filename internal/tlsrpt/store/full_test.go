package store_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

const honest = 1000 // domains

// flood writes events in batches of 5,000, each with a session of an honest domain, and
// keeps the store up as the daemon does. It returns how many sessions each honest domain
// had.
func (l *lab) flood(n int, event func(i int) tlsrpt.Event) uint64 {
	l.t.Helper()
	for i := range honest {
		l.write(success(fmt.Sprintf("honest%d.test", i)))
	}
	l.merge()
	rounds := uint64(1)
	l.batch.Reset(day)
	for i := range n {
		e := event(i)
		l.batch.Add(&e)
		if i%5000 != 4999 {
			continue
		}
		if rounds++; rounds%20 == 0 {
			l.upkeep()
		}
		for i := range honest {
			e := success(fmt.Sprintf("honest%d.test", i))
			l.batch.Add(&e)
		}
		if err := l.Write(&l.batch); err != nil {
			l.t.Fatal(err)
		}
		l.batch.Reset(day)
	}
	l.merge()
	return rounds
}

// mustBeBounded checks the size of all files, and the memory.
func (l *lab) mustBeBounded(disk int64) {
	l.t.Helper()
	var size int64
	files, _ := filepath.Glob(l.path + "*")
	for _, name := range files {
		if info, err := os.Stat(name); err == nil {
			size += info.Size()
		}
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	l.t.Logf("%d MiB of files, %d MiB from the system, %+v", size>>20, m.Sys>>20, l.Stats())
	if size > disk || m.Sys > 256<<20 {
		l.t.Errorf("%d bytes of files, %d of memory", size, m.Sys)
	}
}

func manyDomains(t *testing.T, many int, maxSize int64) {
	l := newLab(t, store.Options{MaxSize: maxSize})
	n := l.flood(many, func(i int) tlsrpt.Event { return success(numbered(i)) })
	for i := range honest {
		l.mustCount(day, fmt.Sprintf("honest%d.test", i), n, 0)
	}
	l.mustBeBounded(2*maxSize + 16<<20) // bbolt makes files longer by 16 MiB
	if st := l.Stats(); st.Dropped["full"] == 0 || st.Merged+st.Dropped["full"] != uint64(many)+n*honest {
		t.Errorf("%+v", st)
	}
}

func manyDetails(t *testing.T, many int) {
	l := newLab(t, store.Options{MaxSize: 8 << 20})
	n := l.flood(many, func(i int) tlsrpt.Event {
		f := tlsrpt.Failure{Result: tlsrpt.ResultTypes[i%len(tlsrpt.ResultTypes)], Reason: fmt.Sprint("reason ", i)}
		return failed("hostile.test", f)
	})
	l.mustCount(day, "hostile.test", 0, uint64(many))
	l.mustCount(day, "honest7.test", n, 0)
	p := l.load(day, "hostile.test").Policies[0]
	var sum uint64
	for _, d := range p.Details {
		sum += d.Sessions
	}
	if len(p.Details) != 100 || sum != uint64(many) {
		t.Errorf("%d details of %d sessions", len(p.Details), sum)
	}
	l.mustBeBounded(64 << 20)
}

// The same with a million is a slow test.
func TestAFloodOfDomainsLeavesTheCountsOfHonestOnesRight(t *testing.T) {
	manyDomains(t, 40_000, 5<<20)
}
func TestAFloodOfDetailsIsFoldedIntoAHundred(t *testing.T) { manyDetails(t, 30_000) }

func TestA65thPolicyOfADomainIsDroppedAndCounted(t *testing.T) {
	l := newLab(t, store.Options{})
	for i := range 100 {
		e := success("a.test")
		e.Policy.Strings = []string{fmt.Sprint("max_age: ", i)}
		l.write(e, e)
	}
	l.merge()
	l.mustDrop("policies", 72)
	l.mustCount(day, "a.test", 128, 0)
}

// A full store counts domains that it has seen that day, and no details of a new kind.
func TestAFullStoreDropsDomainsNotSeenBeforeAndFoldsNewDetails(t *testing.T) {
	l := newLab(t, store.Options{MaxSize: 1 << 20})
	l.fill()
	l.write(failed("d000000.test", expired("d000000.test")), success("new.test"))
	l.merge()
	l.mustCount(day, "d000000.test", 1, 1)
	l.mustCount(day, "new.test", 0, 0)
	if d := l.load(day, "d000000.test").Policies[0].Details; len(d) != 1 || d[0].Failure != (tlsrpt.Failure{Result: tlsrpt.CertificateExpired}) {
		t.Errorf("%+v", d)
	}
}

// fill writes sessions of new domains until the store drops some.
func (l *lab) fill() {
	l.t.Helper()
	for i := 0; l.Stats().Dropped["full"] == 0; i += 200 {
		if i > 100_000 {
			l.t.Fatal("it does not become full")
		}
		var events []tlsrpt.Event
		for j := range 200 {
			events = append(events, success(numbered(i+j)))
		}
		l.write(events...)
		l.merge()
	}
}

func TestForWantOfRoomOnlyDeliveredDaysGoTheOldestFirst(t *testing.T) {
	l := newLab(t, store.Options{MaxSize: 1 << 20})
	days := []tlsrpt.Day{"2026-11-30", "2026-12-01", "2026-12-02"}
	for i, day := range days {
		var events []tlsrpt.Event
		for j := range 500 {
			events = append(events, success(numbered(j)))
		}
		l.write(events...)
		l.merge()
		if err := l.SetStage(day, []tlsrpt.Stage{tlsrpt.StagePlanned, tlsrpt.StageDone, tlsrpt.StageOpen}[i]); err != nil {
			t.Fatal(err)
		}
		l.clock.add(24 * time.Hour)
	}
	l.fill()
	l.clock.add(time.Hour)
	l.upkeep() // closes the days
	l.upkeep()
	for i, day := range days {
		if n := uint64(i % 2); true {
			l.mustCount(day, "d000000.test", 1-n, 0)
		}
	}
	l.write(success("new.test")) // there is room now
	l.merge()
	l.mustCount("2026-12-03", "new.test", 1, 0)
}

func TestADayThatNobodyReportsGoesAfterTwoDays(t *testing.T) {
	l := newLab(t, store.Options{MaxSize: 1 << 20})
	l.fill()
	for range 2 {
		l.mustCount(day, "d000000.test", 1, 0)
		l.clock.add(24 * time.Hour)
		l.upkeep()
		l.write(success("new.test")) // dropped: full
		l.merge()
	}
	l.clock.add(24 * time.Hour)
	l.upkeep()
	l.mustCount(day, "d000000.test", 0, 0)
}
