package testlab_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// client returns an HTTPS client that trusts the lab's authority, connects by
// host name and is as lenient as net/http.
func client(l *testlab.T) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext:            l.Dial,
			DisableKeepAlives:      true,
			DisableCompression:     true,
			MaxResponseHeaderBytes: 1 << 16, // for EndlessHeader
			TLSClientConfig:        &tls.Config{RootCAs: l.CA.Pool()},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func get(ctx context.Context, l *testlab.T, h *testlab.PolicyHost) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+h.Name+testlab.WellKnown, nil)
	if err != nil {
		return nil, err
	}
	return client(l).Do(r)
}

const honest = "version: STSv1\r\nmode: enforce\r\nmx: mx1.example.test\r\nmax_age: 604800\r\n"

func TestServesTheDomainsPolicy(t *testing.T) {
	l := testlab.New(t)
	d := l.Domain("example.test", testlab.With{})
	for _, want := range []string{honest, "version: STSv1\nmode: none\nmax_age: 1\n"} {
		d.SetPolicy(want, "2")
		r, err := get(bounded(t), l, d.Policy)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		if err != nil || string(body) != want || r.StatusCode != 200 {
			t.Errorf("got %d %q (%v), want %q", r.StatusCode, body, err, want)
		}
		if ct := r.Header.Get("Content-Type"); ct != "text/plain; charset=utf-8" {
			t.Errorf("media type %q", ct)
		}
	}
	got := d.Policy.Requests()
	if len(got) != 2 || d.Policy.Asked() != 2 || d.Policy.Handshakes() != 2 || d.Policy.Server.Connections() != 2 {
		t.Fatalf("%d requests recorded, %d counted, %d handshakes, %d connections; want 2 of each",
			len(got), d.Policy.Asked(), d.Policy.Handshakes(), d.Policy.Server.Connections())
	}
	if r := got[0]; r.SNI != "mta-sts.example.test" || r.Host != r.SNI || r.Path != testlab.WellKnown || r.Method != "GET" || r.TLSVersion != tls.VersionTLS13 {
		t.Errorf("recorded %+v", r)
	}
	bare, err := d.Policy.Server.Host("mta-sts.bare.test")
	if err != nil {
		t.Fatal(err)
	}
	if r, err := get(bounded(t), l, bare); err != nil || r.StatusCode != 404 {
		t.Errorf("a host without a policy: %v, %v", r, err)
	}
}

func TestCertificatesAreWrongInTheWayAskedFor(t *testing.T) {
	l := testlab.New(t)
	d := l.Domain("example.test", testlab.With{})
	for _, c := range []struct {
		kind testlab.CertKind
		is   func(error) bool
	}{
		{testlab.CertGood, func(err error) bool { return err == nil }},
		{testlab.CertExpired, isInvalid(x509.Expired, "expired")},
		{testlab.CertNotYetValid, isInvalid(x509.Expired, "not yet valid")},
		{testlab.CertWrongName, isA[x509.HostnameError]},
		{testlab.CertNoName, isA[x509.HostnameError]},
		{testlab.CertSelfSigned, isA[x509.UnknownAuthorityError]},
		{testlab.CertOtherCA, isA[x509.UnknownAuthorityError]},
	} {
		if err := d.Policy.Present(c.kind); err != nil {
			t.Fatal(err)
		}
		if _, err := get(bounded(t), l, d.Policy); !c.is(err) {
			t.Errorf("certificate %d: %v", c.kind, err)
		}
	}
}

func isA[E error](err error) bool {
	var e E
	return errors.As(err, &e)
}

func isInvalid(reason x509.InvalidReason, words string) func(error) bool {
	return func(err error) bool {
		var e x509.CertificateInvalidError
		return errors.As(err, &e) && e.Reason == reason && strings.Contains(err.Error(), words)
	}
}

