package deliver_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/deliver"
)

// sent runs Send, and returns "TO STATE" of each row, sorted.
func (w *world) sent(day tlsrpt.Day, domain string) (rows []string, err error) {
	err = deliver.New(w.config).Send(w.t.Context(), day, domain, func(v tlsrpt.Delivery) {
		for _, r := range v.To {
			rows = append(rows, strings.TrimSpace(fmt.Sprintf("%s %s", cmp.Or(r.URI, v.Domain), r.Kind)))
		}
	})
	slices.Sort(rows)
	return rows, err
}

func TestAReportIsSentAtOnceAndNotAgainAtItsMoment(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for _, domain := range []string{"one.test", "two.test"} {
			w.add(yesterday, domain, 3, "mailto:tls@"+domain)
		}
		w.run(10*time.Minute + time.Second) // planned for a moment in the window
		planned := w.store.delivery(yesterday, "one.test")
		rows, err := w.sent(yesterday, "one.test")
		if err != nil || !slices.Equal(rows, []string{"mailto:tls@one.test accepted"}) || len(w.parcels()) != 1 || w.parcels()[0].id != planned.ReportID {
			t.Fatalf("%q, %v; %d reports, planned %+v", rows, err, len(w.parcels()), planned)
		}
		if rows, err = w.sent(yesterday, ""); err != nil || !slices.Equal(rows, []string{"mailto:tls@one.test accepted", "mailto:tls@two.test accepted"}) {
			t.Errorf("%q, %v", rows, err)
		}
		w.run(24 * time.Hour)
		if len(w.parcels()) != 2 || w.store.stage(yesterday) != tlsrpt.StageDone {
			t.Errorf("%d reports, the day is %s", len(w.parcels()), w.store.stage(yesterday))
		}
	})
}

func TestADayThatIsNotPlannedYetIsPlannedAndSent(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.add(yesterday, "one.test", 3, "mailto:tls@one.test")
		time.Sleep(11 * time.Minute)
		if rows, err := w.sent(yesterday, "one.test"); err != nil || !slices.Equal(rows, []string{"mailto:tls@one.test accepted"}) {
			t.Errorf("%q, %v", rows, err)
		}
	})
}

func TestADayThatIsNotOverIsNotSent(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.add("2000-01-01", "one.test", 3, "mailto:tls@one.test")
		time.Sleep(12 * time.Hour)
		if rows, err := w.sent("2000-01-01", "one.test"); err == nil || !strings.Contains(err.Error(), "2000-01-01 is not over yet: its reports can be sent after 2000-01-02T00:10:00Z") {
			t.Errorf("%q, %v", rows, err)
		}
		for _, day := range []tlsrpt.Day{"1999-12-30", ""} {
			if rows, err := w.sent(day, "one.test"); !errors.Is(err, deliver.ErrNoData) {
				t.Errorf("%s: %q, %v", day, rows, err)
			}
		}
		w.add(yesterday, "two.test", 3)
		if rows, err := w.sent(yesterday, "one.test"); !errors.Is(err, deliver.ErrNoData) {
			t.Errorf("another domain's day: %q, %v", rows, err)
		}
		if len(w.parcels()) > 0 {
			t.Errorf("sent %v", w.parcels())
		}
	})
}

func TestWhatFailedIsSentAgainAndWhatWasAcceptedIsNot(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.config.Window = 0
		w.add(yesterday, "one.test", 3, "mailto:accepts@one.test", "mailto:refuses@one.test", "https://one.test/quiet")
		w.store.suppressed = map[string]time.Time{"https://one.test/quiet": time.Now().Add(240 * time.Hour)}
		refuse := func(_ context.Context, p parcel) error {
			if strings.HasPrefix(p.to, "refuses") {
				return deliver.ErrRefused
			}
			return nil
		}
		w.receive = refuse
		w.run(time.Hour)
		want := []string{"https://one.test/quiet suppressed", "mailto:accepts@one.test accepted", "mailto:refuses@one.test refused"}
		if rows, err := w.sent(yesterday, "one.test"); err != nil || !slices.Equal(rows, want) || len(w.parcels()) != 3 {
			t.Errorf("%q, %v, %d attempts", rows, err, len(w.parcels()))
		}
		w.receive, w.store.suppressed = nil, nil
		if rows, err := w.sent(yesterday, ""); err != nil || strings.Join(rows, " ") != "https://one.test/quiet accepted mailto:accepts@one.test accepted mailto:refuses@one.test accepted" {
			t.Errorf("%q, %v", rows, err)
		}
		count := map[string]int{}
		for _, p := range w.parcels() {
			count[p.to]++
		}
		if count["accepts@one.test"] != 1 || count["refuses@one.test"] != 3 || count["https://one.test/quiet"] != 1 {
			t.Errorf("got %v", count)
		}
	})
}

