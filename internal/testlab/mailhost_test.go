package testlab_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/smtp"
	"net/textproto"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

func connect(t *testing.T, l *testlab.T, m *testlab.MailHost) (*smtp.Client, error) {
	t.Helper()
	c, err := l.Dial(bounded(t), "tcp", net.JoinHostPort(m.Addr.String(), "25"))
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(within))
	return smtp.NewClient(c, m.Name)
}

// deliver sends a message, over TLS if config is not nil.
func deliver(t *testing.T, l *testlab.T, m *testlab.MailHost, config *tls.Config, text string) error {
	t.Helper()
	c, err := connect(t, l, m)
	if err != nil {
		return err
	}
	if err := c.Hello("relay.test"); err != nil {
		return err
	}
	if config != nil {
		if err := c.StartTLS(config); err != nil {
			return err
		}
	}
	if err := c.Mail("from@relay.test"); err != nil {
		return err
	}
	for _, to := range []string{"one@example.test", "two@example.test"} {
		if err := c.Rcpt(to); err != nil {
			return err
		}
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	if _, err := w.Write([]byte(text)); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return c.Quit()
}

func TestRecordsMessagesAndTheirTLS(t *testing.T) {
	l := testlab.New(t)
	m := l.MailHost("mx1.example.test", "")
	const text = "Subject: hello\r\n\r\n.a line with a dot\r\n..and with two\r\n"
	if err := deliver(t, l, m, nil, text); err != nil {
		t.Fatal(err)
	}
	if err := deliver(t, l, m, &tls.Config{RootCAs: l.CA.Pool(), ServerName: m.Name}, strings.Repeat("long ", 2000)+"\r\n"); err != nil {
		t.Fatal(err)
	}
	got := m.Messages()
	if len(got) != 2 {
		t.Fatalf("%d messages, want 2", len(got))
	}
	clear, safe := got[0], got[1]
	if clear.Helo != "relay.test" || clear.From != "from@relay.test" || strings.Join(clear.To, " ") != "one@example.test two@example.test" ||
		clear.TLS || clear.SNI != "" || string(clear.Data) != text {
		t.Errorf("in clear: %+v", clear)
	}
	if !safe.TLS || safe.SNI != m.Name || safe.TLSVersion != tls.VersionTLS13 || len(safe.Data) != 10002 {
		t.Errorf("over TLS: %+v with %d bytes", safe, len(safe.Data))
	}
	awaitSessions(t, l, m, 2)
	if s := m.Sessions()[1]; s.Messages != 1 || s.Err != "" || !s.TLS || !s.STARTTLS || s.Helo != "relay.test" {
		t.Errorf("the session: %+v", s)
	}
	m.Forget()
	if len(m.Messages()) != 0 || len(m.Sessions()) != 0 || m.Connections() != 0 {
		t.Error("messages, sessions or connections remain after Forget")
	}
}

func awaitSessions(t *testing.T, l *testlab.T, m *testlab.MailHost, n int) {
	t.Helper()
	if err := l.Await(bounded(t), func() bool { return len(m.Sessions()) == n }); err != nil {
		t.Fatalf("%v: %d sessions have ended, want %d", err, len(m.Sessions()), n)
	}
}

func TestMailHostsMisbehave(t *testing.T) {
	code := func(n int) func(error) bool {
		return func(err error) bool {
			var e *textproto.Error
			return errors.As(err, &e) && e.Code == n
		}
	}
	for _, c := range []struct {
		name  string
		fault testlab.MailFault
		is    func(error) bool
	}{
		{"NoSTARTTLS", testlab.NoSTARTTLS, code(502)},
		{"STARTTLSRefused", testlab.STARTTLSRefused, code(454)},
		{"STARTTLSGarbage", testlab.STARTTLSGarbage, isA[tls.RecordHeaderError]},
		{"STARTTLSHangUp", testlab.STARTTLSHangUp, func(err error) bool {
			return err != nil && (strings.Contains(err.Error(), "EOF") || errors.Is(err, syscall.ECONNRESET))
		}},
		{"MailOldTLS", testlab.MailOldTLS, func(err error) bool {
			return err != nil && strings.Contains(err.Error(), "protocol version not supported")
		}},
		{"GreetingRefused", testlab.GreetingRefused, code(421)},
		{"MailDeferred", testlab.MailDeferred, code(451)},
		{"RcptRejected", testlab.RcptRejected, code(550)},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := testlab.New(t)
			m := l.MailHost("mx1.example.test", "")
			m.Behave(c.fault)
			config := &tls.Config{RootCAs: l.CA.Pool(), ServerName: m.Name}
			if err := deliver(t, l, m, config, "x\r\n"); !c.is(err) {
				t.Errorf("got %v", err)
			}
			if n := len(m.Messages()); n != 0 {
				t.Errorf("%d messages were accepted", n)
			}
			m.Behave(testlab.MailFine)
			if err := deliver(t, l, m, config, "x\r\n"); err != nil {
				t.Errorf("behaving again: %v", err)
			}
		})
	}
}

