package store_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

func TestRFC8460_4_2_SessionsAreCountedByDomainAndPolicy(t *testing.T) {
	l := newLab(t, store.Options{})
	dane := tlsrpt.Event{Domain: "a.test", Policy: tlsrpt.Policy{Type: tlsrpt.TypeTLSA, Domain: "mx.a.test", Strings: []string{"3 1 1 C85F"}}}
	refused := tlsrpt.Failure{Result: tlsrpt.StartTLSNotSupported, Reason: "starttls-refused"}
	l.write(success("a.test"), success("b.test"), failed("a.test", expired("a.test")), dane)
	l.merge()
	l.write(success("a.test"), failed("a.test", expired("a.test"), refused), failed("a.test"), failed("c.test", refused, refused))
	l.reopen()
	l.merge()
	want := []tlsrpt.Summary{
		{Policy: dane.Policy, Successful: 1},
		{Policy: stsPolicy("a.test"), Successful: 2, Failed: 3, Details: []tlsrpt.Detail{
			{Failure: expired("a.test"), Sessions: 2}, {Failure: refused, Sessions: 1}}},
	}
	got := l.load(day, "a.test").Policies
	slices.SortFunc(got, func(a, b tlsrpt.Summary) int { return -strings.Compare(string(a.Policy.Type), string(b.Policy.Type)) })
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v\nnot\n%+v", got, want)
	}
	l.mustCount(day, "b.test", 1, 0)
	l.mustCount(day, "c.test", 0, 1)
	if p := l.load(day, "c.test").Policies; len(p) != 1 || p[0].Details[0].Sessions != 1 {
		t.Errorf("a failure that a session has twice: %+v", p)
	}
	l.mustCount(day, "d.test", 0, 0)
	l.mustCount(next, "a.test", 0, 0)
	if st := l.Stats(); st.Merged != 4 || st.LogSize != 0 || st.UsedSize <= 0 || st.Err != nil {
		t.Errorf("%+v", st)
	}
}

