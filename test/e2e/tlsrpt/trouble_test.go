//go:build e2e

package tlsrpt

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// A pair is a domain without a policy and one with an enforced policy, whose mail does not
// need the daemon: the map's reply is in a table of Postfix.
type pair struct {
	*world
	plain, held *testlab.Domain
	healthy     [2]string // Postfix's log of a message to each, see logOf
	counted     uint64    // messages to each that must be in the reports
}

// outages are what can be wrong with the daemon's socket. Nothing collects sessions.
var outages = []struct {
	what  string
	begin func(t *testing.T, p *pair)
}{
	{"the daemon is dead", func(t *testing.T, p *pair) { p.daemon.Kill(t) }},
	{"the socket is missing", func(t *testing.T, p *pair) { p.remove(t) }},
	{"a plain file is in the socket's place", func(t *testing.T, p *pair) {
		if err := os.WriteFile(p.postfix.Root().Path(socket), nil, 0o666); err != nil {
			t.Fatal(err)
		}
	}},
	{"a stream socket is in the socket's place", func(t *testing.T, p *pair) {
		p.remove(t)
		l, err := net.Listen("unix", p.postfix.Root().Path(socket))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		if err := os.Chmod(p.postfix.Root().Path(socket), 0o666); err != nil {
			t.Fatal(err)
		}
	}},
}

// staysOutOfTheWay has things go wrong with the socket. All mail is delivered as before.
func staysOutOfTheWay(t *testing.T, w *world) {
	p := &pair{world: w,
		plain: w.domain(t, row{domain: "outage-plain.test", with: noPolicy}),
		held:  w.domain(t, row{domain: "outage-held.test"}),
	}
	reply := w.postfix.Postmap(t, p.held.Name, "socketmap:inet:"+stage.Endpoint+":postfix-tlsrpt")
	if !strings.HasPrefix(reply, "secure match="+p.held.Mail[0].Name+" ") {
		t.Fatalf("the map's reply is %q", reply)
	}
	w.postfix.Write(t, "/etc/postfix/held", p.held.Name+" "+reply+"\n")
	w.set(t, "smtp_tls_policy_maps = texthash:/etc/postfix/held")
	p.send(t, 0)
	p.counted++

	t.Run("the daemon is stopped", func(t *testing.T) {
		w.daemon.Pause(t)
		p.send(t, 0)
		w.daemon.Resume(t)
		p.counted++ // the kernel kept them
		p.check(t, "resumed.stopped.test")
	})
	t.Run("the daemon is stopped and the socket full", func(t *testing.T) {
		setQueueLength(t, 1)
		defer setQueueLength(t, queueLength)
		w.daemon.Kill(t)
		w.start(t)
		await(t, "the daemon warns of the short queue", func() bool { return strings.Contains(w.daemon.Log(), "net.unix.max_dgram_qlen=1") })
		w.daemon.Pause(t)
		p.send(t, 0) // the kernel keeps two
		p.send(t, 1)
		w.daemon.Resume(t)
		await(t, "the queue is empty again", func() bool { return w.metric(t, "tls_sessions_total") == 2 })
		p.counted++
		p.check(t, "resumed.full.test")
	})
	for _, o := range outages {
		t.Run(o.what, func(t *testing.T) {
			o.begin(t, p)
			p.send(t, 1)
		})
	}
	t.Run("a daemon that cannot make its socket answers lookups", func(t *testing.T) {
		if err := os.WriteFile(p.postfix.Root().Path(socket), nil, 0o666); err != nil {
			t.Fatal(err)
		}
		w.daemon.Start(t)
		if got := w.postfix.Postmap(t, p.held.Name, "socketmap:inet:"+stage.Endpoint+":postfix-tlsrpt"); got != reply {
			t.Errorf("the map's reply is %q, and was %q", got, reply)
		}
		await(t, "the daemon's log names the file", func() bool { return strings.Contains(w.daemon.Log(), "not a socket") })
		p.send(t, 1)
		w.daemon.Kill(t)
		p.remove(t)
	})
	w.start(t)
	p.send(t, 0)
	p.counted++
	p.check(t, "all-over.test")
}

func setQueueLength(t *testing.T, n int) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/unix/max_dgram_qlen", []byte(strconv.Itoa(n)), 0o644); err != nil {
		t.Fatal(err)
	}
}

// remove removes the socket.
func (p *pair) remove(t *testing.T) {
	t.Helper()
	if err := os.Remove(p.postfix.Root().Path(socket)); err != nil {
		t.Fatal(err)
	}
}

// send sends a message to each domain. Postfix's log must be that of healthy days, but for
// as many lines on a session that could not be reported.
func (p *pair) send(t *testing.T, unreported int) {
	t.Helper()
	for i, d := range []*testlab.Domain{p.plain, p.held} {
		o := p.postfix.Send(t, d.Name).Outcome(t)
		log, n := logOf(o)
		if p.healthy[i] == "" {
			p.healthy[i] = log
		}
		if verdict := []string{"Trusted", "Verified"}[i]; o.Status != "sent" || o.TLS != verdict || n != unreported || log != p.healthy[i] {
			t.Errorf("%s, %d unreported, want %d, %s, and the log\n%s:\n%s", o, n, unreported, verdict, p.healthy[i], o.Log)
		}
	}
}

