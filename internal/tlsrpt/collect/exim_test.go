package collect_test

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/collect"
)

// An eximLine is a line of Exim, before its fields are joined.
type eximLine struct {
	process, event, errno, domain, host, address, own, cipher, verified, dane, tlsa, starttls, text string
	notBefore, notAfter, subject, issuer, names                                                     string
}

func (l eximLine) String() string {
	return strings.Join([]string{"1", l.process, l.event, l.errno, l.domain, l.host, l.address, l.own, l.cipher, l.verified, l.dane, l.tlsa, l.starttls,
		l.text, l.notBefore, l.notAfter, l.subject, l.issuer, l.names}, " ") + "\n"
}

const (
	ehlo, daneFail, hostDefer = "smtp:ehlo", "dane:fail", "msg:host:defer"

	certFailed = "certificate?verification?failed"
	noSTARTTLS = "a?TLS?session?is?required,?but?the?server?did?not?offer?TLS?support"
	refused454 = "a?TLS?session?is?required,?but?an?attempt?to?start?TLS?failed"
)

// line is a line about the host of a domain. EHLO comes before TLS.
func line(event, domain string, change ...func(*eximLine)) string {
	l := eximLine{process: "100-1abc-2def-3g", event: event, errno: "0", domain: domain, host: "mx." + domain, address: "192.0.2.1", own: "192.0.2.9",
		cipher: "n", verified: "0", dane: "no", tlsa: "0", starttls: "n"}
	if event == ehlo {
		l.starttls, l.text = "y", "250-mx."+domain+"?at?your?service?250-STARTTLS?250?HELP"
	}
	for _, f := range change {
		f(&l)
	}
	return l.String()
}

func host(n string) func(*eximLine) {
	return func(l *eximLine) { l.host, l.address = n+"."+l.domain, "192.0.2."+n[len(n)-1:] }
}
func process(id string) func(*eximLine) { return func(l *eximLine) { l.process = id } }
func noTLS(l *eximLine)                 { l.starttls, l.text = "n", "250-mx."+l.domain+"?250?HELP" }
func encrypted(l *eximLine)             { l.cipher, l.starttls = "y", "n" }
func verified(l *eximLine)              { l.cipher, l.verified = "y", "1" }
func dane(l *eximLine)                  { l.cipher, l.verified, l.dane, l.tlsa = "y", "257", "yes", "8" }
func result(r string) func(*eximLine)   { return func(l *eximLine) { l.text, l.tlsa = r, "8" } }
func failed(errno, text string) func(*eximLine) {
	return func(l *eximLine) { l.errno, l.text = errno, text }
}

// shows is a certificate that is valid for days around now.
func shows(since, until int, subject, issuer, names string) func(*eximLine) {
	at := func(days int) string { return fmt.Sprint(time.Now().AddDate(0, 0, days).Unix()) }
	return func(l *eximLine) {
		l.notBefore, l.notAfter, l.subject, l.issuer, l.names = at(since), at(until), subject, issuer, names
	}
}

// policyOf has enforced policies for sts.test and below, and one in testing that lists
// mx.testing.test.
func policyOf(domain, host string) (p tlsrpt.Policy, listed, ok bool) {
	switch {
	case strings.HasSuffix(domain, "sts.test"):
		p = sts(domain)
		p.Strings = append(p.Strings, "mode: enforce")
		return p, true, true
	case domain == "testing.test":
		return sts(domain), host == "mx.testing.test", true
	}
	return p, false, false
}

func sts(domain string) tlsrpt.Policy {
	return tlsrpt.Policy{Type: tlsrpt.TypeSTS, Domain: domain, Strings: []string{"version: STSv1"}, MXHosts: []string{"mx." + domain}}
}

func newExim() *collect.EximParser {
	return &collect.EximParser{Drops: new(collect.Drops), Policy: policyOf}
}

// words are an event in one line.
func words(events []tlsrpt.Event) (all []string) {
	for _, e := range events {
		s := fmt.Sprint(e.Domain, " ", e.Policy.Type, " ", e.Policy.Domain)
		if !e.Failed {
			s += " ok"
		}
		for _, f := range e.Failures {
			s += fmt.Sprintf(" %s at %s helo %q %s", f.Result, f.MXHost, f.HELO, f.Reason)
		}
		all = append(all, strings.TrimSpace(s))
	}
	return all
}