func TestOnlyAHostWithSTARTTLSOffersIt(t *testing.T) {
	l := testlab.New(t)
	m := l.MailHost("mx1.example.test", "")
	for fault, want := range map[testlab.MailFault]bool{testlab.MailFine: true, testlab.NoSTARTTLS: false} {
		m.Behave(fault)
		c, err := connect(t, l, m)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := c.Extension("STARTTLS"); got != want {
			t.Errorf("fault %d: STARTTLS offered is %v", fault, got)
		}
	}
}

func TestMailHostsPresentTheCertificateAskedFor(t *testing.T) {
	l := testlab.New(t)
	m := l.MailHost("mx1.example.test", "")
	config := &tls.Config{RootCAs: l.CA.Pool(), ServerName: m.Name}
	for _, c := range []struct {
		kind  testlab.CertKind
		names []string
		is    func(error) bool
	}{
		{testlab.CertGood, []string{m.Name}, func(err error) bool { return err == nil }},
		{testlab.CertGood, []string{"*.example.test"}, func(err error) bool { return err == nil }},
		{testlab.CertGood, []string{"mx2.example.test"}, isA[x509.HostnameError]},
		{testlab.CertExpired, []string{m.Name}, isInvalid(x509.Expired, "expired")},
		{testlab.CertSelfSigned, []string{m.Name}, isA[x509.UnknownAuthorityError]},
		{testlab.CertOtherCA, []string{m.Name}, isA[x509.UnknownAuthorityError]},
	} {
		if err := m.PresentFor(c.kind, c.names...); err != nil {
			t.Fatal(err)
		}
		if err := deliver(t, l, m, config, "x\r\n"); !c.is(err) {
			t.Errorf("kind %d for %v: %v", c.kind, c.names, err)
		}
	}
}

func TestAStallLastsUntilTheHostIsDown(t *testing.T) {
	for name, fault := range map[string]testlab.MailFault{
		"GreetingStall": testlab.GreetingStall, "STARTTLSStall": testlab.STARTTLSStall,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := testlab.New(t)
			m := l.MailHost("mx1.example.test", "")
			m.Behave(fault)
			done := make(chan error, 1)
			go func() { done <- deliver(t, l, m, &tls.Config{ServerName: m.Name}, "x") }()
			stalls := func() bool { return m.Connections() == 1 }
			if fault == testlab.STARTTLSStall { // so that a host that stalls too early fails
				stalls = func() bool { return m.Asked("STARTTLS") == 1 }
			}
			if err := l.Await(bounded(t), stalls); err != nil {
				t.Fatal(err)
			}
			if err := m.Down(); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err == nil {
				t.Error("a stalled host accepted a message")
			}
			if s := m.Sessions(); len(s) != 1 || s[0].STARTTLS != (fault == testlab.STARTTLSStall) || s[0].TLS || s[0].Err != "closed by the host" {
				t.Errorf("session %+v", s)
			}
			if err := deliver(t, l, m, nil, "x"); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("while down: %v", err)
			}
			m.Behave(testlab.MailFine)
			if err := m.Up(); err != nil {
				t.Fatal(err)
			}
			if err := deliver(t, l, m, nil, "x"); err != nil {
				t.Errorf("when up again: %v", err)
			}
		})
	}
}