var (
	changing = regexp.MustCompile(`(?m)^[0-9A-F]+:|message\d+|delays?=[\d./]+`)
	lostLine = regexp.MustCompile(`(?m)^.*` + lost + `.*\n`)
)

// logOf returns Postfix's lines on a delivery without what differs between two messages,
// and how many more say that a session could not be reported.
func logOf(o stage.Outcome) (log string, unreported int) {
	return changing.ReplaceAllString(lostLine.ReplaceAllString(o.Log, ""), "*"), len(lostLine.FindAllString(o.Log, -1))
}

// check compares the reports with the messages that must be counted.
func (p *pair) check(t *testing.T, last string) {
	t.Helper()
	p.flush(t, last)
	p.midnight(t)
	for _, c := range []struct {
		d    *testlab.Domain
		want []report.Result
	}{
		{p.plain, noPolicySucceeded(p.plain)},
		{p.held, stsSucceeded(p.held)},
	} {
		c.want[0].Summary.Successful = p.counted
		if got := p.report(t, c.d.Name); asText(got) != asText(c.want) {
			t.Errorf("the report of %s:\n%swant:\n%s", c.d.Name, asText(got), asText(c.want))
		}
	}
}

// The mail of survivesKills.
const (
	kills    = 3
	portion  = 150 // sessions, one at a time; there are two before each kill
	sessions = kills * 2 * portion
	after    = 40 // sessions from a batch to the kill

	// settled is the time from the end of a session to the moment from which the next
	// batch has it, on a busy machine.
	settled = 500 * time.Millisecond
)

// survivesKills kills the daemon with -9 during a burst of mail. What is in the report
// afterwards is never more than what was sent; a kill loses what came after the last
// batch, of which there is one each second.
func survivesKills(t *testing.T, w *world) {
	d := w.domain(t, row{domain: "burst.test", with: noPolicy})
	w.set(t, "smtp_tls_policy_maps =", "smtp_destination_recipient_limit = 1", "smtp_destination_concurrency_limit = 1")
	refused := w.unreported(t)
	var (
		arrived []time.Time // sessions
		written time.Time   // the last batch
		atRisk  int         // sessions after the last batch before a kill
	)
	look := func() {
		for len(arrived) < len(d.Mail[0].Messages()) {
			arrived = append(arrived, time.Now())
		}
		if at := lastBatch(t); at.After(written) {
			written = at
		}
	}
	for sent := 0; sent < sessions; {
		for range 2 {
			look()
			before := written
			w.postfix.SendMany(t, d.Name, portion)
			sent += portion
			await(t, "another batch is written", func() bool { look(); return written.After(before) })
		}
		n := min(len(arrived)+after, sent)
		await(t, "sessions arrive after the batch", func() bool { look(); return len(arrived) >= n })
		w.daemon.Kill(t)
		killed := time.Now()
		look()
		n = 0
		for _, at := range arrived {
			if at.After(written.Add(-settled)) {
				n++
			}
		}
		t.Logf("killed after %d sessions, %v after the last batch: %d sessions at risk", len(arrived), killed.Sub(written).Round(time.Millisecond), n)
		atRisk += n
		w.start(t)
	}
	await(t, "all sessions arrive", func() bool { look(); return len(arrived) == sessions })
	w.flush(t, "after-burst.test")
	refused = w.unreported(t) - refused
	w.midnight(t)
	policies := w.report(t, d.Name)
	if len(policies) != 1 {
		t.Fatalf("the report has %d policies:\n%s", len(policies), asText(policies))
	}
	counted := int(policies[0].Summary.Successful)
	t.Logf("%d sessions: %d counted, %d while the daemon was dead, %d lost by %d kills, %d at risk",
		sessions, counted, refused, sessions-refused-counted, kills, atRisk)
	if missing := sessions - refused - counted; missing < 0 || missing > atRisk || policies[0].Summary.Failed != 0 {
		t.Errorf("%d sessions are missing in the report, at most %d may be:\n%s", missing, atRisk, asText(policies))
	}
}

// lastBatch returns when the last of the batches that are not merged was written.
func lastBatch(t *testing.T) (written time.Time) {
	t.Helper()
	files, err := filepath.Glob(stage.Path(reports + "/reports.db.log-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err == nil && info.Size() > 0 && info.ModTime().After(written) {
			written = info.ModTime()
		}
	}
	return written
}

// unreported returns how many sessions Postfix could not report.
func (w *world) unreported(t *testing.T) (n int) {
	t.Helper()
	for _, line := range w.postfix.Log(t) {
		if strings.Contains(line, lost) {
			n++
		}
	}
	return n
}
