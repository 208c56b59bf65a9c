package deliver_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/deliver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
)

// A site is a mail domain that reports to the other one.
type site struct {
	*world
	domain string
	peer   *site
}

// session counts a session of the site with its peer that failed. The peer's policy is
// broken, so the site's own lookup counts a failure too.
func (s *site) session() {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	today := tlsrpt.DayOf(time.Now())
	if s.store.days[today] == nil {
		s.store.days[today] = map[string]tlsrpt.DomainDay{}
	}
	d := s.store.days[today][s.peer.domain]
	for _, result := range []tlsrpt.ResultType{tlsrpt.CertificateExpired, tlsrpt.STSWebPKIInvalid} {
		d.Policies = append(d.Policies, tlsrpt.Summary{
			Policy: tlsrpt.Policy{Type: tlsrpt.TypeSTS, Domain: s.peer.domain}, Failed: 1,
			Details: []tlsrpt.Detail{{Failure: tlsrpt.Failure{Result: result}, Sessions: 1}},
		})
	}
	s.store.days[today][s.peer.domain] = d
}

// Each report is a mail to the other site, and so one more session that fails.
func TestRFC8460_3_TwoSitesThatFailTowardsEachOtherFallSilentAfterOneDay(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := &site{world: w, domain: "a.test"}
		b := &site{world: &world{t: t, store: newMemory(), records: w.records, config: w.config}, domain: "b.test", peer: a}
		a.peer = b
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		reports := map[string]int{}
		for _, s := range []*site{a, b} {
			w.publish(s.domain, "mailto:tls@"+s.domain)
			r, err := report.New(report.Config{Organization: "Test", Contact: "tls@" + s.domain})
			if err != nil {
				t.Fatal(err)
			}
			s.config.Store, s.config.Reporter = s.store, r
			s.config.Mail = func(_ context.Context, _, to string, message []byte) error {
				if to != "tls@"+s.peer.domain {
					t.Errorf("a report to %s", to)
				}
				s.session()
				_, id, _ := strings.Cut(string(message), "Report-ID: <")
				w.mu.Lock()
				defer w.mu.Unlock()
				reports[id[:8]]++
				return nil
			}
		}
		for range 5 { // mail of people, on the first day only
			a.session()
			b.session()
		}
		go deliver.New(a.config).Run(ctx)
		go deliver.New(b.config).Run(ctx)
		time.Sleep(10 * 24 * time.Hour)
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(reports) != 1 || reports["20000101"] != 2 {
			t.Errorf("reports by day: %v; want one of each site about the first day", reports)
		}
		for _, s := range []*site{a, b} {
			if r := s.store.receiver("2000-01-02", s.peer.domain, ""); r.Kind != tlsrpt.Suppressed || r.Reason != "2 sessions, no more than our 1 report mails" {
				t.Errorf("%s, the day of the report mails: %+v", s.domain, r)
			}
			if days, _ := s.store.Days(); len(days) != 2 {
				t.Errorf("%s has sessions on %v", s.domain, days)
			}
		}
	})
}

func TestAClockThatJumpsADayEndsNoRetries(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var ahead time.Duration
		w.config.Now = func() time.Time { return time.Now().Add(ahead) }
		w.store.now = w.config.Now
		w.config.Window = 0
		w.add(yesterday, "example.test", 3, "mailto:tls@example.test")
		w.receive = func(context.Context, parcel) error { return errors.New("451 later") }
		w.run(15 * time.Minute)
		if n := len(w.parcels()); n != 1 {
			t.Fatalf("%d attempts", n)
		}
		ahead = 48 * time.Hour
		w.run(2 * time.Minute)
		w.want("example.test", tlsrpt.Planned, "mailto:tls@example.test")
		w.receive = nil
		w.run(time.Hour)
		w.want("example.test", tlsrpt.Accepted, "mailto:tls@example.test")
		if r := w.store.receiver(yesterday, "example.test", "mailto:tls@example.test"); len(w.parcels()) != 3 || tlsrpt.DayOf(r.Changed) != "2000-01-03" {
			t.Errorf("%d attempts, %+v", len(w.parcels()), r)
		}
	})
}

func TestAClockThatJumpsBackHoldsUpNoRetries(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ahead := 30 * time.Hour
		w.config.Now = func() time.Time { return time.Now().Add(ahead) }
		w.store.now = w.config.Now
		w.config.Window = 0
		w.add(yesterday, "example.test", 3, "mailto:tls@example.test")
		w.receive = func(context.Context, parcel) error { return errors.New("451 later") }
		w.run(5 * time.Minute)
		if n := len(w.parcels()); n != 1 {
			t.Fatalf("%d attempts", n)
		}
		ahead, w.receive = 0, nil
		w.run(5 * time.Minute)
		w.want("example.test", tlsrpt.Accepted, "mailto:tls@example.test")
	})
}

// Else who turns reports on after two weeks of collect = true would send a report of each day.
func TestOfDaysInWhichNobodyReportedOnlyTheLastOnesAreReportedUnlessTheAdministratorSendsThem(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.config.Window = 0
		day := func(ago int) tlsrpt.Day { return tlsrpt.DayOf(time.Now().AddDate(0, 0, -ago)) }
		for ago := 1; ago <= 6; ago++ {
			w.add(day(ago), "example.test", 3, "mailto:tls@example.test")
		}
		w.run(5 * time.Minute)
		if n := len(w.parcels()); n != 4 {
			t.Errorf("%d reports, want those of the last four days", n)
		}
		if err := deliver.New(w.config).Send(t.Context(), day(6), "", func(tlsrpt.Delivery) {}); err != nil || len(w.parcels()) != 5 {
			t.Errorf("%d reports, %v", len(w.parcels()), err)
		}
	})
}
