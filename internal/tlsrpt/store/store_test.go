package store_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
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

func TestDomainsAreInOrderWithTheSessionsOfAllTheirPolicies(t *testing.T) {
	l := newLab(t, store.Options{})
	want := []string{"a-b.test", "a.test", "a.test2.test", "ab.test", "b.test"}
	for _, i := range []int{3, 0, 4, 2, 1} {
		plain := tlsrpt.Event{Domain: want[i], Policy: tlsrpt.Policy{Type: tlsrpt.TypeNone, Domain: want[i]}}
		l.write(success(want[i]), plain, failed(want[i]))
	}
	l.merge()
	var got []string
	whole, err := l.EachDomain([]tlsrpt.Day{day}, "", func(domain string, byDay [][]tlsrpt.Summary) bool {
		got = append(got, domain)
		var successful, failed uint64
		for _, s := range byDay[0] {
			successful, failed = successful+s.Successful, failed+s.Failed
		}
		if successful != 2 || failed != 1 {
			t.Errorf("%s: %+v", domain, byDay)
		}
		return true
	})
	if !whole || err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v, %v", got, whole, err)
	}
	if days, err := l.Days(); err != nil || !slices.Equal(days, []tlsrpt.Day{day}) {
		t.Error(days, err)
	}
	if none, err := l.domains(next); err != nil || len(none) > 0 {
		t.Error(none, err)
	}
}

func TestADaysDeliveriesAreReadInPagesWhileTheyAreWritten(t *testing.T) {
	l := newLab(t, store.Options{})
	const n = 2500
	var events []tlsrpt.Event
	var planned []tlsrpt.Delivery
	deliveries := 0
	for i := range n {
		events = append(events, success(numbered(i)))
		planned = append(planned, delivery(numbered(i), tlsrpt.Receiver{Kind: tlsrpt.Planned}))
	}
	l.write(events...)
	l.merge()
	if err := l.PutDeliveries(planned...); err != nil {
		t.Fatal(err)
	}
	err := l.Deliveries(day, func(v tlsrpt.Delivery) error {
		if v.Domain != numbered(deliveries) || v.Attempts != 0 {
			t.Fatalf("%+v is the %d.", v, deliveries)
		}
		deliveries++
		v.Attempts++
		return l.PutDeliveries(v)
	})
	if err != nil || deliveries != n {
		t.Error(deliveries, err)
	}
}

// domains returns the names of a day's domains.
func (l *lab) domains(day tlsrpt.Day) (names []string, err error) {
	_, err = l.EachDomain([]tlsrpt.Day{day}, "", func(domain string, _ [][]tlsrpt.Summary) bool {
		names = append(names, domain)
		return true
	})
	return names, err
}

