package policy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// through sets a client up that goes through the proxy and believes that it
// is on the internet.
func through(proxy string) func(*policy.Config) {
	return func(c *policy.Config) {
		c.AllowPrivate = false
		c.Dial = nil // nothing is dialed but the proxy
		c.Proxy = func(*url.URL) (*url.URL, error) { return url.Parse(proxy) }
	}
}

// onTheInternet gives the domain's policy host public addresses, of which the
// last one leads somewhere.
func onTheInternet(lab *testlab.T, d *testlab.Domain, addrs ...string) {
	var records []string
	for _, addr := range addrs {
		records = append(records, fmt.Sprintf("mta-sts.%s. 60 IN A %s", d.Name, addr))
	}
	lab.Set(records...)
	lab.Route(addrs[len(addrs)-1], 443, d.Policy.Server.Real)
}

func TestAProxyIsToldTheAddressThatWasChecked(t *testing.T) {
	lab := testlab.New(t)
	d := lab.Domain("example.test", testlab.With{NoMail: true})
	onTheInternet(lab, d, "93.184.215.14", "93.184.215.15")
	c := newClient(t, lab, through(lab.Proxy.URL()))
	f, err := c.Fetch(t.Context(), "example.test", nil)
	if err != nil || f.Addr.String() != "93.184.215.15" {
		t.Errorf("got %+v, %v", f, err)
	}
	if got, want := lab.Proxy.Targets(), []string{"93.184.215.14:443", "93.184.215.15:443"}; !slices.Equal(got, want) {
		t.Errorf("the proxy was asked for %q; want %q", got, want)
	}
	// The certificate is still that of the policy host's name.
	if err := d.Policy.Present(testlab.CertWrongName); err != nil {
		t.Fatal(err)
	}
	_, err = c.Fetch(t.Context(), "example.test", nil)
	wantError(t, err, "example.test", policy.ResultWebPKI, policy.ErrCertName)
}

func TestAProxyIsNotAskedForSpecialAddresses(t *testing.T) {
	lab := testlab.New(t)
	lab.Domain("example.test", testlab.With{NoMail: true})
	_, err := newClient(t, lab, through(lab.Proxy.URL())).Fetch(t.Context(), "example.test", nil)
	wantError(t, err, "example.test", policy.ResultFetch, policy.ErrAddressRefused)
	if got := lab.Proxy.Targets(); len(got) > 0 {
		t.Errorf("the proxy was asked for %q", got)
	}
}

func TestProxySettingsComeFromTheEnvironment(t *testing.T) {
	lab := testlab.New(t)
	for _, name := range []string{"with.test", "without.test"} {
		lab.Domain(name, testlab.With{NoMail: true})
	}
	t.Setenv("HTTPS_PROXY", lab.Proxy.URL())
	t.Setenv("NO_PROXY", "mta-sts.without.test")
	proxy, named, err := policy.ProxyFromEnvironment()
	if err != nil || named != lab.Proxy.URL() {
		t.Fatalf("got %q, %v", named, err)
	}
	c := newClient(t, lab, func(c *policy.Config) {
		c.Proxy, c.Dial = proxy, func(ctx context.Context, network, address string) (net.Conn, error) {
			if address == lab.Proxy.Addr {
				return new(net.Dialer).DialContext(ctx, network, address)
			}
			return lab.Dial(ctx, network, address)
		}
	})
	for _, name := range []string{"with.test", "without.test"} {
		if _, err := c.Fetch(t.Context(), name, nil); err != nil {
			t.Error(err)
		}
	}
	if n := lab.Proxy.Connected(); n != 1 {
		t.Errorf("%d connections through the proxy", n)
	}
}