func TestWhatEximTellsIsRead(t *testing.T) {
	const self, ca = "CN=mx", "CN=CA"
	for _, tt := range []struct {
		what  string
		lines []string
		want  []string
	}{
		{"success under an enforced policy", []string{line(ehlo, "sts.test"), line(ehlo, "sts.test", verified)}, []string{"sts.test sts sts.test ok"}},
		{"success without a policy, whatever the certificate", []string{line(ehlo, "plain.test"), line(ehlo, "plain.test", encrypted)},
			[]string{"plain.test no-policy-found plain.test ok"}},
		{"the domain in another case", []string{line(ehlo, "STS.Test"), line(ehlo, "STS.Test", verified)}, []string{"sts.test sts sts.test ok"}},
		{"by way of a smart host", []string{line(ehlo, "sts.test", func(l *eximLine) { l.domain = "[smart.sts.test]" }, verified)},
			[]string{"smart.sts.test sts smart.sts.test ok"}},
		{"success under DANE", []string{line(ehlo, "sts.test"), line(ehlo, "sts.test", dane)}, []string{"sts.test tlsa mx.sts.test ok"}},
		{"success under a testing policy", []string{line(ehlo, "testing.test"), line(ehlo, "testing.test", verified)}, []string{"testing.test sts testing.test ok"}},
		{"a self-signed certificate under a testing policy", []string{line(ehlo, "testing.test"), line(ehlo, "testing.test", encrypted, shows(-1, 1, self, self, "mx.testing.test"))},
			[]string{`testing.test sts testing.test certificate-not-trusted at mx.testing.test helo "mx.testing.test" self-signed_certificate`}},
		{"an unknown authority under a testing policy, before any certificate was verified", []string{line(ehlo, "testing.test", encrypted, shows(-1, 1, self, ca, "mx.testing.test"))},
			[]string{"testing.test no-policy-found testing.test ok"}},
		{"the same, after DANE has verified one", []string{line(ehlo, "a.test", dane), line(ehlo, "testing.test", encrypted, shows(-1, 1, self, ca, "mx.testing.test"))},
			[]string{"a.test tlsa mx.a.test ok", "testing.test no-policy-found testing.test ok"}},
		{"the same, after the transport for enforced policies has verified one", []string{line(ehlo, "enforced.sts.test", verified), line(ehlo, "testing.test", encrypted, shows(-1, 1, self, ca, "mx.testing.test"))},
			[]string{"enforced.sts.test sts enforced.sts.test ok", "testing.test no-policy-found testing.test ok"}},
		{"the same, after another host was verified", []string{line(ehlo, "plain.test", verified), line(ehlo, "testing.test", encrypted, shows(-1, 1, self, ca, "mx.testing.test"))},
			[]string{"plain.test no-policy-found plain.test ok", `testing.test sts testing.test certificate-not-trusted at mx.testing.test helo "mx.testing.test"`}},
		{"a host that the testing policy does not list", []string{line(ehlo, "testing.test", host("mx2")), line(ehlo, "testing.test", host("mx2"), verified)},
			[]string{`testing.test sts testing.test validation-failure at mx2.testing.test helo "mx.testing.test" mx-mismatch`}},
		{"no STARTTLS", []string{line(ehlo, "sts.test", noTLS), line(hostDefer, "sts.test", failed("-38", noSTARTTLS))},
			[]string{`sts.test sts sts.test starttls-not-supported at mx.sts.test helo "mx.sts.test"`}},
		{"no STARTTLS, without a policy", []string{line(ehlo, "plain.test", noTLS)},
			[]string{`plain.test no-policy-found plain.test starttls-not-supported at mx.plain.test helo "mx.plain.test"`}},
		{"STARTTLS refused", []string{line(ehlo, "sts.test"), line(hostDefer, "sts.test", failed("-38", refused454))},
			[]string{`sts.test sts sts.test starttls-not-supported at mx.sts.test helo "mx.sts.test" starttls-refused`}},
		{"a reply to EHLO that is none", []string{line(ehlo, "sts.test", noTLS, func(l *eximLine) { l.text = "421?too?busy" })}, nil},
		{"expired", []string{line(ehlo, "sts.test"), line(hostDefer, "sts.test", failed("-37", certFailed), shows(-9, -1, self, ca, "mx.sts.test"))},
			[]string{`sts.test sts sts.test certificate-expired at mx.sts.test helo "mx.sts.test"`}},
		{"not valid yet", []string{line(ehlo, "sts.test"), line(hostDefer, "sts.test", failed("-37", certFailed), shows(1, 9, self, ca, "mx.sts.test"))},
			[]string{`sts.test sts sts.test validation-failure at mx.sts.test helo "mx.sts.test" certificate_is_not_yet_valid`}},
		{"for another name", []string{line(ehlo, "sts.test"), line(hostDefer, "sts.test", failed("-37", certFailed), shows(-1, 1, self, ca, "a.test?*.b.sts.test"))},
			[]string{`sts.test sts sts.test certificate-host-mismatch at mx.sts.test helo "mx.sts.test"`}},
		{"the name is in the subject only", []string{line(ehlo, "sts.test"), line(hostDefer, "sts.test", failed("-37", certFailed), shows(-1, 1, "O=x,CN=MX.sts.test,C=x", ca, ""))},
			[]string{`sts.test sts sts.test certificate-not-trusted at mx.sts.test helo "mx.sts.test"`}},
		{"an unknown authority", []string{line(ehlo, "sts.test"), line(hostDefer, "sts.test", failed("-37", certFailed), shows(-1, 1, self, ca, "*.STS.test?a.test"))},
			[]string{`sts.test sts sts.test certificate-not-trusted at mx.sts.test helo "mx.sts.test"`}},
		{"more names than a line has", []string{line(ehlo, "sts.test"), line(hostDefer, "sts.test", failed("-37", certFailed), shows(-1, 1, self, ca, strings.Repeat("a.test?", 286)[:2000]))},
			[]string{`sts.test sts sts.test certificate-not-trusted at mx.sts.test helo "mx.sts.test"`}},
		{"an aborted handshake, and the retry in clear", []string{line(ehlo, "plain.test"), line(hostDefer, "plain.test", failed("-37", "x")), line(ehlo, "plain.test")},
			[]string{`plain.test no-policy-found plain.test validation-failure at mx.plain.test helo "mx.plain.test" tls-handshake-failure`}},
		{"failover: the second host does not answer, and still has the errno of the first", []string{line(ehlo, "sts.test", host("mx1")),
			line(hostDefer, "sts.test", host("mx1"), failed("-37", "x")), line(hostDefer, "sts.test", host("mx2"), failed("-37", "x"))},
			[]string{`sts.test sts sts.test validation-failure at mx1.sts.test helo "mx.sts.test" tls-handshake-failure`}},
		{"failover: the second host succeeds", []string{line(ehlo, "sts.test", host("mx1")), line(hostDefer, "sts.test", host("mx1"), failed("-37", "x")),
			line(ehlo, "sts.test", host("mx2")), line(ehlo, "sts.test", host("mx2"), verified), line(hostDefer, "sts.test", host("mx2"), failed("-37", "x"))},
			[]string{`sts.test sts sts.test validation-failure at mx1.sts.test helo "mx.sts.test" tls-handshake-failure`, "sts.test sts sts.test ok"}},
		{"DANE and an aborted handshake", []string{line(ehlo, "sts.test"), line(daneFail, "sts.test", result("validation-failure")), line(hostDefer, "sts.test", failed("-37", "x"))},
			[]string{`sts.test tlsa mx.sts.test validation-failure at mx.sts.test helo "mx.sts.test" tls-handshake-failure`}},
		{"a TLSA lookup that fails", []string{line(daneFail, "sts.test", result("dnssec-invalid"))}, nil},
		{"DANE mismatch: what follows is of the same failure", []string{line(ehlo, "sts.test"), line(daneFail, "sts.test", result("validation-failure"), shows(-1, 1, self, ca, "")),
			line(hostDefer, "sts.test", failed("-37", "x")), line(hostDefer, "sts.test", failed("-36", "x"))},
			[]string{`sts.test tlsa mx.sts.test certificate-not-trusted at mx.sts.test helo "mx.sts.test" dane-no-match`}},
		{"DANE without STARTTLS: counted once", []string{line(ehlo, "sts.test", noTLS), line(daneFail, "sts.test", result("starttls-not-supported"))},
			[]string{`sts.test tlsa mx.sts.test starttls-not-supported at mx.sts.test helo "mx.sts.test"`}},
		{"dane:fail of an unknown type", []string{line(daneFail, "sts.test", result("no?type"))}, []string{`sts.test tlsa mx.sts.test validation-failure at mx.sts.test helo ""`}},
		{"two processes at once", []string{line(ehlo, "sts.test", process("1")), line(ehlo, "plain.test", process("2")), line(ehlo, "plain.test", encrypted, process("2")),
			line(hostDefer, "sts.test", failed("-37", "x"), process("2")), line(ehlo, "sts.test", verified, process("1"))},
			[]string{"plain.test no-policy-found plain.test ok", "sts.test sts sts.test ok"}},
		{"another event, and another error", []string{line(ehlo, "sts.test"), line("tcp:close", "sts.test", encrypted), line(hostDefer, "sts.test", failed("110", "x"))}, nil},
	} {
		p := newExim()
		var got []tlsrpt.Event
		for _, l := range tt.lines {
			got = append(got, p.Parse([]byte(l), time.Now())...)
		}
		got = append(got, p.Expire(time.Now().Add(2*time.Second))...)
		if !reflect.DeepEqual(words(got), tt.want) {
			t.Errorf("%s:\ngot  %q\nwant %q", tt.what, words(got), tt.want)
		}
		for _, e := range got {
			check(t, e)
		}
		if drops := dropped(p); len(drops) > 0 {
			t.Errorf("%s: dropped %v", tt.what, drops)
		}
	}
}

