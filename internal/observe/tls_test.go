package observe_test

import (
	"errors"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/observe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/observe/observetest"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/collect"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/deliver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/reporting"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

var tags = regexp.MustCompile(`<[^>]*>`)

func TestThePageAboutTLSReportsShowsFailuresReportsAndWhatWasLeftOut(t *testing.T) {
	s := observetest.Sources()
	s.Stats = func() observe.Stats {
		return observe.Stats{Reports: reporting.Stats{
			On: true, Lost: 4,
			Collect: collect.Stats{RingSize: 1000, Dropped: map[string]uint64{"ring": 12, "json": 0}},
			Store:   store.Stats{LogSize: 234, Dropped: map[string]uint64{"late": 3}},
			Deliver: deliver.Stats{Reports: map[tlsrpt.StateKind]uint64{tlsrpt.Accepted: 1777, tlsrpt.Refused: 2}, Open: 9, Oldest: time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)},
		}}
	}
	s.TLS = func() (reporting.Overview, error) {
		return reporting.Overview{
			Days: []reporting.DayTotal{{Day: "2026-11-30", Total: store.Total{Domains: 2, Successful: 8000, Failed: 11}}},
			Worst: []reporting.Failing{{Domain: nasty, Sessions: 12, Failed: 11, Since: "2026-11-29", Last: "2026-11-30",
				Policies: []tlsrpt.PolicyType{tlsrpt.TypeSTS}, Results: []tlsrpt.ResultType{tlsrpt.CertificateExpired}}},
		}, nil
	}
	page := get(observe.New(s), "/tls").Body.String()
	shown := strings.Join(strings.Fields(tags.ReplaceAllString(page, " ")), " ")
	contains(t, shown, `\u{202e}b\x0ac\x1b[31m&amp;amp; 11 12 2026-11-29 2026-11-30 sts certificate-expired`, "2026-11-30 2 8,000 11",
		"1,234 bytes of them wait", "There are more than were counted here.", "accepted 1,777 refused 2", "9 are to be asked for or delivered; the oldest is of 2026-11-30",
		"ring 12 store: late 3 failed lookups, too many at once 4")
	contains(t, page, `<a href="/tls" aria-current="page">`)
	for _, never := range []string{"<script", "\u202e", "json"} {
		if strings.Contains(page, never) {
			t.Errorf("there is %q", never)
		}
	}
	if page := get(observe.New(observetest.Sources()), "/").Body.String(); strings.Contains(page, "/tls") {
		t.Error("the page is named although TLS reports are off")
	}
}

func TestThePageAboutTLSReportsReadsTheStoreOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads := 0
		s := observetest.Sources()
		s.TLS = func() (reporting.Overview, error) { reads++; return reporting.Overview{}, errors.New("on\npurpose") }
		o := observe.New(s)
		for range 10 {
			contains(t, get(o, "/tls").Body.String(), "on: purpose.")
		}
		time.Sleep(61 * time.Second)
		if get(o, "/tls"); reads != 2 {
			t.Errorf("the store was read %d times", reads)
		}
	})
}