func TestAnInvalidProxyVariableIsAnErrorWithoutItsValue(t *testing.T) {
	for _, value := range []string{
		"http://user:50%off@127.0.0.1:3199", "user:50%off@127.0.0.1:3199", "::garbage", "http://", "http://:3199",
		"http://user:50off@proxy.test:port", "http://user:50off@proxy.test:65536", "http://user:50off@proxy.test:0",
		"socks5://user:50off@127.0.0.1:3199", "ftp://user:50off@proxy.test",
	} {
		for _, variable := range []string{"HTTPS_PROXY", "https_proxy"} {
			t.Run(variable+"="+value, func(t *testing.T) {
				t.Setenv("https_proxy", "")
				t.Setenv("HTTPS_PROXY", "http://unused.test:3128")
				t.Setenv(variable, value)
				proxy, named, err := policy.ProxyFromEnvironment()
				if err == nil || proxy != nil || named != "" {
					t.Fatalf("got %q, %v", named, err)
				}
				if !strings.Contains(err.Error(), variable) || strings.Contains(err.Error(), "off") || strings.Contains(err.Error(), "user") {
					t.Errorf("%v", err)
				}
			})
		}
	}
}

func TestTheProxyIsNamedWithoutItsCredentials(t *testing.T) {
	t.Setenv("https_proxy", "")
	for value, want := range map[string]string{
		"":                                    "",
		"http://proxy.test:3128":              "http://proxy.test:3128",
		"proxy.test:3128":                     "http://proxy.test:3128",
		"192.0.2.1:3128":                      "http://192.0.2.1:3128",
		"HTTPS://user:50%25off@[::1]:3128/":   "https://[::1]:3128",
		"user:50off@proxy.test":               "http://proxy.test",
		"http://token@proxy.test:3128/?a=off": "http://proxy.test:3128",
	} {
		t.Setenv("HTTPS_PROXY", value)
		if proxy, named, err := policy.ProxyFromEnvironment(); err != nil || proxy == nil || named != want {
			t.Errorf("%s: got %q, %v", value, named, err)
		}
	}
}

// proxyThat listens as a proxy that does this with each connection, once the
// request was read.
func proxyThat(t *testing.T, config *tls.Config, do func(conn net.Conn, r *http.Request)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr = l.Addr().String()
	if config != nil {
		l = tls.NewListener(l, config)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if r, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
				do(conn, r)
			}
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return addr
}

