package observe_test

import (
	"errors"
	"regexp"
	"strings"
	"testing"
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

// days is what an overview of no sessions says of days.
func days() (o reporting.Overview) {
	o.At = time.Date(2026, 12, 1, 9, 0, 0, 0, time.UTC)
	for i := range o.Days {
		o.Days[i] = tlsrpt.DayOf(o.At.AddDate(0, 0, -i))
	}
	o.Complete = true
	return o
}

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
		o := days()
		o.ByDay[0], o.ByDay[1] = reporting.Sessions{All: 80}, reporting.Sessions{All: 8011, Failed: [3]uint64{10, 0, 1}}
		f := reporting.Failing{Domain: nasty, Sessions: reporting.Sessions{All: 12, Failed: [3]uint64{10, 0, 1}}, Since: "2026-11-29", Last: "2026-11-30",
			New: true, Results: []tlsrpt.ResultType{tlsrpt.CertificateExpired}}
		f.ByDay[1] = f.Sessions
		for range 1000 {
			o.Worst = append(o.Worst, f)
		}
		o.Failed, o.Complete = 10_000, false
		return o, nil
	}
	page := get(observe.New(s), "/tls").Body.String()
	shown := strings.Join(strings.Fields(tags.ReplaceAllString(page, " ")), " ")
	contains(t, shown, "20 10 0 2026-11-18: nothing is known", "2026-11-30: 11 of 8,011 sessions failed 2026-12-01: 0 of 80 sessions failed 18 Nov 19 20",
		`\u{202e}b\x0ac\x1b[31m&amp;amp; enforced, none 11 12 2026-11-18: nothing is known`, "2026-11-30: 11 of 12 sessions failed",
		"2026-11-29 (new) 2026-11-30 certificate-expired", "The first 50 of 10,000.", "There are more destinations than were read.",
		"2026-12-01 80 0 2026-11-30 8,011 11 2026-11-29 none known",
		"1,234 bytes of them wait", "accepted 1,777 refused 2", "9 are to be asked for or delivered; the oldest is of 2026-11-30",
		"ring 12 store: late 3 failed lookups, too many at once 4")
	contains(t, page, `<a href="/tls" aria-current="page">`, `<rect class="well" x="92.86%" y="97%" width="6%" height="3%"/>`, `<rect class="unknown" x="0.00%" width="6%" height="100%"/>`,
		`<rect class="harm0" x="85.71%" y="50.00%" width="6%" height="50.00%"/><rect class="harm2" x="85.71%" y="45.00%" width="6%" height="5.00%"/>`, // of the 20 at the top
		`<rect class="harm0" x="85.71%" y="16.67%" width="6%" height="83.33%"/><rect class="harm2" x="85.71%" y="8.33%" width="6%" height="8.33%"/>`)  // of the day's 12
	for _, never := range []string{"<script", "\u202e", "json", "style="} {
		if strings.Contains(page, never) {
			t.Errorf("there is %q", never)
		}
	}
	if n := strings.Count(page, `class="strip"`); n != 50 {
		t.Errorf("%d destinations are shown", n)
	}
	if page := get(observe.New(observetest.Sources()), "/").Body.String(); strings.Contains(page, "/tls") {
		t.Error("the page is named although TLS reports are off")
	}
}

func TestThePageAboutTLSReportsIsWholeWithoutSessionsAndWithoutAStore(t *testing.T) {
	s := observetest.Sources()
	s.TLS = func() (reporting.Overview, error) { return days(), nil }
	page := get(observe.New(s), "/tls").Body.String()
	contains(t, page, "No session has failed.", "<span>10</span><span>5</span><span>0</span>", "none known")
	if n := strings.Count(page, `class="unknown"`); n != 14 || strings.Contains(page, "NaN") || strings.Contains(page, "There are more") {
		t.Errorf("%d days are unknown: %s", n, page)
	}
	s.TLS = func() (reporting.Overview, error) { return reporting.Overview{}, errors.New("off\non purpose") }
	page = get(observe.New(s), "/tls").Body.String()
	contains(t, page, "off: on purpose.")
	if strings.Contains(page, "<svg") || strings.Contains(page, "Reports since the start") {
		t.Errorf("it shows what is not known: %s", page)
	}
}

func TestTheScaleOfTheChartIsARoundNumberAboveAllDays(t *testing.T) {
	s := observetest.Sources()
	for failed, want := range map[uint64]string{0: "10", 10: "10", 11: "20", 21: "50", 51: "100", 101: "200", 999_999: "1,000,000", 1_000_001: "2,000,000"} {
		s.TLS = func() (reporting.Overview, error) {
			o := days()
			o.ByDay[3] = reporting.Sessions{All: failed, Failed: [3]uint64{0, failed, 0}}
			return o, nil
		}
		contains(t, get(observe.New(s), "/tls").Body.String(), `<div class="axis"><span>`+want+`</span>`)
	}
}