func delivery(domain string, to ...tlsrpt.Receiver) tlsrpt.Delivery {
	return tlsrpt.Delivery{Day: day, Domain: domain, To: to}
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
	if got, err := l.Stage(day); got == tlsrpt.StageClosed != want || err != nil {
		l.t.Errorf("%s is %q, %v", day, got, err)
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
	if err := l.PutDeliveries(delivery("a.test", tlsrpt.Receiver{Kind: tlsrpt.Accepted})); err != nil {
		t.Fatal(err)
	}
	l.clock.set("2026-12-15 00:00")
	l.upkeep()
	l.mustCount(day, "a.test", 1, 0)
	l.clock.set("2026-12-15 00:01")
	l.upkeep()
	l.mustCount(day, "a.test", 0, 0)
	days, err := l.Days()
	v, verr := l.Delivery(day, "a.test")
	if len(days) > 0 || v.Domain != "" || err != nil || verr != nil {
		t.Error(days, v, err, verr)
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
	if domains, err := l.domains(day); err != nil || len(domains) != 1 {
		t.Error(domains, err)
	}
	if want := fmt.Sprintf("bytes=%d\n", int64(len(b))-whole); !strings.Contains(l.log.String(), want) {
		t.Errorf("no %q in the log:\n%s", want, &l.log)
	}
}

func TestDeliveriesAreStoredTogetherOrNotAtAll(t *testing.T) {
	l := newLab(t, store.Options{})
	l.write(success("a.test"), success("b.test"))
	l.merge()
	at := l.clock.now()
	a := delivery("a.test", tlsrpt.Receiver{URI: "https://a.test/" + strings.Repeat("x", 985), Kind: tlsrpt.Refused, Reason: "400", Changed: at},
		tlsrpt.Receiver{URI: "mailto:r@a.test", Kind: tlsrpt.Attempting, Changed: at})
	a.ReportID, a.Next, a.Attempts = "20261130.a.test.x@relay.test", at, 3
	b := delivery("b.test", tlsrpt.Receiver{Kind: tlsrpt.Suppressed})
	old := a
	old.Attempts, old.To = 1, b.To
	if err := errors.Join(l.PutDeliveries(b, old), l.PutDeliveries(a)); err != nil {
		t.Fatal(err)
	}
	gone := delivery("c.test", b.To...)
	gone.Day = next
	if err := l.PutDeliveries(delivery("z.test", b.To...), gone); !errors.Is(err, store.ErrNoDay) {
		t.Error(err)
	}
	l.reopen()
	for domain, want := range map[string]tlsrpt.Delivery{"a.test": a, "b.test": b, "a": {}, "a.test.test": {}, "z.test": {}} {
		if got, err := l.Delivery(day, domain); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v\nnot\n%+v", domain, got, err, want)
		}
	}
	var got []tlsrpt.Delivery
	if err := l.Deliveries(day, func(v tlsrpt.Delivery) error { got = append(got, v); return nil }); err != nil || !reflect.DeepEqual(got, []tlsrpt.Delivery{a, b}) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestSuppressionsEnd(t *testing.T) {
	l := newLab(t, store.Options{})
	at := l.clock.now()
	until := at.Add(30 * 24 * time.Hour)
	for i := range 3 {
		if err := l.Suppress(fmt.Sprintf("r%d@a.test", i), until.Add(time.Duration(-i)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Suppress("r1@a.test", at); err != nil {
		t.Fatal(err)
	}
	got, err := l.Suppressed()
	if err != nil || len(got) != 2 || !got["r0@a.test"].Equal(until) || !got["r1@a.test"].IsZero() {
		t.Errorf("%v, %v", got, err)
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

// The first version of the log had another form, and its checksums are right. Its database
// is set aside for its schema.
func TestWhatAnEarlierVersionHasInItsLogIsLostAndNothingElse(t *testing.T) {
	for name, batch := range map[string]string{
		"of that version":                   "\n2026-11-30\x03\x01" + strings.Repeat("h", 16) + "\x00\x00\x06a.test\x00\x06b.test\x01\x06c.test\x01",
		"of a short session":                "\x00\x14\x00" + strings.Repeat("h", 19),
		"of a session without domain":       "\x00\x1b2026-11-30\x00" + strings.Repeat("h", 16),
		"of a day that is none":             "\x00\x202026-13-30x.test\x00" + strings.Repeat("h", 16),
		"of a session whose policy is lost": "\x00\x212026-11-30x.test\x00" + strings.Repeat("h", 16),
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, store.Options{})
			l.write(success("a.test"))
			framed := binary.LittleEndian.AppendUint32(nil, uint32(len(batch)))
			framed = binary.LittleEndian.AppendUint32(framed, crc32.Checksum([]byte(batch), crc32.MakeTable(crc32.Castagnoli)))
			if err := os.WriteFile(l.path+".log-0000000000000001", append(framed, batch...), 0o600); err != nil {
				t.Fatal(err)
			}
			l.upkeep()
			l.mustCount(day, "a.test", 1, 0)
			got, err := l.domains(day)
			if days, failed := l.Days(); len(got) != 1 || len(days) != 1 || errors.Join(err, failed) != nil || l.Stats().Damaged != 0 {
				t.Errorf("%v, %v, %v, %v", got, days, err, failed)
			}
			if segments, _ := filepath.Glob(l.path + ".log-*"); len(segments) > 0 || !strings.Contains(l.log.String(), "it is lost") {
				t.Errorf("%v; %s", segments, &l.log)
			}
		})
	}
}

func TestARelayKeepsItsRandomNameOverRestartsAndAnotherRelayHasAnother(t *testing.T) {
	l, other := newLab(t, store.Options{}), newLab(t, store.Options{})
	name, err := l.RelayID()
	if err != nil || len(name) != 16 {
		t.Fatalf("%q, %v", name, err)
	}
	l.reopen()
	again, err := l.RelayID()
	others, err2 := other.RelayID()
	if err != nil || err2 != nil || again != name || others == name {
		t.Errorf("%q, then %q; the other one's %q; %v, %v", name, again, others, err, err2)
	}
}
