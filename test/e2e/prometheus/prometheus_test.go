//go:build e2e

package prometheus

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

func TestPromtoolAcceptsTheRulesAndTheirTestsPass(t *testing.T) {
	for _, args := range [][]string{{"check", "rules", rules}, {"test", "rules", rulesTest}} {
		if out, err := exec.Command("promtool", args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// ask looks up a domain of each kind.
func ask(t *testing.T) {
	t.Helper()
	for _, mapName := range []string{"postfix", "postfix-dane"} {
		for _, domain := range []string{"enforced.test", "broken.test", "none.test"} {
			e := endpoint.Endpoint{Network: "tcp", Address: stage.Endpoint}
			if _, err := socketmap.Query(t.Context(), e, mapName, domain); err != nil {
				t.Fatal(err)
			}
		}
	}
	conn, err := net.Dial("unixgram", stage.Path("tlsrpt.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, datagram := range []string{
		`{"d":"enforced.test","policies":[{"policy-type":9,"t":0,"f":0}]}`, `{"d":"enforced.test","policies":[{"policy-type":9,"t":1,"f":1}]}`, `{`,
	} {
		if _, err := conn.Write([]byte(datagram)); err != nil {
			t.Fatal(err)
		}
	}
}

// A panel has the tested parts of a dashboard panel.
type panel struct {
	Title   string
	Targets []struct{ Expr string }
}

func panels(t *testing.T) []panel {
	t.Helper()
	text, err := os.ReadFile(dashboard)
	if err != nil {
		t.Fatal(err)
	}
	var d struct{ Panels []panel }
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	return d.Panels
}

// interpolated sets Grafana's variables: $instance to "All", $__rate_interval
// to a few scrapes.
var interpolated = strings.NewReplacer("$__rate_interval", "10s", "$instance", ".*", "$job", "sts-tlsmap")

func TestEveryPanelOfTheDashboardShowsDataOfTheRealDaemon(t *testing.T) {
	lab := stage.NewLab(t)
	lab.Domain("enforced.test", testlab.With{})
	lab.Domain("broken.test", testlab.With{PolicyCert: testlab.CertExpired})
	d := stage.StartDaemon(t, config(t, lab))
	startPrometheus(t)
	var exprs []string
	for _, p := range panels(t) {
		for _, target := range p.Targets {
			exprs = append(exprs, interpolated.Replace(target.Expr))
		}
	}
	if len(exprs) < 40 {
		t.Fatalf("%d expressions", len(exprs))
	}
	// A rate needs events between two scrapes: repeat until all panels show
	// data.
	left := exprs
	await(t, "every panel shows data", func() bool {
		ask(t)
		d.Run(t, "-refresh", "enforced.test")
		var still []string
		for _, expr := range left {
			if !shows(query(t, expr)) {
				still = append(still, expr)
			}
		}
		left = still
		return len(left) == 0
	})
	for _, expr := range left {
		t.Errorf("no data: %s", expr)
	}
	if n := query(t, `count({__name__=~"sts_tlsmap_.*"})`); len(n) == 1 {
		t.Logf("%v series of ours, %d expressions", n[0].Value[1], len(exprs))
	}
}

// shows reports whether there is data to draw.
func shows(samples []sample) bool {
	for _, s := range samples {
		if s.Value[1] != "NaN" {
			return true
		}
	}
	return false
}

func TestPromtoolAcceptsTheMetrics(t *testing.T) {
	lab := stage.NewLab(t)
	lab.Domain("enforced.test", testlab.With{})
	stage.StartDaemon(t, config(t, lab))
	ask(t)
	res, err := http.Get("http://" + metricsAddr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	c := exec.Command("promtool", "check", "metrics")
	c.Stdin = io.LimitReader(res.Body, 1<<20)
	if out, err := c.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
}
