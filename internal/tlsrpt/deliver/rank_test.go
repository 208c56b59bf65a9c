package deliver_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

// A record is unauthenticated text: nobody may aim us at a third party.
func TestTenThousandDomainsCannotAimUsAtAThirdParty(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.config.Window = 0
		for i := range 10_000 { // each at another address and host of the victim's
			w.add(yesterday, fmt.Sprintf("d%d.test", i), uint64(i)+1, fmt.Sprintf("mailto:a%d@h%d.victim.test", i, i))
		}
		d := w.run(24 * time.Hour)
		if len(w.parcels()) != 1000 || d.Stats().Reports[tlsrpt.Suppressed] != 9000 || d.Stats().LeftOut.IsZero() || !strings.Contains(w.log.String(), "see max_per_destination in [tlsrpt]") {
			t.Errorf("%d reports, %+v, log:\n%.1000s", len(w.parcels()), d.Stats(), w.log.String())
		}
		for i := range 10_000 {
			destination := fmt.Sprintf("mailto:a%d@h%d.victim.test", i, i)
			want := tlsrpt.Suppressed
			if i >= 9000 { // those with most sessions
				want = tlsrpt.Accepted
			}
			w.want(fmt.Sprintf("d%d.test", i), want, destination)
		}
		w.run(24 * time.Hour)
		if len(w.parcels()) != 1000 {
			t.Errorf("after a restart %d reports", len(w.parcels()))
		}
	})
}

func TestOfTooManyDomainsThoseWithMostSessionsAreReported(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		const most, over = 100_000, 50
		w.config.Skip = func(string) bool { return true } // a plan without questions
		for i := range most + over {                      // the first by name have fewest sessions
			w.add(yesterday, fmt.Sprintf("d%06d.test", i), uint64(i)+1)
		}
		w.run(11 * time.Minute)
		if n := len(w.store.deliveries[yesterday]); n != most || !strings.Contains(w.log.String(), "too many domains") || !strings.Contains(w.log.String(), fmt.Sprint("domains=", over)) {
			t.Errorf("%d are planned; log: %.1000s", n, w.log.String())
		}
		if last := fmt.Sprintf("d%06d.test", over-1); w.store.delivery(yesterday, last).Domain != "" {
			t.Errorf("%s is planned", last)
		}
	})
}

func TestDomainsBelowOneRegistrableDomainAreTenForAThirdPartyAndAllForTheirOwn(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for i := range 100 {
			w.add(yesterday, fmt.Sprintf("d%d.attack.test", i), uint64(i)+1000, "mailto:tls@service.test", "mailto:tls@reports.attack.test")
		}
		w.add(yesterday, "customer.test", 2, "mailto:tls@service.test", "https://service.test/tls")
		w.add(yesterday, "service.test", 2, "mailto:tls@service.test")
		w.run(24 * time.Hour)
		count := map[string]int{}
		for _, p := range w.parcels() {
			count[p.to]++
		}
		if count["tls@service.test"] != 12 || count["tls@reports.attack.test"] != 100 || count["https://service.test/tls"] != 1 {
			t.Errorf("got %v", count)
		}
		w.want("customer.test", tlsrpt.Accepted, "mailto:tls@service.test")
		w.want("d99.attack.test", tlsrpt.Accepted, "mailto:tls@service.test")
		if row := w.store.receiver(yesterday, "d0.attack.test", "mailto:tls@service.test"); row.Kind != tlsrpt.Suppressed {
			t.Errorf("got %+v", row)
		}
	})
}

// A zone can answer only after the ranking.
func TestRecordsThatComeLateCountTowardsTheLimitToo(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.config.MaxPerDestination = 50
		for i := range 500 {
			w.add(yesterday, fmt.Sprintf("d%d.test", i), uint64(i)+1, "mailto:tls@victim.test")
		}
		start := time.Now()
		w.query = func(_ context.Context, name string) error {
			if strings.HasSuffix(name, "0.test") || time.Since(start) > 15*time.Minute {
				return nil
			}
			return errors.New("SERVFAIL")
		}
		w.run(48 * time.Hour)
		if len(w.parcels()) != 50 {
			t.Errorf("%d reports", len(w.parcels()))
		}
	})
}

func TestDomainsBelowOneRegistrableDomainAreAThousandAtMost(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		const over = 50
		w.config.Skip = func(string) bool { return true }
		for i := range 1000 + over {
			w.add(yesterday, fmt.Sprintf("d%04d.attack.test", i), uint64(i)+2)
		}
		w.add(yesterday, "zz.test", 1)
		w.run(11 * time.Minute)
		if n := len(w.store.deliveries[yesterday]); n != 1001 || !strings.Contains(w.log.String(), fmt.Sprint("domains=", over)) {
			t.Errorf("%d are planned; log: %.1000s", n, w.log.String())
		}
		if first := w.store.delivery(yesterday, "d0000.attack.test"); first.Domain != "" {
			t.Errorf("one with few sessions is planned: %+v", first)
		}
	})
}

// Each of the domains holds its report's connection open as long as it can.
func TestReceiversThatHoldConnectionsOpenDelayAnHonestReportByAnHourAtMost(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.config.Window = 0
		for i := range 2000 {
			w.add(yesterday, fmt.Sprintf("d%d.attack.test", i), 3, fmt.Sprintf("https://d%d.attack.test/", i))
		}
		w.add(yesterday, "zz.test", 3, "mailto:tls@zz.test")
		w.receive = func(_ context.Context, p parcel) error {
			if strings.Contains(p.to, "attack") {
				time.Sleep(30 * time.Second)
				return errors.New("no answer in time")
			}
			return nil
		}
		w.run(time.Hour)
		w.want("zz.test", tlsrpt.Accepted, "mailto:tls@zz.test")
	})
}

func TestAZoneThatNeverAnswersDelaysAnHonestReportByAnHourAtMost(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.config.Window = 0
		for i := range 2000 {
			w.add(yesterday, fmt.Sprintf("d%d.attack.test", i), 3)
		}
		w.add(yesterday, "zz.test", 3, "mailto:tls@zz.test")
		w.query = func(ctx context.Context, name string) error {
			if strings.Contains(name, "attack") {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}
		w.run(time.Hour)
		w.want("zz.test", tlsrpt.Accepted, "mailto:tls@zz.test")
	})
}
