package deliver_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/deliver"
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

func TestAReceiverThatHoldsConnectionsOpenHoldsUpNoOther(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.config.Window = 0
		for i := range 500 {
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
		start := time.Now()
		w.run(72 * time.Hour)
		for _, p := range w.parcels() {
			if p.to == "tls@zz.test" && p.at.Sub(start) > 12*time.Minute {
				t.Errorf("the honest report was sent after %v", p.at.Sub(start))
			}
		}
		// In each pass one attempt for each that may be under way, and no more.
		if n := len(w.parcels()); n < 16 || n > 8*20+1 {
			t.Errorf("%d attempts", n)
		}
		w.want("zz.test", tlsrpt.Accepted, "mailto:tls@zz.test")
		w.want("d499.attack.test", tlsrpt.Expired, "https://d499.attack.test/")
	})
}

// An MTA may ask the recipient's host before it answers, and a hostile one is slow.
func TestRecipientsThatTheMTAWaitsForHoldUpNoOther(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.config.Window = 0
		for i := range 100 {
			w.add(yesterday, fmt.Sprintf("a%d.test", i), 3, fmt.Sprintf("mailto:tls@a%d.attack.test", i))
			w.add(yesterday, fmt.Sprintf("z%d.test", i), 3, fmt.Sprintf("mailto:tls@z%d.test", i))
		}
		w.receive = func(_ context.Context, p parcel) error {
			if strings.Contains(p.to, "attack") {
				time.Sleep(30 * time.Second)
				return errors.New("RCPT TO: 450 cannot verify")
			}
			return nil
		}
		w.run(12 * time.Minute)
		if kinds := w.store.kinds(yesterday); kinds[tlsrpt.Accepted] != 100 || len(w.parcels()) > 100+16+3 {
			t.Errorf("%d attempts, %v", len(w.parcels()), kinds)
		}
	})
}

func TestAnMTAOfOursThatHangsIsNotAskedForEachReport(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.config.Window = 0
		for i := range 200 {
			w.add(yesterday, fmt.Sprintf("d%d.test", i), 3, fmt.Sprintf("mailto:tls@d%d.test", i), fmt.Sprintf("https://d%d.test/", i))
		}
		w.receive = func(_ context.Context, p parcel) error {
			if strings.Contains(p.to, "@") {
				time.Sleep(3 * time.Minute)
				return fmt.Errorf("%w: no greeting", deliver.ErrNoMTA)
			}
			return nil
		}
		w.run(19 * time.Minute)
		if kinds := w.store.kinds(yesterday); kinds[tlsrpt.Accepted] != 200 || len(w.parcels()) > 200+16+3 {
			t.Errorf("%d attempts, %v", len(w.parcels()), kinds)
		}
	})
}

func TestAZoneThatNeverAnswersHoldsUpNoOther(t *testing.T) {
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
		start := time.Now()
		w.run(time.Hour)
		if tried := w.parcels(); len(tried) != 1 || tried[0].at.Sub(start) > 11*time.Minute {
			t.Errorf("got %v, started at %v", tried, start)
		}
	})
}
