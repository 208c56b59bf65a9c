package observe_test

import (
	"errors"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/observe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/observe/observetest"
)

func scrape(t *testing.T, m *observe.Metrics, s observe.Sources) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler(s).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func TestTheNumbersOfTheSourcesAreServed(t *testing.T) {
	w := httptest.NewRecorder()
	observetest.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	got := "\n" + w.Body.String()
	for _, want := range []string{
		`sts_tlsmap_lookups_total{map="postfix",result="ok"} 5`,
		`sts_tlsmap_lookups_total{map="postfix",result="rehearsed-temp"} 0`,
		`sts_tlsmap_lookup_duration_seconds_bucket{map="postfix",le="0.001"} 11`,
		`sts_tlsmap_lookup_duration_seconds_bucket{map="postfix",le="60"} 11`,
		`sts_tlsmap_lookup_duration_seconds_bucket{map="postfix",le="+Inf"} 13`,
		`sts_tlsmap_lookup_duration_seconds_count{map="postfix"} 13`,
		`sts_tlsmap_lookup_duration_seconds_sum{map="postfix"} 240`,
		`sts_tlsmap_policies{mode="unreadable"} 1`,
		`sts_tlsmap_policies{mode="none"} 2`,
		`sts_tlsmap_policies{mode="enforce"} 4`,
		`sts_tlsmap_policy_sample 3`,
		`sts_tlsmap_trouble{condition="clock"} 1`,
		`sts_tlsmap_trouble{condition="writes"} 0`,
		`sts_tlsmap_cache_lost_policies 9`,
		`sts_tlsmap_resolver_verdict{verdict="no-ad"} 1`,
		`sts_tlsmap_resolver_verdict{verdict="validates"} 0`,
		`sts_tlsmap_dane_findings_total{state="usable"} 6`,
		`sts_tlsmap_attempts_total{result="sts-webpki-invalid",step="fetch"} 1`,
		`sts_tlsmap_attempt_duration_seconds_bucket{step="discovery",le="1"} 1`,
		`sts_tlsmap_policy_changes_total{mode="enforce",step="discovery"} 1`,
		`sts_tlsmap_panics_total{in="lookup"} 4`,
	} {
		if !strings.Contains(got, "\n"+want+"\n") {
			t.Errorf("missing: %s", want)
		}
	}
	if t.Failed() {
		t.Log(got)
	}
}

func TestTheAgesAreThoseOfTheSample(t *testing.T) {
	w := httptest.NewRecorder()
	observetest.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{ // and some milliseconds more, or less
		`age_seconds\{rank="least"\} 360\d`, `age_seconds\{rank="median"\} 720\d`, `age_seconds\{rank="most"\} 1080\d`,
		`left_seconds\{rank="least"\} -360\d`, `left_seconds\{rank="median"\} 359\d`, `left_seconds\{rank="most"\} 1799\d`,
	} {
		if !regexp.MustCompile(want).MatchString(w.Body.String()) {
			t.Errorf("missing: %s", want)
		}
	}
}

func TestTheMetricsAreAsPrometheusAsksForThem(t *testing.T) {
	w := httptest.NewRecorder()
	observetest.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	problems, err := promlint.New(w.Body).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestEveryMetricSaysWhatItIs(t *testing.T) {
	w := httptest.NewRecorder()
	observetest.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	text := w.Body.String()
	if h, n := strings.Count(text, "# HELP "), strings.Count(text, "# TYPE "); h != n || h == 0 {
		t.Errorf("%d metrics, %d with words", n, h)
	}
}

func TestACacheThatCannotBeReadCostsTheAgesOnly(t *testing.T) {
	s := observetest.Sources()
	s.List = func(string, int) ([]cache.Record, string, error) { return nil, "", errors.New("on purpose") }
	got := scrape(t, observe.New(), s)
	if !strings.Contains(got, "sts_tlsmap_policy_sample 0\n") || strings.Contains(got, "sts_tlsmap_policy_age_seconds{") {
		t.Errorf("%s", got)
	}
}

func TestScrapesShareASample(t *testing.T) {
	s := observetest.Sources()
	list, n := s.List, 0
	s.List = func(after string, limit int) ([]cache.Record, string, error) { n++; return list(after, limit) }
	h := observe.New().Handler(s)
	for range 10 {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/metrics", nil))
	}
	if n != 2 { // in the middle, and from the beginning since that was short
		t.Errorf("the cache was read %d times", n)
	}
}

func TestHowManyPoliciesAFileLostThatCouldNotBeOpenedIsNotKnown(t *testing.T) {
	sources := observetest.Sources()
	sources.Cache = func() cache.Stats { return cache.Stats{Salvage: &cache.Report{Unopened: true}} }
	w := httptest.NewRecorder()
	observe.New().Handler(sources).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if want := "\nsts_tlsmap_cache_lost_policies NaN\n"; !strings.Contains(w.Body.String(), want) {
		t.Errorf("missing: %s", want)
	}
}
