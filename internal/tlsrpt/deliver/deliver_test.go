package deliver_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/deliver"
)

func TestRFC8460_4_1_ReportsAreSpreadOverTheWindowAndARestartChangesNoMoment(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for i := range 400 {
			w.add(yesterday, fmt.Sprintf("d%d.test", i), 3, fmt.Sprintf("mailto:tls@d%d.test", i))
		}
		midnight := time.Now()
		w.run(10*time.Minute - time.Second)
		if len(w.parcels()) > 0 || len(w.store.deliveries) > 0 {
			t.Fatalf("before 00:10: %d reports", len(w.parcels()))
		}
		w.run(time.Hour)
		planned := map[string]tlsrpt.Delivery{}
		for i := range 400 {
			domain := fmt.Sprintf("d%d.test", i)
			planned["tls@"+domain] = w.store.delivery(yesterday, domain)
		}
		before := len(w.parcels())
		w.run(4 * time.Hour)
		var quarters [4]int
		for i, p := range w.parcels() {
			row := planned[p.to]
			if i >= before && (p.id != row.ReportID || p.at.Before(row.Next) || p.at.After(row.Next.Add(time.Minute+time.Second))) {
				t.Errorf("planned %+v, got %v %s", row, p.at, p.id)
			}
			quarters[min(3, p.at.Sub(midnight.Add(10*time.Minute))/time.Hour)]++
		}
		if len(w.parcels()) != 400 || slices.Min(quarters[:]) < 50 {
			t.Errorf("%d reports, in the four hours: %d", len(w.parcels()), quarters)
		}
		w.run(48 * time.Hour)
		if len(w.parcels()) != 400 || w.store.stage(yesterday) != tlsrpt.StageDone {
			t.Errorf("later: %d reports, %s", len(w.parcels()), w.store.stage(yesterday))
		}
	})
}

func TestRFC8460_5_5_AFailedAttemptIsRepeatedForADayWithTheSameID(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.add(yesterday, "example.test", 3, "mailto:tls@example.test")
		w.receive = func(context.Context, parcel) error { return errors.New("451 later") }
		w.run(72 * time.Hour)
		tried := w.parcels()
		var pauses []time.Duration
		for i, p := range tried {
			if p.id != tried[0].id {
				t.Errorf("the ids %s and %s", tried[0].id, p.id)
			}
			if i > 0 {
				pauses = append(pauses, p.at.Sub(tried[i-1].at).Truncate(5*time.Minute))
			}
		}
		want := []time.Duration{10 * time.Minute, 30 * time.Minute, time.Hour, 2 * time.Hour, 4 * time.Hour, 8 * time.Hour, 8 * time.Hour}
		if !slices.Equal(pauses, want) {
			t.Errorf("got the pauses %v; want %v", pauses, want)
		}
		w.want("example.test", tlsrpt.Expired, "mailto:tls@example.test")
		if row := w.store.receiver(yesterday, "example.test", "mailto:tls@example.test"); row.Reason != "451 later" {
			t.Errorf("got %+v", row)
		}
	})
}

func TestAReceiverCanAskForFourHoursAtMost(t *testing.T) {
	for after, want := range map[time.Duration]time.Duration{-time.Hour: 10 * time.Minute, time.Minute: 10 * time.Minute, time.Hour: time.Hour, 100 * time.Hour: 4 * time.Hour} {
		inWorld(t, func(t *testing.T, w *world) {
			w.add(yesterday, "example.test", 3, "https://example.test/")
			w.receive = func(context.Context, parcel) error {
				if len(w.parcels()) == 1 {
					return &deliver.LaterError{After: after, Err: errors.New("HTTP status 503")}
				}
				return nil
			}
			w.run(24 * time.Hour)
			tried := w.parcels()
			if len(tried) != 2 || tried[1].at.Sub(tried[0].at).Truncate(5*time.Minute) != want {
				t.Errorf("Retry-After %v: got %v", after, tried)
			}
			w.want("example.test", tlsrpt.Accepted, "https://example.test/")
		})
	}
}