func TestAHostListensAtSeveralAddresses(t *testing.T) {
	l := testlab.New(t)
	m := l.MailHost("mx1.example.test", "")
	second, err := m.AlsoAt("")
	if err != nil {
		t.Fatal(err)
	}
	if r := ask(t, l, "udp", question(m.Name, dns.TypeA)); len(r.Answer) != 2 {
		t.Errorf("the DNS has %v", r.Answer)
	}
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	c, err := l.Dial(ctx, "tcp", net.JoinHostPort(second.String(), "25"))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestATooLargeMessageIsRefusedAndNotKept(t *testing.T) {
	l := testlab.New(t)
	m := l.MailHost("mx1.example.test", "")
	err := deliver(t, l, m, nil, strings.Repeat(strings.Repeat("x", 998)+"\r\n", 1100))
	var e *textproto.Error
	if !errors.As(err, &e) || e.Code != 552 || len(m.Messages()) != 0 {
		t.Errorf("got %v, %d messages", err, len(m.Messages()))
	}
}

func TestTLSARecordsNameTheCertificateOfTheHost(t *testing.T) {
	l := testlab.New(t)
	m := l.MailHost("mx1.example.test", "")
	for _, c := range []struct {
		usage, selector, matching int
		ca                        bool
	}{{3, 1, 1, false}, {3, 0, 2, false}, {2, 0, 1, true}, {2, 1, 0, true}} {
		s, err := m.TLSA(c.usage, c.selector, c.matching)
		if err != nil {
			t.Fatal(err)
		}
		l.Set(s)
		r := ask(t, l, "tcp", question("_25._tcp.mx1.example.test", dns.TypeTLSA))
		if len(r.Answer) != 1 {
			t.Fatalf("%s: %v", s, r)
		}
		named := r.Answer[0].(*dns.TLSA)
		conn, err := connect(t, l, m)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.StartTLS(&tls.Config{RootCAs: l.CA.Pool(), ServerName: m.Name}); err != nil {
			t.Fatal(err)
		}
		state, _ := conn.TLSConnectionState()
		chain := state.PeerCertificates
		cert := chain[0]
		if c.ca {
			cert = chain[len(chain)-1]
		}
		if err := named.Verify(cert); err != nil || cert.IsCA != c.ca {
			t.Errorf("%s does not name the certificate: %v", s, err)
		}
	}
}

func TestTheRootInPEMVouchesForCertificates(t *testing.T) {
	l := testlab.New(t)
	path := t.TempDir() + "/ca.pem"
	if err := l.CA.WritePEM(path); err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		t.Fatal("no certificate in the file")
	}
	c, err := l.Issue(testlab.CertGood, "x.test", "192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"x.test", "192.0.2.1"} {
		if _, err := c.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWhatIsSentBeforeTheHandshakeIsDropped(t *testing.T) {
	l := testlab.New(t)
	m := l.MailHost("mx1.example.test", "")
	raw, err := l.Dial(bounded(t), "tcp", net.JoinHostPort(m.Addr.String(), "25"))
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(within))
	c := textproto.NewConn(raw)
	if _, _, err := c.ReadResponse(220); err != nil {
		t.Fatal(err)
	}
	if err := c.PrintfLine("STARTTLS\r\nNOOP"); err != nil { // in one segment
		t.Fatal(err)
	}
	if _, _, err := c.ReadResponse(220); err != nil {
		t.Fatal(err)
	}
	safe := textproto.NewConn(tls.Client(raw, &tls.Config{RootCAs: l.CA.Pool(), ServerName: m.Name}))
	if err := safe.PrintfLine("VRFY"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := safe.ReadResponse(502); err != nil { // not the 250 to NOOP
		t.Error(err)
	}
}
