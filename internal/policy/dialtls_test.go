package policy_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

func TestAHostIsConnectedToByItsNameAndItsCertificateIsCheckedOnDemand(t *testing.T) {
	lab := testlab.New(t)
	good := lab.Domain("good.test", testlab.With{NoMail: true})
	lab.Domain("wrong.test", testlab.With{NoMail: true, PolicyCert: testlab.CertWrongName})
	lab.Domain("absent.test", testlab.With{NoMail: true, NoPolicyHost: true})
	for _, tt := range []struct {
		host   string
		verify bool
		want   error
	}{
		{"mta-sts.good.test", true, nil},
		{"mta-sts.good.test", false, nil},
		{"mta-sts.wrong.test", true, policy.ErrCertName},
		{"mta-sts.wrong.test", false, nil},
		{"mta-sts.absent.test", true, policy.ErrHostAbsent},
		{"127.0.0.1", false, policy.ErrHostAbsent},
		{"no name", false, policy.ErrHostAbsent},
	} {
		conn, err := newClient(t, lab, nil).DialTLS(t.Context(), tt.host, tt.verify)
		if !errors.Is(err, tt.want) {
			t.Errorf("%s, verify %t: got %v; want %v", tt.host, tt.verify, err, tt.want)
		}
		if err == nil {
			conn.Close()
		}
	}
	if good.Policy.Handshakes() != 2 {
		t.Errorf("the good host had %d handshakes", good.Policy.Handshakes())
	}
}

func TestAConnectionToAHostUsesTheProxy(t *testing.T) {
	lab := testlab.New(t)
	d := lab.Domain("example.test", testlab.With{NoMail: true})
	client := newClient(t, lab, func(c *policy.Config) {
		c.Proxy = func(*url.URL) (*url.URL, error) { return url.Parse(lab.Proxy.URL()) }
		c.Dial = nil
	})
	transport := &http.Transport{DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return client.DialTLS(ctx, "mta-sts.example.test", true)
	}, DisableKeepAlives: true}
	response, err := (&http.Client{Transport: transport}).Get(policy.URL("example.test"))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if text, err := io.ReadAll(response.Body); err != nil || len(text) == 0 || d.Policy.Asked() != 1 || lab.Proxy.Connected() != 1 {
		t.Errorf("got %q, %v; %d requests, %d through the proxy", text, err, d.Policy.Asked(), lab.Proxy.Connected())
	}
}

// A rebinding is a resolver whose name has a public address when it is first asked
// for, and a loopback one afterwards.
type rebinding struct {
	mu    sync.Mutex
	asked int
}

func (r *rebinding) Query(_ context.Context, name string, qtype resolver.Type) (*resolver.Answer, error) {
	answer := &resolver.Answer{Name: name}
	if qtype == resolver.TypeA {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.asked++; r.asked == 1 {
			answer.Addrs = []netip.Addr{netip.MustParseAddr("93.184.215.14")}
		} else {
			answer.Addrs = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
		}
	}
	return answer, nil
}

func TestTheAddressThatWasCheckedIsDialled(t *testing.T) {
	lab := testlab.New(t)
	var dialled []string
	client := newClient(t, lab, func(c *policy.Config) {
		c.Resolver, c.AllowPrivate = new(rebinding), false
		c.Dial = func(_ context.Context, _, address string) (net.Conn, error) {
			dialled = append(dialled, address)
			return nil, io.EOF
		}
	})
	if _, err := client.DialTLS(t.Context(), "rebinding.test", false); !errors.Is(err, policy.ErrConnect) {
		t.Errorf("the first time: %v", err)
	}
	if _, err := client.DialTLS(t.Context(), "rebinding.test", false); !errors.Is(err, policy.ErrAddressRefused) {
		t.Errorf("the second time: %v", err)
	}
	if len(dialled) != 1 || dialled[0] != "93.184.215.14:443" {
		t.Errorf("dialled %q", dialled)
	}
}