func TestAFailingProxyIsNamedInTheError(t *testing.T) {
	lab := testlab.New(t)
	d := lab.Domain("example.test", testlab.With{NoMail: true})
	onTheInternet(lab, d, "93.184.215.14")
	for _, tt := range []struct {
		answer, words string
		want          error
	}{
		{"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "407", policy.ErrProxy},
		{"220 smtp.example.test ESMTP\r\n", "malformed", policy.ErrProxy},
		{"", "EOF", policy.ErrProxy},
		{"HTTP/1.1 200 OK\r\n" + strings.Repeat("X: y\r\n", policy.MaxHeader), "malformed", policy.ErrProxy},
		{"HTTP/1.1 403 Forbidden\r\n\r\n", "403", policy.ErrConnect},
		{"HTTP/1.1 502 Bad Gateway\r\n\r\n", "502", policy.ErrConnect},
		{"HTTP/1.1 302 Found\r\nLocation: http://evil.test/\r\n\r\n", "302", policy.ErrConnect},
	} {
		addr := proxyThat(t, nil, func(conn net.Conn, r *http.Request) { io.WriteString(conn, tt.answer) })
		_, err := newClient(t, lab, through("http://user:secret@"+addr)).Fetch(t.Context(), "example.test", nil)
		wantError(t, err, "example.test", policy.ResultFetch, tt.want)
		if !strings.Contains(err.Error(), tt.words) || !strings.Contains(err.Error(), addr) || strings.Contains(err.Error(), "secret") {
			t.Errorf("got %v; want something of %s", err, tt.words)
		}
		if policy.OurFault(err) != (tt.want == policy.ErrProxy) {
			t.Errorf("OurFault(%v) is %v", err, policy.OurFault(err))
		}
	}
	_, err := newClient(t, lab, through("http://127.0.0.1:1")).Fetch(t.Context(), "example.test", nil)
	wantError(t, err, "example.test", policy.ResultFetch, policy.ErrProxy)
}

func TestRFC8461_3_3_AProxyThatFallsSilentEndsTheFetchInTime(t *testing.T) {
	lab := testlab.New(t)
	d := lab.Domain("example.test", testlab.With{NoMail: true})
	onTheInternet(lab, d, "93.184.215.14")
	addr := proxyThat(t, nil, func(conn net.Conn, r *http.Request) { io.Copy(io.Discard, conn) })
	c := newClient(t, lab, func(c *policy.Config) {
		through("http://" + addr)(c)
		c.Timeout = short
	})
	start := time.Now()
	_, err := c.Fetch(t.Context(), "example.test", nil)
	wantError(t, err, "example.test", policy.ResultFetch, policy.ErrTimeout)
	if took := time.Since(start); took > 20*short {
		t.Errorf("it took %v", took)
	}
}

func TestAProxyMaySpeakTLSAndWantCredentials(t *testing.T) {
	lab := testlab.New(t)
	d := lab.Domain("example.test", testlab.With{NoMail: true})
	onTheInternet(lab, d, "93.184.215.14")
	cert, err := lab.Issue(testlab.CertGood, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	credentials := make(chan string, 1)
	addr := proxyThat(t, &tls.Config{Certificates: []tls.Certificate{cert}}, func(conn net.Conn, r *http.Request) {
		credentials <- r.Header.Get("Proxy-Authorization")
		to, err := net.Dial("tcp", d.Policy.Server.Real)
		if err != nil {
			return
		}
		defer to.Close()
		io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
		go io.Copy(to, conn)
		io.Copy(conn, to)
	})
	f, err := newClient(t, lab, through("https://user:secret@"+addr)).Fetch(t.Context(), "example.test", nil)
	if err != nil || f.Addr.String() != "93.184.215.14" {
		t.Errorf("got %+v, %v", f, err)
	}
	if got := <-credentials; got != "Basic dXNlcjpzZWNyZXQ=" {
		t.Errorf("credentials %q", got)
	}
}

func TestAProxyThatDoesNotProveItsNameGetsNoCredentials(t *testing.T) {
	lab := testlab.New(t)
	d := lab.Domain("example.test", testlab.With{NoMail: true})
	onTheInternet(lab, d, "93.184.215.14")
	for _, kind := range []testlab.CertKind{testlab.CertWrongName, testlab.CertOtherCA, testlab.CertExpired} {
		cert, err := lab.Issue(kind, "127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		asked := make(chan *http.Request, 1)
		addr := proxyThat(t, &tls.Config{Certificates: []tls.Certificate{cert}}, func(_ net.Conn, r *http.Request) { asked <- r })
		_, err = newClient(t, lab, through("https://user:secret@"+addr)).Fetch(t.Context(), "example.test", nil)
		wantError(t, err, "example.test", policy.ResultFetch, policy.ErrProxy)
		select {
		case r := <-asked:
			t.Errorf("certificate of kind %d: the proxy was asked for %s, with the header %v", kind, r.Host, r.Header)
		default:
		}
	}
}

// A lateConn is a proxy's connection whose context ends just as the answer
// arrives.
type lateConn struct {
	net.Conn // nil: nothing else may be called
	end      context.CancelFunc
	spoilt   chan struct{} // closed by Close
	once     sync.Once
}

func (c *lateConn) Write(b []byte) (int, error) { return len(b), nil }

func (c *lateConn) Read(b []byte) (int, error) {
	c.end()
	<-c.spoilt
	return copy(b, "HTTP/1.1 200 OK\r\n\r\n"), nil
}

func (c *lateConn) Close() error { c.once.Do(func() { close(c.spoilt) }); return nil }

func TestATunnelOpenedAfterTheTimeoutIsNotUsed(t *testing.T) {
	ctx, end := context.WithCancel(t.Context())
	late := &lateConn{end: end, spoilt: make(chan struct{})}
	c, err := policy.NewClient(policy.Config{
		Resolver: at(netip.MustParseAddr("93.184.215.14")), Roots: x509.NewCertPool(), Timeout: time.Minute,
		Proxy: func(*url.URL) (*url.URL, error) { return url.Parse("http://proxy.test:3128") },
		Dial:  func(context.Context, string, string) (net.Conn, error) { return late, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Fetch(ctx, "example.test", nil)
	wantError(t, err, "example.test", policy.ResultFetch, context.Canceled)
}