// A day that was done is looked at again.
func TestAnAttemptOfSendThatFailsIsRepeated(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.config.Window = 0
		w.add(yesterday, "one.test", 3, "mailto:tls@one.test")
		w.receive = func(context.Context, parcel) error { return deliver.ErrRefused }
		w.run(time.Hour)
		if stage := w.store.stage(yesterday); stage != tlsrpt.StageDone {
			t.Fatalf("the day is %s", stage)
		}
		w.receive = func(context.Context, parcel) error { return errors.New("451 later") }
		if rows, err := w.sent(yesterday, "one.test"); err != nil || !slices.Equal(rows, []string{"mailto:tls@one.test planned"}) {
			t.Errorf("%q, %v", rows, err)
		}
		w.receive = nil
		w.run(time.Hour)
		w.want("one.test", tlsrpt.Accepted, "mailto:tls@one.test")
	})
}

func TestSendObeysTheAdministratorAndTheLimit(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.config.MaxPerDestination = 2
		w.config.Skip = func(domain string) bool { return domain == "skipped.test" }
		for i := range 3 {
			w.add(yesterday, fmt.Sprintf("d%d.test", i), uint64(i)+1, "mailto:tls@victim.test")
		}
		w.add(yesterday, "skipped.test", 3, "mailto:tls@skipped.test")
		w.add(yesterday, "none.test", 3)
		time.Sleep(11 * time.Minute)
		for range 2 {
			rows, err := w.sent(yesterday, "")
			want := []string{"mailto:tls@victim.test accepted", "mailto:tls@victim.test accepted", "mailto:tls@victim.test suppressed", "none.test suppressed", "skipped.test suppressed"}
			if err != nil || !slices.Equal(rows, want) || len(w.parcels()) != 2 {
				t.Errorf("%q, %v, %d reports", rows, err, len(w.parcels()))
			}
		}
		if row := w.store.receiver(yesterday, "d0.test", "mailto:tls@victim.test"); row.Kind != tlsrpt.Suppressed {
			t.Errorf("the domain with fewest sessions: %+v", row)
		}
	})
}

func TestSendWaitsForAPassAndEndsWithItsClient(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.config.Window = 0
		w.add(yesterday, "one.test", 3, "mailto:tls@one.test")
		release := make(chan struct{})
		w.receive = func(context.Context, parcel) error { <-release; return nil }
		d := deliver.New(w.config)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go d.Run(ctx)
		time.Sleep(11 * time.Minute)
		gone, leave := context.WithTimeout(t.Context(), time.Second)
		defer leave()
		if err := d.Send(gone, yesterday, "one.test", func(tlsrpt.Delivery) {}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a client that leaves: %v", err)
		}
		close(release)
		var kinds []tlsrpt.StateKind
		if err := d.Send(t.Context(), yesterday, "one.test", func(v tlsrpt.Delivery) { kinds = append(kinds, v.To[0].Kind) }); err != nil || !slices.Equal(kinds, []tlsrpt.StateKind{tlsrpt.Accepted}) || len(w.parcels()) != 1 {
			t.Errorf("%v, %v, %d reports", kinds, err, len(w.parcels()))
		}
	})
}

// The client of -report -send may be a pipe that nobody reads.
func TestAClientThatDoesNotReadStopsNoDelivery(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for _, domain := range []string{"one.test", "two.test"} {
			w.add(yesterday, domain, 3, "mailto:tls@"+domain)
		}
		time.Sleep(11 * time.Minute)
		d := deliver.New(w.config)
		reads, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			if err := d.Send(t.Context(), yesterday, "", func(tlsrpt.Delivery) { <-reads }); err != nil {
				t.Error(err)
			}
		}()
		time.Sleep(time.Minute)
		if len(w.parcels()) != 2 {
			t.Errorf("%d reports were sent", len(w.parcels()))
		}
		w.add("2000-01-01", "one.test", 4, "mailto:tls@one.test")
		ctx, cancel := context.WithTimeout(t.Context(), 48*time.Hour)
		defer cancel()
		d.Run(ctx)
		if len(w.parcels()) != 3 {
			t.Errorf("%d reports, the next day included", len(w.parcels()))
		}
		close(reads)
		<-done
	})
}

func TestADomainThatTheDayWasPlannedWithoutIsSentWhenAskedFor(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.add(yesterday, "one.test", 3, "mailto:tls@one.test")
		w.run(11 * time.Minute)
		w.add(yesterday, "small.test", 2, "mailto:tls@small.test") // as one of too many domains
		if rows, err := w.sent(yesterday, "small.test"); err != nil || !slices.Equal(rows, []string{"mailto:tls@small.test accepted"}) {
			t.Errorf("%q, %v", rows, err)
		}
	})
}