func TestRFC8460_3_EachDestinationIsTriedAndARefusalIsFinal(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.add(yesterday, "one.test", 3, "mailto:refuses@one.test", "mailto:accepts@one.test", "https://one.test/later")
		w.add(yesterday, "none.test", 3, "mailto:refuses@none.test")
		w.receive = func(_ context.Context, p parcel) error {
			switch {
			case strings.HasPrefix(p.to, "refuses"):
				return fmt.Errorf("RCPT TO: %w: 550 nobody", deliver.ErrRefused)
			case strings.HasSuffix(p.to, "later") && len(w.parcels()) < 5:
				return errors.New("HTTP status 500")
			}
			return nil
		}
		d := w.run(24 * time.Hour)
		count := map[string]int{}
		for _, p := range w.parcels() {
			count[p.to]++
		}
		if count["refuses@one.test"] != 1 || count["accepts@one.test"] != 1 || count["https://one.test/later"] < 2 || count["refuses@none.test"] != 1 {
			t.Errorf("got %v", count)
		}
		w.want("none.test", tlsrpt.Refused, "mailto:refuses@none.test")
		if kinds := w.store.kinds(yesterday); kinds[tlsrpt.Accepted] != 2 || kinds[tlsrpt.Refused] != 2 {
			t.Errorf("got %v", kinds)
		}
		if s := d.Stats(); s.Reports[tlsrpt.Accepted] != 2 || s.Reports[tlsrpt.Refused] != 2 || s.Reports[tlsrpt.Planned] == 0 || s.Open != 0 {
			t.Errorf("got %+v", s)
		}
	})
}

// The window is four hours: the domain may have changed its mind.
func TestTheRecordIsAskedForAgainAtDelivery(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for _, domain := range []string{"gone.test", "broken.test", "moved.test", "same.test"} {
			w.add(yesterday, domain, 3, "mailto:tls@"+domain)
		}
		w.receive = func(context.Context, parcel) error { return errors.New("later") }
		w.run(5 * time.Hour)
		w.receive = nil
		w.publish("gone.test")
		w.publish("broken.test", "mailto:")
		w.publish("moved.test", "mailto:other@moved.test")
		before := len(w.parcels())
		w.run(10 * time.Hour)
		var got []string
		for _, p := range w.parcels()[before:] {
			got = append(got, p.to)
		}
		slices.Sort(got)
		if !slices.Equal(got, []string{"other@moved.test", "tls@same.test"}) {
			t.Errorf("got %q", got)
		}
		w.want("gone.test", tlsrpt.Suppressed, "mailto:tls@gone.test")
		w.want("broken.test", tlsrpt.Suppressed, "mailto:tls@broken.test")
		w.want("moved.test", tlsrpt.Accepted, "mailto:other@moved.test")
		if row := w.store.receiver(yesterday, "moved.test", "mailto:tls@moved.test"); row.Kind != tlsrpt.Suppressed {
			t.Errorf("got %+v", row)
		}
	})
}

func TestADomainWithoutAUsableRecordGetsNoReport(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.add(yesterday, "none.test", 3)
		w.add(yesterday, "attack.test", 3, "mailto:a@b.test?bcc=c@d.test", "mailto:-f@b.test", "mailto:a%0d%0a@b.test", "https://127.0.0.1/", "https://b.test:25/")
		w.run(24 * time.Hour)
		w.want("none.test", tlsrpt.Suppressed)
		w.want("attack.test", tlsrpt.Suppressed)
		if len(w.parcels()) > 0 {
			t.Errorf("got %v", w.parcels())
		}
	})
}

// The process ends after the receiver has taken the report, and before that is on disk.
func TestAKillBetweenTheAcceptanceAndItsStateRepeatsTheReportWithTheSameID(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.config.Window = 0
		w.add(yesterday, "example.test", 3, "mailto:tls@example.test")
		w.receive = func(context.Context, parcel) error {
			w.store.kill()
			return nil
		}
		w.run(15 * time.Minute)
		row := w.store.delivery(yesterday, "example.test")
		if row.To[0].Kind != tlsrpt.Attempting || row.ReportID == "" || row.Attempts != 1 {
			t.Fatalf("on disk: %+v", row)
		}
		w.store.dead, w.receive = nil, nil
		w.run(24 * time.Hour)
		tried := w.parcels()
		if len(tried) != 2 || tried[0].id != tried[1].id || tried[0].id != row.ReportID {
			t.Errorf("got %v; want %s twice", tried, row.ReportID)
		}
		w.want("example.test", tlsrpt.Accepted, "mailto:tls@example.test")
	})
}