func TestPolicyHostsMisbehave(t *testing.T) {
	status := func(code int, body string) func(*http.Response, []byte, error) bool {
		return func(r *http.Response, b []byte, err error) bool {
			return err == nil && r.StatusCode == code && string(b) == body
		}
	}
	failed := func(words string) func(*http.Response, []byte, error) bool {
		return func(_ *http.Response, _ []byte, err error) bool {
			return err != nil && strings.Contains(err.Error(), words)
		}
	}
	for _, c := range []struct {
		name  string
		fault testlab.PolicyFault
		is    func(r *http.Response, body []byte, err error) bool
	}{
		{"Status404", testlab.Status404, status(404, honest)},
		{"Status500", testlab.Status500, status(500, honest)},
		{"Status203", testlab.Status203, status(203, honest)},
		{"Status204", testlab.Status204, status(204, "")},
		{"Redirect", testlab.Redirect, func(r *http.Response, _ []byte, err error) bool {
			return err == nil && r.StatusCode == 302 && r.Header.Get("Location") != ""
		}},
		{"HTML", testlab.HTML, func(r *http.Response, b []byte, err error) bool {
			return err == nil && string(b) == honest && r.Header.Get("Content-Type") == "text/html; charset=utf-8"
		}},
		{"NoContentType", testlab.NoContentType, func(r *http.Response, b []byte, err error) bool {
			return err == nil && string(b) == honest && r.Header["Content-Type"] == nil
		}},
		{"HugeHeader", testlab.HugeHeader, func(r *http.Response, b []byte, err error) bool {
			return err == nil && string(b) == honest && len(fmt.Sprint(r.Header)) > 48_000
		}},
		{"Compressed", testlab.Compressed, func(r *http.Response, b []byte, err error) bool {
			if err != nil || r.Header.Get("Content-Encoding") != "gzip" {
				return false
			}
			z, err := gzip.NewReader(bytes.NewReader(b))
			if err != nil {
				return false
			}
			plain, err := io.ReadAll(z)
			return err == nil && string(plain) == honest
		}},
		{"CutBody", testlab.CutBody, failed("unexpected EOF")},
		{"NotHTTP", testlab.NotHTTP, failed("malformed HTTP")},
		{"NotTLS", testlab.NotTLS, failed("first record does not look like a TLS handshake")},
		{"HandshakeRefused", testlab.HandshakeRefused, failed("remote error: tls: internal error")},
		{"ResetHandshake", testlab.ResetHandshake, failed(syscall.ECONNRESET.Error())},
		{"OldTLS", testlab.OldTLS, failed("protocol version not supported")},
		{"ClientCertificateOnly", testlab.ClientCertificateOnly, failed("certificate required")},
		{"EndlessHeader", testlab.EndlessHeader, failed("server response headers exceeded")},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := testlab.New(t)
			d := l.Domain("example.test", testlab.With{PolicyFault: c.fault})
			r, err := get(bounded(t), l, d.Policy)
			var body []byte
			if err == nil {
				body, err = io.ReadAll(r.Body)
				r.Body.Close()
			}
			if !c.is(r, body, err) {
				t.Errorf("got %.1000v, body %.1000q, error %v", r, body, err)
			}
			d.Policy.Behave(testlab.PolicyFine)
			if r, err := get(bounded(t), l, d.Policy); err != nil || r.StatusCode != 200 {
				t.Errorf("behaving again: %v, %v", r, err)
			}
		})
	}
}

func TestARedirectLeadsToAPolicyForThoseWhoFollow(t *testing.T) {
	l := testlab.New(t)
	d := l.Domain("example.test", testlab.With{PolicyFault: testlab.Redirect})
	c := client(l)
	c.CheckRedirect = nil
	r, err := c.Get("https://" + d.Policy.Name + testlab.WellKnown)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if body, err := io.ReadAll(r.Body); err != nil || string(body) != honest {
		t.Errorf("got %q, %v", body, err)
	}
}

func TestATLS11HostIsReachedByClientsThatAllowIt(t *testing.T) {
	l := testlab.New(t)
	d := l.Domain("example.test", testlab.With{PolicyFault: testlab.OldTLS})
	c := client(l)
	c.Transport.(*http.Transport).TLSClientConfig.MinVersion = tls.VersionTLS10
	r, err := c.Get("https://" + d.Policy.Name + testlab.WellKnown)
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.TLS.Version != tls.VersionTLS11 {
		t.Errorf("TLS version %x", r.TLS.Version)
	}
}