func TestDomainsAreInOrderAndPaged(t *testing.T) {
	l := newLab(t, store.Options{})
	want := []string{"a-b.test", "a.test", "a.test2.test", "ab.test", "b.test"}
	for _, i := range []int{3, 0, 4, 2, 1} {
		l.write(success(want[i]), success(want[i]))
	}
	l.merge()
	var got []string
	for after := ""; ; after = got[len(got)-1] {
		page, err := l.Domains(day, after, 2)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		got = append(got, page...)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if days, err := l.Days(); err != nil || !slices.Equal(days, []tlsrpt.Day{day}) {
		t.Error(days, err)
	}
	if none, err := l.Domains(next, "", 10); err != nil || len(none) > 0 {
		t.Error(none, err)
	}
}

func TestTheLogIsMergedOnceAnHour(t *testing.T) {
	l := newLab(t, store.Options{})
	l.upkeep()
	l.write(success("a.test"))
	l.clock.set("2026-11-30 12:59")
	l.upkeep()
	l.mustCount(day, "a.test", 0, 0)
	l.clock.set("2026-11-30 13:00")
	l.upkeep()
	l.mustCount(day, "a.test", 1, 0)
}

func TestADayClosesTenMinutesAfterMidnight(t *testing.T) {
	l := newLab(t, store.Options{})
	l.clock.set("2026-11-30 23:59")
	l.write(success("a.test"))
	l.clock.set("2026-12-01 00:01")
	l.batch.Reset(day) // on its way since before midnight
	e := success("a.test")
	l.batch.Add(&e)
	if err := l.Write(&l.batch); err != nil {
		t.Fatal(err)
	}
	l.write(success("a.test"))
	l.upkeep()
	l.clock.set("2026-12-01 00:09")
	l.upkeep()
	l.mustClose(day, false)
	l.clock.set("2026-12-01 00:10")
	l.upkeep()
	l.mustClose(day, true)
	l.mustClose(next, false)
	l.mustCount(day, "a.test", 2, 0)
	l.mustCount(next, "a.test", 1, 0)
	l.mustDrop("late", 0)
}

func (l *lab) mustClose(day tlsrpt.Day, want bool) {
	l.t.Helper()
	if got, err := l.Closed(day, l.clock.now()); got != want || err != nil {
		l.t.Errorf("%s closed: %v, %v", day, got, err)
	}
}

func TestAClockThatJumpsBackReopensNoDay(t *testing.T) {
	l := newLab(t, store.Options{})
	l.write(success("a.test"))
	l.upkeep()
	l.clock.set("2026-12-01 00:10")
	l.upkeep()
	l.mustClose(day, true)
	for range 2 { // now, and after a restart
		l.clock.set("2026-11-30 18:00")
		l.write(success("a.test"), success("b.test"))
		l.upkeep()
		l.merge()
		l.mustCount(day, "a.test", 1, 0)
		l.mustCount(day, "b.test", 0, 0)
		l.mustClose(day, true)
		l.mustDrop("late", 2)
		l.reopen() // counts from 0
	}
}

func TestAClockThatJumpsForwardClosesNoDayThatHasNotBeen(t *testing.T) {
	l := newLab(t, store.Options{Keep: 1000 * 24 * time.Hour})
	l.write(success("a.test"))
	l.upkeep()
	l.clock.set("2027-06-01 12:00")
	l.upkeep()
	l.mustClose(day, true)
	l.clock.set("2026-12-01 12:00")
	l.write(success("a.test"))
	l.merge()
	l.mustCount(next, "a.test", 1, 0)
	l.mustDrop("late", 0)
}

func TestDaysAreClosedAfterAPauseWhenTheLogIsMerged(t *testing.T) {
	l := newLab(t, store.Options{})
	l.write(success("a.test"))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l.clock.set("2026-12-02 12:00") // off for two days
	l.open()
	l.upkeep()
	l.upkeep()
	l.mustClose(day, true)
	l.mustCount(day, "a.test", 1, 0)
}

func TestADayIsKeptFor14Days(t *testing.T) {
	l := newLab(t, store.Options{})
	l.write(success("a.test"))
	l.merge()
	if err := l.PutStates([]tlsrpt.State{{Day: day, Domain: "a.test", Kind: tlsrpt.Accepted}}); err != nil {
		t.Fatal(err)
	}
	l.clock.set("2026-12-15 00:00")
	l.upkeep()
	l.mustCount(day, "a.test", 1, 0)
	l.clock.set("2026-12-15 00:01")
	l.upkeep()
	l.mustCount(day, "a.test", 0, 0)
	days, err := l.Days()
	states, serr := l.States(day, "a.test")
	if len(days) > 0 || len(states) > 0 || err != nil || serr != nil {
		t.Error(days, states, err, serr)
	}
	l.clock.set("2026-11-30 12:00")
	l.write(success("a.test"))
	l.merge()
	l.mustCount(day, "a.test", 0, 0)
	l.mustDrop("late", 1)
}

func TestAPolicyIsStoredAgainOnTheNextDay(t *testing.T) {
	l := newLab(t, store.Options{})
	for range 2 {
		l.write(success("a.test"))
		l.write(success("a.test"))
		l.merge()
		l.clock.add(24 * time.Hour)
	}
	for _, d := range []tlsrpt.Day{day, next} {
		if p := l.load(d, "a.test").Policies; len(p) != 1 || !reflect.DeepEqual(p[0].Policy, stsPolicy("a.test")) || p[0].Successful != 2 {
			t.Errorf("%s: %+v", d, p)
		}
	}
}

func TestABatchThatACrashCutIsLostAndNoOther(t *testing.T) {
	l := newLab(t, store.Options{})
	l.write(success("a.test"))
	l.write(success("a.test"), success("b.test"))
	whole := l.Stats().LogSize
	l.write(success("a.test"))
	cut := whole + (l.Stats().LogSize-whole)/2
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	segments, _ := filepath.Glob(l.path + ".log-*")
	if len(segments) != 1 {
		t.Fatal(segments)
	}
	if err := os.Truncate(segments[0], cut); err != nil {
		t.Fatal(err)
	}
	l.open()
	l.write(success("b.test"))
	l.merge()
	l.mustCount(day, "a.test", 2, 0)
	l.mustCount(day, "b.test", 2, 0)
	if want := fmt.Sprintf("bytes=%d\n", cut-whole); !strings.Contains(l.log.String(), want) {
		t.Errorf("no %q in the log:\n%s", want, &l.log)
	}
	if segments, _ = filepath.Glob(l.path + ".log-*"); len(segments) > 0 {
		t.Error(segments)
	}
}

// A crash may come between the end of a merge and the removal of the log.
func TestALogThatIsMergedDoesNotCountAgain(t *testing.T) {
	l := newLab(t, store.Options{})
	l.write(success("a.test"))
	segments, _ := filepath.Glob(l.path + ".log-*")
	b, err := os.ReadFile(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	l.merge()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(segments[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	l.open()
	l.merge()
	l.mustCount(day, "a.test", 1, 0)
	if segments, _ = filepath.Glob(l.path + ".log-*"); len(segments) > 0 {
		t.Error(segments)
	}
}

func TestAMergeThatIsInterruptedGoesOnWhereItWas(t *testing.T) {
	l := newLab(t, store.Options{})
	const n = 20_000 // eight transactions
	var events []tlsrpt.Event
	for i := range n {
		events = append(events, success(numbered(i)))
	}
	l.write(events...)
	merged := make(chan error, 1)
	go func() { merged <- l.Merge() }()
	for deadline := time.Now().Add(30 * time.Second); l.Stats().Merged == 0; time.Sleep(100 * time.Microsecond) {
		if time.Now().After(deadline) {
			t.Fatal("no transaction ends")
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-merged; !errors.Is(err, store.ErrClosed) {
		t.Fatalf("the merge was not interrupted: %v", err)
	}
	l.open()
	l.merge()
	for i := range n {
		l.mustCount(day, numbered(i), 1, 0)
	}
	if again := l.Stats().Merged; again == 0 || again == n {
		t.Errorf("%d sessions were merged after the interruption", again)
	}
}

func TestAFlippedBitInTheLogCountsNothingWrong(t *testing.T) {
	l := newLab(t, store.Options{})
	l.write(success("a.test"))
	whole := l.Stats().LogSize
	l.write(success("a.test"))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	segments, _ := filepath.Glob(l.path + ".log-*")
	b, err := os.ReadFile(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 4 // in the domain
	if err := os.WriteFile(segments[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	l.open()
	l.merge()
	l.mustCount(day, "a.test", 1, 0)
	if domains, err := l.Domains(day, "", 10); err != nil || len(domains) != 1 {
		t.Error(domains, err)
	}
	if want := fmt.Sprintf("bytes=%d\n", int64(len(b))-whole); !strings.Contains(l.log.String(), want) {
		t.Errorf("no %q in the log:\n%s", want, &l.log)
	}
}

func TestStatesAreStoredAndPaged(t *testing.T) {
	l := newLab(t, store.Options{})
	l.write(success("a.test"), success("b.test"))
	l.merge()
	at := l.clock.now()
	states := []tlsrpt.State{
		{Day: day, Kind: tlsrpt.Planned},
		{Day: day, Domain: "a.test", Kind: tlsrpt.Planned, ReportID: "20261130.a.test.x@relay.test", Next: at, Changed: at, Sessions: 7},
		{Day: day, Domain: "a.test", Destination: "https://a.test/" + strings.Repeat("x", 1100), Kind: tlsrpt.Refused, Reason: "400", Attempts: 3},
		{Day: day, Domain: "a.test", Destination: "mailto:r@a.test", Kind: tlsrpt.Attempting, Begun: at, Attempts: 1},
		{Day: day, Domain: "b.test", Destination: "mailto:r@b.test", Kind: tlsrpt.Suppressed},
	}
	if err := l.PutStates([]tlsrpt.State{states[4], states[1], states[3]}); err != nil {
		t.Fatal(err)
	}
	changed := states[1]
	changed.Kind = tlsrpt.Expired
	if err := l.PutStates([]tlsrpt.State{states[0], changed, states[2]}); err != nil {
		t.Fatal(err)
	}
	if err := l.PutStates(states[1:2]); err != nil {
		t.Fatal(err)
	}
	l.reopen()
	for domain, want := range map[string][]tlsrpt.State{"": states[:1], "a.test": states[1:4], "b.test": states[4:], "a": nil, "a.test.test": nil} {
		if got, err := l.States(day, domain); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v\nnot\n%+v", domain, got, err, want)
		}
	}
	for _, tt := range []struct {
		state tlsrpt.State
		err   error
	}{
		{tlsrpt.State{Day: next, Domain: "a.test", Kind: tlsrpt.Planned}, store.ErrNoDay},
		{tlsrpt.State{Day: day, Domain: "a.test", Destination: strings.Repeat("x", 2048)}, store.ErrTooLong},
		{tlsrpt.State{Day: day, Domain: "a.test", Reason: strings.Repeat("x", 1025)}, store.ErrTooLong},
	} {
		all := []tlsrpt.State{{Day: day, Domain: "z.test", Kind: tlsrpt.Planned}, tt.state}
		if err := l.PutStates(all); !errors.Is(err, tt.err) {
			t.Errorf("%v, want %v", err, tt.err)
		}
	}
	if states, err := l.States(day, "z.test"); len(states) > 0 || err != nil {
		t.Errorf("a state was stored beside one that failed: %+v, %v", states, err)
	}
}

func TestSuppressionsEndAndAreBounded(t *testing.T) {
	l := newLab(t, store.Options{})
	at := l.clock.now()
	until := at.Add(30 * 24 * time.Hour)
	for i := range store.MaxSuppressed {
		if err := l.Suppress(fmt.Sprintf("r%d@a.test", i), until.Add(time.Duration(-i)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Suppress("one.more@a.test", until); !errors.Is(err, store.ErrSuppressed) {
		t.Error(err)
	}
	if err := errors.Join(l.Suppress("r1@a.test", at), l.Suppress("r2@a.test", at), l.Suppress("one.more@a.test", until.Add(-time.Hour))); err != nil {
		t.Fatal(err)
	}
	got, err := l.Suppressed()
	if err != nil || len(got) != store.MaxSuppressed-1 || !got["r0@a.test"].Equal(until) || !got["r1@a.test"].IsZero() {
		t.Errorf("%d, %v", len(got), err)
	}
	if err := l.Suppress(strings.Repeat("x", 1025), until); !errors.Is(err, store.ErrTooLong) {
		t.Error(err)
	}
	l.clock.add(until.Sub(at) - time.Second)
	if got, err = l.Suppressed(); err != nil || len(got) != 1 {
		t.Errorf("%v, %v", got, err)
	}
}

func TestThePathMayBeWrittenInAnyWay(t *testing.T) {
	l := newLab(t, store.Options{})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l.path = filepath.Dir(l.path) + "/./x//../new.db"
	l.open()
	l.write(success("a.test"))
	l.reopen()
	l.merge()
	l.mustCount(day, "a.test", 1, 0)
}

func TestOneProcessHasTheStoreOpen(t *testing.T) {
	l := newLab(t, store.Options{})
	if _, err := store.Open(l.path, store.Options{}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l.batch.Reset(day)
	if err := l.Write(&l.batch); !errors.Is(err, store.ErrClosed) {
		t.Error(err)
	}
	if _, err := l.Days(); !errors.Is(err, store.ErrClosed) {
		t.Error(err)
	}
	if err := l.Upkeep(); !errors.Is(err, store.ErrClosed) {
		t.Error(err)
	}
}