func TestAddressesOfEximAreInTheReport(t *testing.T) {
	got := newExim().Parse([]byte(line(hostDefer, "sts.test", failed("-37", "x"))), time.Now())
	if got != nil {
		t.Errorf("without EHLO: %v", words(got))
	}
	got = newExim().Parse([]byte(line(daneFail, "sts.test", result("tlsa-invalid"))), time.Now())
	if f := got[0].Failures[0]; f.SendingIP != netip.MustParseAddr("192.0.2.9") || f.ReceivingIP != netip.MustParseAddr("192.0.2.1") || f.MXHost != "mx.sts.test" {
		t.Errorf("%+v", f)
	}
}

func dropped(p *collect.EximParser) map[string]uint64 {
	drops := p.Drops.Counts()
	maps.DeleteFunc(drops, func(_ string, n uint64) bool { return n == 0 })
	return drops
}

func TestALineThatIsNoneIsDropped(t *testing.T) {
	good := line(ehlo, "sts.test", verified)
	for l, why := range map[string]string{
		"": "version", "\n": "version", good[:len(good)-1]: "malformed", strings.Replace(good, " ", "  ", 1): "malformed", "2" + good[1:]: "version",
		strings.Repeat("x", collect.MaxLine) + "\n": "too-long", line(ehlo, "[192.0.2.1]", verified): "domain", line(ehlo, "", verified): "domain",
		line(ehlo, "sts.test", verified, func(l *eximLine) { l.domain = "a}${run{x}}.test" }): "domain",
		line(ehlo, "sts.test", verified, func(l *eximLine) { l.host = "${run" }):              "name",
	} {
		p := newExim()
		got := p.Parse([]byte(l), time.Now())
		drops := dropped(p)
		delete(drops, "domain")
		if why == "domain" {
			drops = dropped(p)
			delete(drops, "name")
		}
		if len(got) > 0 && why != "name" || len(drops) != 1 || drops[why] != 1 {
			t.Errorf("%.80q: %v, dropped %v, want %s", l, words(got), drops, why)
		}
	}
}