func TestAKillWhileADayIsPlannedLosesNoReportAndRepeatsNone(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for i := range 1200 { // in batches of a thousand
			w.add(yesterday, fmt.Sprintf("d%d.test", i), 3, fmt.Sprintf("mailto:tls@d%d.test", i))
		}
		w.store.dieAfter = 1
		w.run(11 * time.Minute)
		if planned := w.store.kinds(yesterday)[tlsrpt.Planned]; planned == 0 || planned == 1200 || len(w.parcels()) > 0 {
			t.Fatalf("%d planned, %d reports", planned, len(w.parcels()))
		}
		w.store.dead = nil
		w.run(24 * time.Hour)
		if kinds := w.store.kinds(yesterday); kinds[tlsrpt.Accepted] != 1200 || len(w.parcels()) != 1200 {
			t.Errorf("%d reports, %v", len(w.parcels()), kinds)
		}
	})
}

func TestNothingIsSentThatIsNotOnDiskBefore(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.config.Window = time.Hour
		w.add(yesterday, "example.test", 3, "mailto:tls@example.test")
		w.run(10*time.Minute + time.Second)
		w.store.kill()
		w.run(6 * time.Hour)
		if len(w.parcels()) > 0 || !strings.Contains(w.log.String(), "TLS reports cannot be delivered") {
			t.Errorf("got %v; log:\n%s", w.parcels(), w.log.String())
		}
		w.store.dead = nil
		w.run(time.Hour)
		w.want("example.test", tlsrpt.Accepted, "mailto:tls@example.test")
	})
}

func TestTheDaysWhileTheDaemonWasOffAreWorkedOff(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.add("1999-12-29", "example.test", 3, "mailto:tls@example.test")
		w.add("1999-12-30", "example.test", 4, "mailto:tls@example.test")
		w.add(yesterday, "example.test", 5, "mailto:tls@example.test")
		w.add("2000-01-01", "example.test", 6, "mailto:tls@example.test")
		w.run(10 * time.Minute) // planned for two days, and off again
		time.Sleep(30 * time.Hour)
		start := time.Now()
		w.run(5 * time.Hour)
		days := map[string]int{}
		for _, p := range w.parcels() {
			days[p.id[:8]]++
			if p.at.After(start.Add(4*time.Hour + 2*time.Minute)) {
				t.Errorf("late: %v", p.at)
			}
		}
		if want := map[string]int{"19991229": 1, "19991230": 1, "19991231": 1, "20000101": 1}; fmt.Sprint(days) != fmt.Sprint(want) {
			t.Errorf("got %v", days)
		}
	})
}

// Two reporters that report each other's report mails would never end.
func TestRFC8460_3_ReportMailsAloneMakeNoReport(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.add(yesterday, "peer.test", 3, "mailto:tls@peer.test", "mailto:tls@elsewhere.test")
		day, want := tlsrpt.Day("2000-01-01"), map[string]int{"19991231": 2, "20000102": 1, "20000104": 1}
		for _, real := range []uint64{0, 3, 0, 1, 0, 0} { // sessions that day beside those of report mails
			before := len(w.parcels())
			w.run(24*time.Hour - time.Second)
			mails := map[string]uint64{"peer.test": real}
			for _, p := range w.parcels()[before:] {
				mails[p.to[strings.IndexByte(p.to, '@')+1:]]++
			}
			for domain, sessions := range mails {
				if sessions > 0 {
					w.add(day, domain, sessions, "mailto:tls@"+domain)
				}
				if broken := w.store.days[day][domain]; domain == "elsewhere.test" { // each mail makes a lookup that counts
					broken.Policies = append(broken.Policies, tlsrpt.Summary{Policy: tlsrpt.Policy{Type: tlsrpt.TypeSTS, Domain: domain}, Failed: sessions,
						Details: []tlsrpt.Detail{{Failure: tlsrpt.Failure{Result: tlsrpt.STSPolicyFetchError}, Sessions: sessions}}})
					w.store.days[day][domain] = broken
				}
			}
			time.Sleep(time.Second)
			day = tlsrpt.DayOf(time.Now())
		}
		w.run(24 * time.Hour)
		days := map[string]int{}
		for _, p := range w.parcels() {
			days[p.id[:8]]++
		}
		if !maps.Equal(days, want) {
			t.Errorf("got reports of the days %v; want %v", days, want)
		}
		if row := w.store.receiver("2000-01-01", "peer.test", ""); row.Kind != tlsrpt.Suppressed || row.Reason != "1 sessions, no more than our 1 report mails" {
			t.Errorf("got %+v", row)
		}
	})
}

