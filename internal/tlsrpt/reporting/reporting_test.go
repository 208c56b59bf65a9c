package reporting_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/collect"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/reporting"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

const patience = 30 * time.Second

// datagram is what Postfix 3.10 sends after a session under an enforced policy.
const datagram = `{"d":"GOOD.test","pr":"v=TLSRPTv1;rua=mailto:tls@good.test","policies":[{"policy-type":2,"policy-string":["version: STSv1"],"policy-domain":"good.test","mx-host":["mx.good.test"],"failure-details":[],"t":0,"f":0}]}`

// settings has its files in a new folder, and collects.
func settings(t *testing.T) *config.TLSRPT {
	dir := t.TempDir()
	c := &config.Default().TLSRPT
	c.Path, c.PostfixSocket = filepath.Join(dir, "reports.db"), endpoint.Endpoint{Network: "unix", Address: filepath.Join(dir, "tlsrpt.sock")}
	c.Collect = true
	return c
}

// A log is safe for concurrent use.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// run runs a service until stop, which waits for its end.
func run(t *testing.T, o reporting.Options) (s *reporting.Service, logged *log, stop func()) {
	t.Helper()
	logged = new(log)
	o.Log = slog.New(slog.NewTextHandler(logged, nil))
	s = reporting.New(o)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); s.Run(ctx) }()
	stop = func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(patience):
			t.Error("the service does not end")
		}
	}
	t.Cleanup(stop)
	return s, logged, stop
}

// await polls until done, with a deadline.
func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for !done() {
		select {
		case <-deadline:
			t.Fatalf("not in time: %s", what)
		case <-time.After(time.Millisecond):
		}
	}
}

// send sends a datagram as libtlsrpt does, once the socket is there.
func send(t *testing.T, path, text string) {
	t.Helper()
	await(t, "a socket at "+path, func() bool {
		conn, err := net.Dial("unixgram", path)
		if err != nil {
			return false
		}
		defer conn.Close()
		_, err = conn.Write([]byte(text))
		return err == nil
	})
}

