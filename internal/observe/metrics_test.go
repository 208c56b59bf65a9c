package observe_test

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/observe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/observe/observetest"
)

func TestTheNumbersOfTheSourcesAreServed(t *testing.T) {
	got := get(observetest.New(), "/metrics").Body.String()
	for _, want := range []string{
		`lookups_total{map="postfix",result="ok"} 5`,
		`lookups_total{map="postfix",result="rehearsed-temp"} 0`,
		`lookup_duration_seconds_bucket{map="postfix",le="0.001"} 11`,
		`lookup_duration_seconds_bucket{map="postfix",le="60"} 11`,
		`lookup_duration_seconds_bucket{map="postfix",le="+Inf"} 13`,
		`lookup_duration_seconds_sum{map="postfix"} 240`,
		`policies{mode="unreadable"} 1`,
		`policies{mode="none"} 2`,
		`policies{mode="enforce"} 4`,
		`trouble{condition="clock"} 1`,
		`trouble{condition="writes"} 0`,
		`cache_damaged_values_total 8`,
		`resolver_verdict{verdict="no-ad"} 1`,
		`resolver_verdict{verdict="validates"} 0`,
		`dane_findings_total{state="usable"} 6`,
		`attempts_total{result="sts-webpki-invalid",step="fetch"} 1`,
		`attempt_duration_seconds_bucket{step="discovery",le="1"} 1`,
		`policy_changes_total{mode="enforce",step="discovery"} 1`,
		`panics_total{in="lookup"} 4`,
	} {
		contains(t, got, "\n"+observe.Prefix+want+"\n")
	}
	if h, n := strings.Count(got, "# HELP "), strings.Count(got, "# TYPE "); h != n || h == 0 {
		t.Errorf("%d metrics, %d with words", n, h)
	}
	problems, err := promlint.New(strings.NewReader(got)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}

func TestLossesOfAFileThatCannotBeOpenedAreUnknown(t *testing.T) {
	for want, r := range map[string]*cache.Report{"0": nil, "9": {Lost: 9}, "NaN": {Lost: -1}} {
		s := observetest.Sources()
		s.Stats = func() observe.Stats { return observe.Stats{Cache: cache.Stats{Salvage: r}} }
		contains(t, get(observe.New(s), "/metrics").Body.String(), "\nsts_tlsmap_cache_lost_policies "+want+"\n")
	}
}
