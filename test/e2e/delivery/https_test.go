//go:build e2e

package delivery

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/reporting"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

const (
	hook     = "hook.test"
	hookAddr = "5.5.5.1" // a public address
)

//go:embed serve.py
var server string

// A webReceiver is serve.py. Its certificate is of an authority that the daemon does not
// know.
type webReceiver struct{ log, ready string }

// A post is a line of its log.
type post struct {
	Method, Path, Type, Agent, ID, Start string
	Schema                               []string
}

func startWebReceiver(t *testing.T, lab *testlab.T) *webReceiver {
	t.Helper()
	stage.AddNetwork(t, "5.5.5.0/24")
	lab.Set(hook+". 300 IN A "+hookAddr, "inside.test. 300 IN A 127.0.0.1")
	h := &webReceiver{log: stage.Path("posts"), ready: stage.Path("ready")}
	pair := stage.Path("hook.pem")
	if err := os.WriteFile(pair, pairFor(t, lab, testlab.CertOtherCA, hook, "inside.test"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("/usr/bin/python3", "-c", server, pair, h.log, schemaFile, h.ready)
	var said bytes.Buffer
	c.Stderr = &said
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Kill()
		if c.Wait(); t.Failed() {
			t.Logf("the web server:\n%s", said.String())
		}
	})
	(&world{}).await(t, func() bool {
		conn, err := net.Dial("tcp", hookAddr+":443")
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return h
}

// posts returns the requests so far.
func (h *webReceiver) posts(t *testing.T) (posts []post) {
	t.Helper()
	text, err := os.ReadFile(h.log)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var p post
		if err := json.Unmarshal([]byte(line), &p); err != nil {
			t.Fatal(err)
		}
		posts = append(posts, p)
	}
	return posts
}

// paths returns the sorted paths of all requests.
func (h *webReceiver) paths(t *testing.T) (paths []string) {
	t.Helper()
	for _, p := range h.posts(t) {
		paths = append(paths, p.Path)
	}
	slices.Sort(paths)
	return paths
}

// newPublicWorld is newWorld with a daemon that sends nothing to private addresses.
func newPublicWorld(t *testing.T, lab *testlab.T, ahead time.Duration, settings ...string) *world {
	t.Helper()
	w := newWorld(t, lab, "", ahead, settings...)
	w.edit(t, "allow_private = true", "allow_private = false")
	return w
}

func TestReportsArePostedToAWebServer(t *testing.T) {
	lab := newLab(t)
	h := startWebReceiver(t, lab)
	w := newPublicWorld(t, lab, on(2))
	w.daemon.Start(t)
	domains := map[string]string{ // -> path
		"fine.test": "/fine?a=b", "later.test": "/later", "moved.test": "/moved", "no.test": "/no",
	}
	for domain, path := range domains {
		asks(lab, domain, "https://"+hook+path)
		w.feed(t, domain, false)
	}
	asks(lab, "private.test", "https://inside.test/private")
	w.feed(t, "private.test", true)
	w.night(t, on(1))

	want := map[string]string{
		"fine.test": "accepted ", "later.test": "planned HTTP status 503", "moved.test": "planned HTTP status 302", "no.test": "refused HTTP status 404",
		"private.test": "planned ",
	}
	for domain, state := range want {
		got := w.deliveries(t, domain)
		if len(got) != 1 || !strings.HasPrefix(string(got[0].State)+" "+got[0].Reason, state) {
			t.Errorf("%s: %+v; want %s", domain, got, state)
		}
	}
	if got := h.paths(t); !slices.Equal(got, []string{"/fine?a=b", "/later", "/moved", "/no"}) {
		t.Errorf("the server was asked for %q", got)
	}
	for _, p := range h.posts(t) {
		if p.Method != "POST" || p.Type != "application/tlsrpt+gzip" || !strings.HasPrefix(p.Agent, "sts-tlsmap/") || len(p.Schema) > 0 ||
			p.Start != string(dayOf(on(2)))+"T00:00:00Z" {
			t.Errorf("the server got %+v", p)
		}
	}
	later := w.deliveries(t, "later.test")[0]
	if wait := later.Next.Sub(later.Changed); wait.Round(time.Minute) != 30*time.Minute {
		t.Errorf("Retry-After: 1800 is a pause of %v", wait)
	}
	w.restart(t, on(1)+time.Hour, func() bool { return w.accepted(t, "later.test", 1) })
	if posts := h.posts(t); posts[len(posts)-1].ID == "" || !slices.ContainsFunc(posts[:4], func(p post) bool { return p.ID == posts[len(posts)-1].ID }) {
		t.Errorf("the second attempt has another report id: %+v", posts)
	}
	if got := h.paths(t); slices.Contains(got, "/elsewhere") || slices.Contains(got, "/private") {
		t.Errorf("the server was asked for %q", got)
	}

	// https_verify refuses the certificate.
	asks(lab, "verified.test", "https://"+hook+"/verified")
	w.feed(t, "verified.test", true)
	w.edit(t, "[tlsrpt]", "[tlsrpt]\nhttps_verify = true")
	w.night(t, on(0))
	if got := w.deliveries(t, "verified.test")[0]; got.State != tlsrpt.Planned || !strings.Contains(got.Reason, "certificate") || slices.Contains(h.paths(t), "/verified") {
		t.Errorf("with https_verify: %+v", got)
	}
}

func TestReportsGoOutOnceHoweverTheDaemonEnds(t *testing.T) {
	lab := newLab(t)
	h := startWebReceiver(t, lab)
	// Sessions before and after midnight; then the daemon is off for two days.
	midnight := on(2) - time.Hour
	w := newPublicWorld(t, lab, midnight-5*time.Minute)
	w.daemon.Start(t)
	asks(lab, "both.test", "https://"+hook+"/both")
	asks(lab, "slow.test", "https://"+hook+"/slow")
	w.feed(t, "both.test", true)
	w.set(t, midnight+5*time.Minute)
	w.feed(t, "both.test", false)
	w.feed(t, "slow.test", true)
	w.daemon.Stop(t)

	w.restart(t, on(0), func() bool {
		return w.every(t, on(0), func(d []reporting.Delivery) bool { return len(d) > 0 })
	})
	w.restart(t, on(0)+5*time.Minute, func() bool { return len(h.posts(t)) == 3 && w.accepted(t, "both.test", 2) })
	w.daemon.Kill(t) // during the POST to /slow
	var days []string
	for _, p := range h.posts(t) {
		if p.Path == "/both" {
			days = append(days, p.Start[:len("2006-01-02")])
		}
	}
	if slices.Sort(days); !slices.Equal(days, []string{string(dayOf(on(3))), string(dayOf(on(2)))}) {
		t.Errorf("reports of %q", days)
	}

	if err := os.WriteFile(h.ready, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w.restart(t, on(0)+time.Hour, func() bool { return w.accepted(t, "slow.test", 1) })
	if out, code := w.daemon.Run(t, "-report", "-send", "-day", string(dayOf(on(2)))); code != 0 || !strings.Contains(out, "not sent again: 2 reports") {
		t.Errorf("-report -send: exit %d, %s", code, out)
	}
	if got := h.paths(t); !slices.Equal(got, []string{"/both", "/both", "/slow", "/slow"}) {
		t.Errorf("the server was asked for %q", got)
	}
	ids := map[string]bool{}
	for _, p := range h.posts(t) {
		ids[p.ID] = true
	}
	if len(ids) != 3 {
		t.Errorf("report ids: %v", ids)
	}
}