func TestWhatEximProcessesHaveToldIsBounded(t *testing.T) {
	p := newExim()
	begin, n := time.Now(), 0
	for i := range 10_000 {
		n += len(p.Parse([]byte(line(ehlo, "sts.test", noTLS, process(fmt.Sprint(i)))), begin))
	}
	if n != 10_000-512 {
		t.Errorf("%d sessions are counted, want all but the last 512", n)
	}
	if got := len(p.Expire(begin.Add(time.Second))); got != 0 {
		t.Errorf("%d counted before dane:fail can come", got)
	}
	if got := len(p.Expire(begin.Add(2 * time.Second))); n+got != 10_000 {
		t.Errorf("%d and %d sessions are counted", n, got)
	}
	late := p.Parse([]byte(line(hostDefer, "sts.test", failed("-37", "x"), process("9999"))), begin.Add(9*time.Minute))
	p.Expire(begin.Add(10 * time.Minute))
	if later := p.Parse([]byte(line(hostDefer, "sts.test", failed("-37", "x"), process("9998"))), begin.Add(10*time.Minute)); len(late) != 1 || len(later) != 0 {
		t.Errorf("%v, %v", words(late), words(later))
	}
}

func FuzzEximLine(f *testing.F) {
	for _, l := range []string{line(ehlo, "sts.test", noTLS), line(ehlo, "testing.test", encrypted), line(daneFail, "sts.test", result("tlsa-invalid")),
		line(hostDefer, "sts.test", failed("-37", certFailed), shows(-1, 1, "CN=a", "CN=b", "a?b"))} {
		f.Add([]byte(l), []byte(line(ehlo, "sts.test")))
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		p, now := newExim(), time.Now()
		events := append(p.Parse(first, now), p.Parse(second, now)...)
		events = append(events, p.Expire(now.Add(time.Minute))...)
		if len(events) > 2 {
			t.Fatalf("%d events of two lines", len(events))
		}
		for _, e := range events {
			check(t, e)
		}
	})
}

