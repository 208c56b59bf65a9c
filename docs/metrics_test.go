package docs

import (
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/observe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/observe/observetest"
)

func TestEveryMetricIsOnThePageWithItsTypeAndLabels(t *testing.T) {
	m := httptest.NewRecorder()
	observetest.New().ServeHTTP(m, httptest.NewRequest("GET", "/metrics", nil))
	text := m.Body.String()
	series := regexp.MustCompile(`(?m)^(` + observe.Prefix + `[a-z_]+?)(?:_bucket|_sum|_count)?(?:\{(.*)\})? `)
	label := regexp.MustCompile(`([a-z]+)="`)
	labels := map[string][]string{}
	for _, s := range series.FindAllStringSubmatch(text, -1) {
		for _, l := range label.FindAllStringSubmatch(s[2], -1) {
			if l[1] != "le" && !slices.Contains(labels[s[1]], "`"+l[1]+"`") {
				labels[s[1]] = append(labels[s[1]], "`"+l[1]+"`")
			}
		}
	}
	served := map[string]string{}
	for _, l := range regexp.MustCompile(`(?m)^# TYPE (`+observe.Prefix+`\S+) (\S+)$`).FindAllStringSubmatch(text, -1) {
		slices.Sort(labels[l[1]])
		served[l[1]] = l[2] + "|" + strings.Join(labels[l[1]], ", ")
	}
	if len(served) < 40 {
		t.Fatalf("%d metrics are served:\n%s", len(served), text)
	}
	page := map[string]string{}
	conditions := []string{}
	names, severities := observe.Conditions()
	for _, r := range rows(t, "metrics.md") {
		name := strings.Trim(r.cells[0], "`")
		if r.section == "What is wrong" {
			conditions = append(conditions, name)
			if r.cells[1] != severities[name] {
				t.Errorf("%s: the page says %q, the program %q", name, r.cells[1], severities[name])
			}
			continue
		}
		ls := strings.Split(r.cells[2], ", ")
		slices.Sort(ls)
		page[name] = r.cells[1] + "|" + strings.Join(ls, ", ")
	}
	for _, name := range sorted(served) {
		if served[name] != page[name] {
			t.Errorf("%s: the page says %q, the program %q", name, page[name], served[name])
		}
	}
	for _, name := range sorted(page) {
		if served[name] == "" {
			t.Errorf("%s is on the page and not served", name)
		}
	}
	if !slices.Equal(conditions, names) {
		t.Errorf("the page has the conditions %q, the program %q", conditions, names)
	}
}

// packaged returns a file of packaging/.
func packaged(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "packaging", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestEveryConditionHasOneAlertRuleAndATestOfIt(t *testing.T) {
	rules, tests := packaged(t, "prometheus/sts-tlsmap.rules.yaml"), packaged(t, "prometheus/sts-tlsmap.rules.test.yaml")
	conditions, severities := observe.Conditions()
	for _, c := range conditions {
		rule := regexp.MustCompile(`expr: sts_tlsmap_trouble\{condition="` + c + `"\} == 1\n(?: +for: .*\n)? +labels: \{severity: ` + severities[c] + `\}`)
		if n := len(rule.FindAllString(rules, -1)); n != 1 {
			t.Errorf("%s: %d rules of severity %s", c, n, severities[c])
		}
		if !strings.Contains(tests, `condition="`+c+`"}`) {
			t.Errorf("%s: its rule has no test", c)
		}
	}
	for _, alert := range regexp.MustCompile(`alert: (\S+)`).FindAllStringSubmatch(rules, -1) {
		if !strings.Contains(tests, `alertname="`+alert[1]+`"`) {
			t.Errorf("%s has no test", alert[1])
		}
	}
}

func TestTheRulesAndTheDashboardUseMetricsThatThereAre(t *testing.T) {
	listed := map[string]bool{}
	for _, r := range rows(t, "metrics.md") {
		listed[strings.Trim(r.cells[0], "`")] = true
	}
	used := regexp.MustCompile(observe.Prefix + `[a-z_]+`)
	for _, name := range []string{"prometheus/sts-tlsmap.rules.yaml", "grafana/sts-tlsmap.json"} {
		for _, m := range used.FindAllString(packaged(t, name), -1) {
			if !listed[m] && !listed[strings.TrimSuffix(strings.TrimSuffix(m, "_bucket"), "_count")] {
				t.Errorf("%s: there is no %s", name, m)
			}
		}
	}
}
