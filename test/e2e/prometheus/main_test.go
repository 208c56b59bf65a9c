//go:build e2e

// Package prometheus has a real Prometheus scrape the real daemon: every panel
// of the dashboard shows data, the alert rules load, pass their own tests and
// fire, and promtool accepts the metrics.
//
// Left out: Grafana, which Debian does not have. The tests evaluate its panels'
// expressions in Prometheus.
package prometheus

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

func TestMain(m *testing.M) { stage.Main(m) }

const (
	metricsAddr = "127.0.0.1:9461"
	promAddr    = "127.0.0.1:9090"
	rules       = "../../../packaging/prometheus/sts-tlsmap.rules.yaml"
	rulesTest   = "../../../packaging/prometheus/sts-tlsmap.rules.test.yaml"
	dashboard   = "../../../packaging/grafana/sts-tlsmap.json"

	// patience limits the start of Prometheus, scrapes and evaluations.
	patience = time.Minute
)

// config returns the daemon's configuration with a listener for metrics.
func config(t *testing.T, lab *testlab.T) testlab.DaemonConfig {
	t.Helper()
	return testlab.DaemonConfig{
		CA: stage.WriteCA(t, lab), Top: fmt.Sprintf("metrics = %q", "inet:"+metricsAddr),
		Tables: fmt.Sprintf("[tlsrpt]\ncollect = true\npath = %q\npostfix_socket = %q\n", stage.Path("reports.db"), "unix:"+stage.Path("tlsrpt.sock")),
	}
}

// startPrometheus starts a Prometheus that scrapes the daemon once a second,
// with the packaged rules.
func startPrometheus(t *testing.T) {
	t.Helper()
	path, err := filepath.Abs(rules)
	if err != nil {
		t.Fatal(err)
	}
	file := stage.Path("prometheus.yml")
	text := fmt.Sprintf(`global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [%q]
scrape_configs:
  - job_name: sts-tlsmap
    static_configs: [{targets: [%q]}]
`, path, metricsAddr)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	data := stage.Path("prometheus")
	if err := os.RemoveAll(data); err != nil { // of an earlier test
		t.Fatal(err)
	}
	var log bytes.Buffer
	c := exec.Command("prometheus", "--config.file="+file, "--storage.tsdb.path="+data, "--web.listen-address="+promAddr)
	c.Stdout, c.Stderr = &log, &log
	if err := c.Start(); err != nil {
		t.Fatalf("starting prometheus: %v; test/e2e/setup installs it", err)
	}
	t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
		if t.Failed() {
			t.Logf("prometheus:\n%s", &log)
		}
	})
	await(t, "Prometheus is ready", func() bool {
		res, err := http.Get("http://" + promAddr + "/-/ready")
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
}

func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := stage.Await(ctx, cond); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// A sample is one series of a query's result: labels and present value.
type sample struct {
	Metric map[string]string `json:"metric"`
	Value  [2]any            `json:"value"`
}

// query evaluates an expression.
func query(t *testing.T, expr string) []sample {
	t.Helper()
	res, err := http.Get("http://" + promAddr + "/api/v1/query?query=" + url.QueryEscape(expr))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Status, Error string
		Data          struct{ Result []sample }
	}
	if err := json.Unmarshal(text, &answer); err != nil || answer.Status != "success" {
		t.Fatalf("%s: %v\n%s", expr, err, text)
	}
	return answer.Data.Result
}