// TestStallsLastUntilTheClientGivesUp checks that each stall occurs at its
// stage, sends nothing more, and ends with the client.
func TestStallsLastUntilTheClientGivesUp(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault testlab.PolicyFault
		there func(h *testlab.PolicyHost) bool
	}{
		{"StallHandshake", testlab.StallHandshake, func(h *testlab.PolicyHost) bool { return h.Handshakes() == 1 && h.Asked() == 0 }},
		{"StallRequest", testlab.StallRequest, func(h *testlab.PolicyHost) bool { return h.Asked() == 1 }},
		{"StallBody", testlab.StallBody, func(h *testlab.PolicyHost) bool { return h.Asked() == 1 }},
		{"Endless", testlab.Endless, func(h *testlab.PolicyHost) bool { return h.Sent() > 1<<20 }},
		{"Drip", testlab.Drip, func(h *testlab.PolicyHost) bool { return h.Sent() >= 3 && h.Sent() < 1000 }},
		{"DripHeader", testlab.DripHeader, func(h *testlab.PolicyHost) bool { return h.Sent() >= 3 && h.Sent() < 1000 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := testlab.New(t)
			d := l.Domain("example.test", testlab.With{PolicyFault: c.fault})
			ctx, cancel := context.WithCancel(bounded(t))
			ended := make(chan error, 1)
			go func() {
				r, err := get(ctx, l, d.Policy)
				if err == nil {
					_, err = io.Copy(io.Discard, r.Body)
					r.Body.Close()
				}
				ended <- err
			}()
			if err := l.Await(bounded(t), func() bool { return c.there(d.Policy) }); err != nil {
				t.Fatalf("%v; handshakes %d, asked %d, sent %d", err, d.Policy.Handshakes(), d.Policy.Asked(), d.Policy.Sent())
			}
			select {
			case err := <-ended:
				t.Fatalf("the client finished early: %v", err)
			default:
			}
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("the client ended with %v", err)
			}
			if err := d.Policy.Server.Down(); err != nil { // returns when all connections have ended
				t.Error(err)
			}
		})
	}
}

func TestAHeldRequestIsAnsweredWhenTheGateIsOpened(t *testing.T) {
	l := testlab.New(t)
	d := l.Domain("example.test", testlab.With{})
	gate := d.Policy.Hold()
	got := make(chan error, 1)
	go func() {
		_, err := get(bounded(t), l, d.Policy)
		got <- err
	}()
	if err := l.Await(bounded(t), func() bool { return gate.Waiting() == 1 }); err != nil {
		t.Fatal(err)
	}
	gate.Open()
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func TestAServerThatIsDownRefusesConnectionsUntilItIsUp(t *testing.T) {
	l := testlab.New(t)
	d := l.Domain("example.test", testlab.With{})
	if err := d.Policy.Server.Down(); err != nil {
		t.Fatal(err)
	}
	if _, err := get(bounded(t), l, d.Policy); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("while down: %v", err)
	}
	if err := d.Policy.Server.Up(); err != nil {
		t.Fatal(err)
	}
	if _, err := get(bounded(t), l, d.Policy); err != nil {
		t.Errorf("when up again: %v", err)
	}
}

func TestHostsOfOneServerAreToldApartBySNI(t *testing.T) {
	l := testlab.New(t)
	s := l.PolicyServer("")
	one := l.Domain("one.test", testlab.With{Server: s, PolicyFault: testlab.Status500})
	two := l.Domain("two.test", testlab.With{Server: s})
	s.Fallback(func(name string) *testlab.PolicyHost {
		if name != "mta-sts.made.test" {
			return nil
		}
		h := s.NewHost(name)
		if err := h.Present(testlab.CertGood); err != nil {
			return nil
		}
		h.SetPolicy(honest)
		return h
	})
	if r, err := get(bounded(t), l, one.Policy); err != nil || r.StatusCode != 500 {
		t.Errorf("one: %v, %v", r, err)
	}
	if r, err := get(bounded(t), l, two.Policy); err != nil || r.StatusCode != 200 {
		t.Errorf("two: %v, %v", r, err)
	}
	l.Route("mta-sts.made.test", 443, s.Real)
	l.Route("mta-sts.unknown.test", 443, s.Real)
	if r, err := get(bounded(t), l, s.NewHost("mta-sts.made.test")); err != nil || r.StatusCode != 200 {
		t.Errorf("made: %v, %v", r, err)
	}
	if _, err := get(bounded(t), l, s.NewHost("mta-sts.unknown.test")); err == nil {
		t.Error("an unknown host answered")
	}
	if s.Connections() != 4 || one.Policy.Asked() != 1 || two.Policy.Asked() != 1 {
		t.Errorf("%d connections, %d and %d requests", s.Connections(), one.Policy.Asked(), two.Policy.Asked())
	}
}