// tell writes a line as Exim does, and returns what it reads until the end.
func tell(t *testing.T, path, text string) string {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Error(err)
	}
	return string(answer)
}

func TestLinesComeFromTheSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "exim.sock")
	l, err := endpoint.Listen(endpoint.Endpoint{Network: "unix", Address: path}, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	var to sink
	c := collect.New(&to, options(io.Discard))
	stop := run(t, c, func(ctx context.Context) { c.Lines(ctx, l) })
	for _, text := range []string{line(ehlo, "sts.test"), line(ehlo, "sts.test", verified), "x", "", line(ehlo, "sts.test", noTLS)} {
		if answer := tell(t, path, text); answer != "" {
			t.Errorf("the answer to %q is %q", text, answer)
		}
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, strings.Repeat("x", 100_000)) // the daemon may hang up
	tell(t, path, line(ehlo, "plain.test", encrypted))
	stop()
	s := c.Stats()
	if got := s.From[collect.Exim]; got != (collect.Count{Received: 7, Successful: 2, Failed: 1}) || s.From[collect.Postfix] != (collect.Count{}) {
		t.Errorf("%+v", s)
	}
	if s.Dropped["too-long"] != 1 || s.Dropped["version"] != 2 || s.RingSize != 0 {
		t.Errorf("%+v", s)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket is still there")
	}
}

// A pipes is a listener for tests.
type pipes struct {
	in    chan net.Conn
	ended chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.in:
		return c, nil
	case <-p.ended:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { close(p.ended); return nil }
func (p *pipes) Addr() net.Addr { return nil }

func TestConnectionsWithoutALineAreClosedAndOthersHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &pipes{make(chan net.Conn), make(chan struct{})}
		c := collect.New(new(sink), options(io.Discard))
		stop := run(t, c, func(ctx context.Context) { c.Lines(ctx, l) })
		begin := time.Now()
		dial := func() net.Conn {
			ours, theirs := net.Pipe()
			l.in <- theirs
			return ours
		}
		for range 66 {
			dial()
		}
		good := dial()
		if _, err := io.WriteString(good, line(ehlo, "plain.test", encrypted)); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadAll(good); err != nil {
			t.Error(err)
		}
		if d := time.Since(begin); d != 10*time.Second {
			t.Errorf("66 at once, 32 places: the line was taken after %v", d)
		}
		stop()
		if s := c.Stats(); s.From[collect.Exim].Successful != 1 || s.Dropped["malformed"] != 66 {
			t.Errorf("%+v", s)
		}
	})
}

func TestTheSocketForLinesIsForEximAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "exim.sock")
	l, err := collect.ListenLines(path)
	if err != nil && os.Geteuid() != 0 {
		t.Skip("only root may give files to the group of Exim, which is here")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if info, err := os.Stat(path); err != nil || info.Mode() != os.ModeSocket|0o660 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if _, err := collect.ListenLines(path); err == nil {
		t.Error("a socket in use is taken")
	}
}