// stored returns what a store has of a domain's sessions today.
func stored(t *testing.T, path, domain string) tlsrpt.DomainDay {
	t.Helper()
	s, err := store.Open(path, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Merge(); err != nil {
		t.Fatal(err)
	}
	day, err := s.Load(tlsrpt.DayOf(time.Now()), domain)
	if err != nil {
		t.Fatal(err)
	}
	return day
}

func TestWithoutKeysNothingIsMade(t *testing.T) {
	c := settings(t)
	c.Collect = false
	s := reporting.New(reporting.Options{Config: c})
	if s != nil {
		t.Fatal("a service that nobody wants")
	}
	s.Run(t.Context()) // returns at once
	if stats := s.Stats(); stats.On || stats.Err != nil {
		t.Errorf("got %+v", stats)
	}
	if left, err := os.ReadDir(filepath.Dir(c.Path)); err != nil || len(left) > 0 {
		t.Errorf("files: %v, %v", left, err)
	}
}

func TestSessionsOfTheLastMomentAreStored(t *testing.T) {
	c := settings(t)
	s, logged, stop := run(t, reporting.Options{Config: c})
	for range 3 {
		send(t, c.PostfixSocket.Address, datagram)
	}
	await(t, "three datagrams", func() bool { return s.Stats().Collect.From[collect.Postfix].Received == 3 })
	stop()
	if stats := s.Stats(); stats.Collect.From[collect.Postfix].Successful != 3 {
		t.Errorf("got %+v\n%s", stats, logged)
	}
	day := stored(t, c.Path, "good.test")
	if len(day.Policies) != 1 || day.Policies[0].Successful != 3 || day.Policies[0].Policy.Type != tlsrpt.TypeSTS {
		t.Errorf("got %+v\n%s", day, logged)
	}
}

// The daemon's clock does not follow a jump of the wall clock, so that no day is deleted
// by one.
func TestDaysAreThoseOfTheDaemonsClock(t *testing.T) {
	c := settings(t)
	r, _, stop := run(t, reporting.Options{Config: c, Now: func() time.Time { return time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC) }})
	send(t, c.PostfixSocket.Address, datagram)
	await(t, "a datagram", func() bool { return r.Stats().Collect.From[collect.Postfix].Received == 1 })
	stop()
	s, err := store.Open(c.Path, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Merge(); err != nil {
		t.Fatal(err)
	}
	if days, err := s.Days(); err != nil || len(days) != 1 || days[0] != "2001-02-03" {
		t.Errorf("%v, %v", days, err)
	}
}

func TestALongPolicyIsNotInTheView(t *testing.T) {
	c := settings(t)
	s, _, _ := run(t, reporting.Options{Config: c})
	send(t, c.PostfixSocket.Address, datagram)
	await(t, "a batch", func() bool { return s.Stats().Collect.Batches == 1 })
	var views []reporting.View
	if err := s.Views("", func(v reporting.View) error { views = append(views, v); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(views) != 1 || views[0].Domain != "good.test" || views[0].Policies[0].Summary.Successful != 1 ||
		len(views[0].Policies[0].Policy.Strings)+len(views[0].Policies[0].Policy.MXHosts) > 0 {
		t.Errorf("got %+v", views)
	}
}

func TestASocketThatCannotBeMadeIsOneLineInTheLogAndACondition(t *testing.T) {
	c := settings(t)
	c.PostfixSocket.Address = filepath.Join(t.TempDir(), "none", "none", "tlsrpt.sock")
	s, logged, stop := run(t, reporting.Options{Config: c})
	await(t, "an error", func() bool { return s.Stats().Err != nil })
	if err := s.Stats().Err; !strings.Contains(err.Error(), "socket: ") {
		t.Errorf("got %v", err)
	}
	stop()
	if text := logged.String(); strings.Count(text, "level=ERROR") != 1 || !strings.Contains(text, "lookups go on") {
		t.Errorf("got\n%s", text)
	}
}

func TestAStoreOfAnotherProcessIsACondition(t *testing.T) {
	c := settings(t)
	other, err := store.Open(c.Path, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	s, logged, stop := run(t, reporting.Options{Config: c})
	await(t, "an error", func() bool { return s.Stats().Err != nil })
	stop()
	if text := logged.String(); strings.Count(text, "level=ERROR") != 1 || !strings.Contains(text, "part=store") {
		t.Errorf("got\n%s", text)
	}
}

func TestAnotherSocketFromSystemdIsACondition(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s, _, _ := run(t, reporting.Options{Config: settings(t), Passed: conn})
	await(t, "an error", func() bool { return s.Stats().Err != nil })
	if err := s.Stats().Err; !strings.Contains(err.Error(), "ListenDatagram=") {
		t.Errorf("got %v", err)
	}
}

func TestAMistakeInWhoReportsIsNamedAndSessionsAreCollectedAllTheSame(t *testing.T) {
	c := settings(t)
	c.Organization, c.Contact, c.Sender = "Example", "tls@example.test", "tls@example.net"
	if err := reporting.Check(c); err == nil || !strings.Contains(err.Error(), "tlsrpt.sender: must have the same domain") {
		t.Errorf("-check: %v", err)
	}
	s, _, _ := run(t, reporting.Options{Config: c})
	await(t, "an error", func() bool { return s.Stats().Err != nil })
	if err := s.Stats().Err; !strings.Contains(err.Error(), "reports: :0: tlsrpt.sender: must have the same domain as contact") {
		t.Errorf("got %v", err)
	}
	send(t, c.PostfixSocket.Address, datagram)
	await(t, "a session", func() bool { return s.Stats().Collect.From[collect.Postfix].Successful == 1 })

	c.Sender, c.DKIMKey, c.DKIMSelector = c.Contact, filepath.Join(t.TempDir(), "none.pem"), "s"
	if err := reporting.Check(c); err == nil || !strings.Contains(err.Error(), "tlsrpt.dkim_key: open ") {
		t.Errorf("a key that is not there: %v", err)
	}
	c.DKIMKey = ""
	if err := reporting.Check(c); err != nil {
		t.Error(err)
	}
}

func TestEximsSessionsAreJudgedByThePolicyOfTheDomain(t *testing.T) {
	c := settings(t)
	dir := filepath.Dir(c.Path)
	c.EximSocket = endpoint.Endpoint{Network: "unix", Address: filepath.Join(dir, "exim.sock")}
	c.PostfixSocket.Address = filepath.Join(dir, "no-postfix", "tlsrpt", "tlsrpt.sock") // as where only Exim is
	s, logged, stop := run(t, reporting.Options{Config: c, FetchDead: func() bool { return false },
		Policy: func(domain string) ([]byte, bool) {
			mode, ok := strings.CutSuffix(domain, ".test")
			return []byte("version: STSv1\r\nmode: " + mode + "\r\nmx: mx." + domain + "\r\nmax_age: 604800\r\n"), ok
		}})
	for _, tt := range []struct{ domain, host, verified string }{
		{"plain.example", "mx.plain.example", "1"}, {"enforce.test", "alias.example", "1"}, {"testing.test", "mx.testing.test", "0"}, {"testing.test", "other.test", "1"},
		{"none.test", "mx.none.test", "0"},
	} {
		await(t, "the socket", func() bool {
			conn, err := net.Dial("unix", c.EximSocket.Address)
			if err != nil {
				return false
			}
			defer conn.Close()
			_, err = conn.Write([]byte("1 7-a smtp:ehlo 0 " + tt.domain + " " + tt.host + " 192.0.2.1 192.0.2.2 y " + tt.verified + " no 0 n 250-x.test 1 4000000000 CN=a CN=b " + tt.host + "\n"))
			_, _ = io.Copy(io.Discard, conn) // until it is taken
			return err == nil
		})
	}
	await(t, "five sessions", func() bool { n := s.Stats().Collect.From[collect.Exim]; return n.Successful+n.Failed == 5 })
	if err := s.Stats().Err; err != nil {
		t.Errorf("without Postfix: %v", err)
	}
	stop()
	got := ""
	for _, domain := range []string{"enforce.test", "testing.test", "none.test", "plain.example"} {
		for _, p := range stored(t, c.Path, domain).Policies {
			got += string(p.Policy.Type) + " of " + p.Policy.Domain + "\n"
			for _, d := range p.Details {
				got += "  " + string(d.Result) + " " + d.Reason + " at " + d.MXHost + "\n"
			}
		}
	}
	want := "sts of enforce.test\nsts of testing.test\n  certificate-not-trusted  at mx.testing.test\n  validation-failure mx-mismatch at other.test\n" +
		"no-policy-found of none.test\nno-policy-found of plain.example\n"
	if got != want {
		t.Errorf("got\n%swant\n%s%s", got, want, logged)
	}
}

func TestAReportThatTheFleetMayHaveSentTooSaysSo(t *testing.T) {
	c := settings(t)
	day := tlsrpt.DayOf(time.Now())
	st, err := store.Open(c.Path, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var batch store.Batch
	batch.Reset(day)
	for _, v := range []tlsrpt.Delivery{{Domain: "alone.test", Alone: true}, {Domain: "merged.test", Shared: true}, {Domain: "twice.test", Alone: true, Shared: true}} {
		batch.Add(&tlsrpt.Event{Domain: v.Domain, Policy: tlsrpt.Policy{Type: tlsrpt.TypeNone, Domain: v.Domain}})
		v.Day, v.To = day, []tlsrpt.Receiver{{URI: "mailto:tls@" + v.Domain, Kind: tlsrpt.Accepted}}
		if err = errors.Join(err, st.Write(&batch), st.Merge(), st.PutDeliveries(v)); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	s, _, _ := run(t, reporting.Options{Config: c})
	reasons := map[string]string{}
	await(t, "three domains", func() bool {
		return s.Views("", func(v reporting.View) error { reasons[v.Domain] = v.Deliveries[0].Reason; return nil }) == nil
	})
	if len(reasons) != 3 || reasons["alone.test"]+reasons["merged.test"] != "" || reasons["twice.test"] != "the fleet's report may have the same sessions" {
		t.Errorf("got %q", reasons)
	}
}