func TestDialLeadsToHostsByAddressAndNowhereElse(t *testing.T) {
	l := testlab.New(t)
	s := l.PolicyServer("")
	s.AlsoAt("2001:db8::1")
	for _, addr := range []string{net.JoinHostPort(s.Addr.String(), "443"), "[2001:db8::1]:443"} {
		c, err := l.Dial(bounded(t), "tcp", addr)
		if err != nil {
			t.Errorf("%s: %v", addr, err)
			continue
		}
		c.Close()
	}
	for _, addr := range []string{"192.0.2.1:443", net.JoinHostPort(s.Addr.String(), "25")} {
		if _, err := l.Dial(bounded(t), "tcp", addr); err == nil {
			t.Errorf("%s: Dial left the lab", addr)
		}
	}
}

func TestTheProxyLeadsToPolicyHostsAndNowhereElse(t *testing.T) {
	l := testlab.New(t)
	d := l.Domain("example.test", testlab.With{})
	proxy, err := url.Parse(l.Proxy.URL())
	if err != nil {
		t.Fatal(err)
	}
	c := client(l)
	tr := c.Transport.(*http.Transport)
	tr.DialContext, tr.Proxy = nil, http.ProxyURL(proxy)
	tr.TLSClientConfig.ServerName = d.Policy.Name
	byAddress := net.JoinHostPort(d.Policy.Server.Addr.String(), "443")
	for _, host := range []string{d.Policy.Name, byAddress} {
		r, err := c.Get("https://" + host + testlab.WellKnown)
		if err != nil || r.StatusCode != 200 {
			t.Errorf("%s: %v, %v", host, r, err)
		}
	}
	for _, u := range []string{"https://192.0.2.1/", "http://" + d.Policy.Name + "/"} {
		if r, err := c.Get(u); err == nil && r.StatusCode != 403 {
			t.Errorf("%s: %v", u, r)
		}
	}
	if l.Proxy.Connected() != 2 || l.Proxy.Refused() != 2 {
		t.Errorf("%d connected, %d refused; want 2 and 2", l.Proxy.Connected(), l.Proxy.Refused())
	}
	if got := l.Proxy.Targets(); len(got) != 4 || got[1] != byAddress {
		t.Errorf("targets %q", got)
	}
}

// TestClosingEndsWhateverStalls closes a lab while clients wait at every place
// that can stall.
func TestClosingEndsWhateverStalls(t *testing.T) {
	l, err := testlab.Start(testlab.Options{})
	if err != nil {
		t.Fatal(err)
	}
	lt := &testlab.T{Lab: l}
	var hosts []*testlab.PolicyHost
	for i, f := range []testlab.PolicyFault{testlab.StallHandshake, testlab.StallRequest, testlab.StallBody,
		testlab.Drip, testlab.DripHeader, testlab.Endless, testlab.EndlessHeader, testlab.PolicyFine} {
		d, err := l.Domain(fmt.Sprintf("d%d.test", i), testlab.With{PolicyFault: f, MailFault: testlab.GreetingStall})
		if err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, d.Policy)
	}
	gate := hosts[len(hosts)-1].Hold()
	l.DNS.Hold("held.test", "")
	ended := make(chan struct{}, len(hosts)+2)
	for _, h := range hosts {
		// A client that connects and never reads.
		c, err := l.Dial(bounded(t), "tcp", net.JoinHostPort(h.Name, "443"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		go func() {
			s := tls.Client(c, &tls.Config{RootCAs: l.CA.Pool(), ServerName: h.Name})
			fmt.Fprintf(s, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", testlab.WellKnown, h.Name)
			ended <- struct{}{}
		}()
	}
	for _, network := range []string{"udp", "tcp"} {
		c, err := net.Dial(network, l.DNS.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		out, _ := question("held.test", 1).Pack()
		if network == "tcp" {
			out = append([]byte{0, byte(len(out))}, out...)
		}
		c.Write(out)
	}
	there := func() bool {
		for i, h := range hosts {
			if i == 0 && h.Handshakes() == 0 || i > 0 && h.Asked() == 0 {
				return false
			}
		}
		return gate.Waiting() == 1 && l.DNS.Total() == 2
	}
	if err := lt.Await(bounded(t), there); err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	go func() { closed <- l.Close() }()
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(within):
		t.Fatal("Close does not return")
	}
	for range hosts {
		<-ended
	}
}