func TestTheAdministratorDecidesWhoGetsNoReport(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.config.FailuresOnly = true
		w.config.Skip = func(domain string) bool { return domain == "skipped.test" }
		w.add(yesterday, "skipped.test", 3, "mailto:tls@skipped.test")
		w.add(yesterday, "fine.test", 3, "mailto:tls@fine.test")
		w.store.days[yesterday]["fine.test"].Policies[0].Failed = 0
		w.add(yesterday, "failing.test", 3, "mailto:tls@failing.test")
		w.add(yesterday, "suppressed.test", 3, "mailto:TLS@suppressed.test", "https://suppressed.test/")
		w.add(yesterday, "over.test", 3, "mailto:tls@over.test")
		w.store.suppressed = map[string]time.Time{
			"tls@suppressed.test": time.Now().Add(48 * time.Hour), "https://suppressed.test/": time.Now().Add(48 * time.Hour),
			"tls@over.test": time.Now().Add(time.Minute),
		}
		w.run(24 * time.Hour)
		var got []string
		for _, p := range w.parcels() {
			got = append(got, p.to)
		}
		slices.Sort(got)
		if !slices.Equal(got, []string{"tls@failing.test", "tls@over.test"}) {
			t.Errorf("got %q", got)
		}
		w.want("suppressed.test", tlsrpt.Suppressed, "mailto:TLS@suppressed.test", "https://suppressed.test/")
		w.want("skipped.test", tlsrpt.Suppressed)
		w.want("fine.test", tlsrpt.Suppressed)
	})
}

func TestAPanicOrAnUnreadableDayHoldsUpNoOther(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.store.broken = map[string]error{"damaged.test": errors.New("checksum")}
		for _, domain := range []string{"bomb.test", "damaged.test", "dns.test", "good.test"} {
			w.add(yesterday, domain, 3, "mailto:tls@"+domain)
		}
		w.query = func(_ context.Context, name string) error {
			if strings.HasSuffix(name, "dns.test") {
				panic("on purpose")
			}
			return nil
		}
		w.receive = func(_ context.Context, p parcel) error {
			if strings.HasSuffix(p.to, "bomb.test") {
				panic("on purpose")
			}
			return nil
		}
		w.run(72 * time.Hour)
		w.want("good.test", tlsrpt.Accepted, "mailto:tls@good.test")
		w.want("bomb.test", tlsrpt.Expired, "mailto:tls@bomb.test")
		w.want("dns.test", tlsrpt.Expired)
		w.want("damaged.test", tlsrpt.Expired, "mailto:tls@damaged.test")
		if w.store.stage(yesterday) != tlsrpt.StageDone {
			t.Errorf("the day is %s", w.store.stage(yesterday))
		}
	})
}

func TestTheEndOfTheDaemonEndsAnAttemptAndTheNextOneRepeatsIt(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.config.Window = 0
		w.add(yesterday, "example.test", 3, "mailto:tls@example.test")
		w.receive = func(ctx context.Context, _ parcel) error {
			<-ctx.Done()
			return ctx.Err()
		}
		start := time.Now()
		w.run(10*time.Minute + 10*time.Second)
		if took := time.Since(start); took != 10*time.Minute+10*time.Second || len(w.parcels()) != 1 {
			t.Errorf("Run took %v for %d attempts", took, len(w.parcels()))
		}
		if row := w.store.receiver(yesterday, "example.test", "mailto:tls@example.test"); row.Kind != tlsrpt.Attempting || row.Reason != "" {
			t.Errorf("got %+v", row)
		}
		w.receive = nil
		w.run(time.Hour)
		w.want("example.test", tlsrpt.Accepted, "mailto:tls@example.test")
	})
}

func TestARecordThatCannotBeAskedForIsAskedForAgainForADay(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for _, domain := range []string{"later.test", "never.test"} {
			w.add(yesterday, domain, 3, "mailto:tls@"+domain)
		}
		asked := map[string]int{}
		w.query = func(_ context.Context, name string) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if asked[name]++; asked[name] > 3 && strings.HasSuffix(name, "later.test") {
				return nil
			}
			return errors.New("SERVFAIL")
		}
		w.run(72 * time.Hour)
		w.want("later.test", tlsrpt.Accepted, "mailto:tls@later.test")
		w.want("never.test", tlsrpt.Expired)
		if len(w.parcels()) != 1 || asked["_smtp._tls.never.test"] != 1+8 { // when the day is planned, and when the report is due
			t.Errorf("%d reports; asked %v", len(w.parcels()), asked)
		}
	})
}
