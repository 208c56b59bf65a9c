package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// scrape returns the metrics served at an address.
func scrape(ctx context.Context, t *testing.T, network, addr string) string {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v\n%s", addr, res.Status, err, text)
	}
	return string(text)
}

// counted are metrics after the lookups of ask.
var counted = []string{
	`sts_tlsmap_lookups_total{map="postfix",result="ok"} 2`,
	`sts_tlsmap_lookups_total{map="postfix",result="notfound"} 1`,
	`sts_tlsmap_lookup_duration_seconds_count{map="postfix"} 3`,
	`sts_tlsmap_attempts_total{result="ok",step="discovery"} 1`,
	`sts_tlsmap_attempts_total{result="no-record",step="discovery"} 1`,
	`sts_tlsmap_attempt_duration_seconds_count{step="discovery"} 2`,
	`sts_tlsmap_policy_changes_total{mode="enforce",step="discovery"} 1`,
	`sts_tlsmap_policies{mode="enforce"} 1`,
	`sts_tlsmap_requests_total 3`,
	`sts_tlsmap_trouble{condition="discovery"} 0`,
}

func ask(ctx context.Context, t *testing.T, e endpoint.Endpoint) {
	t.Helper()
	for _, key := range []string{"one.test", "one.test", "none.test"} {
		if _, err := socketmap.Query(ctx, e, "postfix", key); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMetricsAreServedOnTheControlSocketAndWhereTheyAreConfigured(t *testing.T) {
	lab := testlab.New(t)
	lab.Domain("one.test", testlab.With{})
	dir, file := writeConfig(t, lab, testlab.DaemonConfig{Top: `metrics = "inet:127.0.0.1:0"`})
	p := startProgram(t, dir, []string{"HTTPS_PROXY=" + lab.Proxy.URL()}, "-config", file)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ask(ctx, t, p.endpoint(ctx, t, dir))
	h, err := control.NewClient(filepath.Join(dir, "control.sock")).Health(ctx)
	if err != nil || len(h.Troubles) > 0 {
		t.Fatalf("%+v, %v", h, err)
	}
	e, err := endpoint.Parse(h.Metrics)
	if err != nil {
		t.Fatal(err)
	}
	for network, addr := range map[string]string{"unix": filepath.Join(dir, "control.sock"), "tcp": e.Address} {
		got := scrape(ctx, t, network, addr)
		for _, want := range counted {
			if !strings.Contains(got, "\n"+want+"\n") {
				t.Errorf("%s: missing %s", network, want)
			}
		}
		_, started, _ := strings.Cut(got, "\nsts_tlsmap_start_time_seconds ")
		started, _, _ = strings.Cut(started, "\n")
		if at, err := strconv.ParseFloat(started, 64); err != nil || time.Since(time.UnixMilli(int64(at*1000))).Abs() > patience {
			t.Errorf("%s: it started at %q", network, started)
		}
		if strings.Contains(got, "one.test") {
			t.Errorf("%s: a domain is in the metrics", network)
		}
		if t.Failed() {
			t.Log(got)
		}
	}
	// A web site whose name leads to 127.0.0.1 reads nothing through a browser here.
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+e.Address+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "evil.com"
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if text, err := io.ReadAll(res.Body); err != nil || res.StatusCode != http.StatusForbidden || strings.Contains(string(text), "sts_tlsmap") {
		t.Errorf("asked as evil.com: %s, %v\n%s", res.Status, err, text)
	}
	p.stop(t)
}

func TestAMetricsSocketThatSystemdPassesIsServed(t *testing.T) {
	lab := testlab.New(t)
	// The daemon could not listen there: this machine does not have the address.
	dir, file := writeConfig(t, lab, testlab.DaemonConfig{Top: `metrics = "inet:192.0.2.1:9461"`})
	inet, lookups := listenTCP(t), listenTCP(t)
	p := startProgram(t, dir, []string{"LISTEN_FDS=2", "LISTEN_FDNAMES=metrics:socketmap"}, "-config", file, inet.file, lookups.file)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if got := scrape(ctx, t, "tcp", inet.addr); !strings.Contains(got, "sts_tlsmap_build_info{") {
		t.Errorf("%s", got)
	}
	p.stop(t)
}
