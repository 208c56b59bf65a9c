package probe_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/explain"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/probe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

// A pipes is an internet in which every host is one function, without DANE.
type pipes struct {
	host  func(net.Conn)
	addrs []netip.Addr // of each host

	talking sync.WaitGroup // hosts
}

func (p *pipes) Query(_ context.Context, _ string, qtype resolver.Type) (*resolver.Answer, error) {
	if qtype == resolver.TypeA {
		return &resolver.Answer{Addrs: p.addrs}, nil
	}
	return &resolver.Answer{}, nil
}
func (p *pipes) Probe(context.Context) dane.Probe { return dane.Probe{} }
func (p *pipes) Look(_ context.Context, n dane.NextHop, _ func(string) bool) *dane.Report {
	return &dane.Report{Finding: dane.Finding{State: dane.UnsignedMX}, Hosts: []*dane.Host{{MXHost: dane.MXHost{Name: n.Host}, State: dane.HostInsecure}}}
}
func (p *pipes) MX(_ context.Context, domain string) (*dane.MXSet, error) {
	return &dane.MXSet{Hosts: []dane.MXHost{{Name: "mx." + domain}}}, nil
}
func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	if p.host == nil { // packets are dropped
		<-ctx.Done()
		return nil, ctx.Err()
	}
	ours, theirs := net.Pipe()
	p.talking.Go(func() {
		defer theirs.Close()
		p.host(theirs)
	})
	return ours, nil
}

func (p *pipes) prober(roots *x509.CertPool) *probe.Prober {
	if p.addrs == nil {
		p.addrs = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	}
	maps := mta.Builtin()
	return probe.New(probe.Options{
		Resolver: p, NextHops: p, Dial: p.dial, Roots: roots, EHLO: "relay.test", Map: maps[mta.Find(maps, "postfix-tlsrpt")],
		Policy: func(_ context.Context, domain string) explain.Policy {
			return explain.Policy{State: tlsmap.PolicyEnforced, Policy: &policy.Policy{Mode: policy.ModeEnforce, MX: []string{"mx." + domain}}}
		},
	})
}

// hears reads commands up to and with the one that begins so.
func hears(c net.Conn, command string) {
	var line []byte
	b := make([]byte, 1)
	for {
		if _, err := c.Read(b); err != nil {
			runtime.Goexit()
		}
		if line = append(line, b[0]); b[0] == '\n' {
			if strings.HasPrefix(string(line), command) {
				return
			}
			line = nil
		}
	}
}

// upTo greets, offers STARTTLS and replies to it.
func upTo(c net.Conn, reply string) {
	io.WriteString(c, "220 mx ESMTP\r\n")
	hears(c, "EHLO relay.test\r\n")
	io.WriteString(c, "250-mx\r\n250 STARTTLS\r\n")
	hears(c, "STARTTLS")
	io.WriteString(c, reply)
}

// forever writes until the other side has gone.
func forever(c net.Conn, s string) {
	for {
		if _, err := io.WriteString(c, s); err != nil {
			return
		}
	}
}

// flood writes, and reads what the other side writes meanwhile.
func flood(c net.Conn, s string) {
	go io.Copy(io.Discard, c)
	forever(c, s)
}

// drip writes a byte now and then.
func drip(c net.Conn, s string) {
	for {
		for i := range s {
			if _, err := io.WriteString(c, s[i:i+1]); err != nil {
				return
			}
			time.Sleep(time.Second)
		}
	}
}

const bound = time.Minute + 5*time.Second

func TestAHostileHostCostsAMinuteAtMost(t *testing.T) {
	for name, c := range map[string]struct {
		host   func(net.Conn)
		want   probe.Verdict
		result tlsrpt.ResultType
		why    string
	}{
		"packets that are dropped":            {nil, open, "", "no connection: no answer in time"},
		"no greeting":                         {func(c net.Conn) { io.Copy(io.Discard, c) }, open, "", "no greeting: no answer in time"},
		"a greeting in drips":                 {func(c net.Conn) { drip(c, "220-hello\r\n") }, open, "", "no greeting: no answer in time"},
		"a greeting without an end":           {func(c net.Conn) { forever(c, "220-hello\r\n") }, no, "", "more than 100 lines"},
		"a line without an end":               {func(c net.Conn) { forever(c, "220-hello") }, no, "", "more than 2048 bytes"},
		"another protocol":                    {func(c net.Conn) { forever(c, "SSH-2.0-OpenSSH\r\n") }, no, "", "not a reply of SMTP"},
		"codes that differ":                   {func(c net.Conn) { io.WriteString(c, "220-a\r\n250 b\r\n") }, no, "", "not a reply of SMTP"},
		"a negative code":                     {func(c net.Conn) { io.WriteString(c, "-22 a\r\n") }, no, "", "not a reply of SMTP"},
		"a hang-up":                           {func(c net.Conn) {}, no, "", "no greeting"},
		"no reply to EHLO":                    {func(c net.Conn) { io.WriteString(c, "220 mx\r\n"); io.Copy(io.Discard, c) }, open, "", "no reply to EHLO: no answer in time"},
		"a reply to EHLO without an end":      {func(c net.Conn) { io.WriteString(c, "220 mx\r\n"); hears(c, "EHLO"); forever(c, "250-SIZE\r\n") }, no, "", "more than 100 lines"},
		"a reply to STARTTLS without an end":  {func(c net.Conn) { upTo(c, ""); forever(c, "220-go\r\n") }, no, tlsrpt.ValidationFailure, "more than 100 lines"},
		"STARTTLS injection":                  {func(c net.Conn) { upTo(c, "220 go\r\n250 injected\r\n"); io.Copy(io.Discard, c) }, no, tlsrpt.ValidationFailure, "in clear after"},
		"STARTTLS injection a moment later":   {func(c net.Conn) { upTo(c, "220 go\r\n"); flood(c, "250 injected\r\n") }, no, tlsrpt.ValidationFailure, "handshake fails"},
		"no TLS after STARTTLS":               {func(c net.Conn) { upTo(c, "220 go\r\n"); io.Copy(io.Discard, c) }, open, "", "no answer in time"},
		"a TLS record that never ends":        {func(c net.Conn) { upTo(c, "220 go\r\n"); io.WriteString(c, "\x16\x03\x03\x40\x00"); drip(c, "\x02") }, open, "", "no answer in time"},
		"a TLS record that is too long":       {func(c net.Conn) { upTo(c, "220 go\r\n"); flood(c, "\x16\x03\x03\xff\xff\x02") }, no, tlsrpt.ValidationFailure, "handshake fails"},
		"a server hello of the largest size":  {func(c net.Conn) { upTo(c, "220 go\r\n"); flood(c, "\x16\x03\x03\x00\x04\x02\xff\xff\xff") }, no, tlsrpt.ValidationFailure, "handshake fails"},
		"alerts that only warn, without end":  {func(c net.Conn) { upTo(c, "220 go\r\n"); flood(c, "\x15\x03\x03\x00\x02\x01\x5a") }, no, tlsrpt.ValidationFailure, "handshake fails"},
		"empty TLS records, without end":      {func(c net.Conn) { upTo(c, "220 go\r\n"); flood(c, "\x16\x03\x03\x00\x00") }, no, tlsrpt.ValidationFailure, "handshake fails"},
		"escapes for the terminal":            {func(c net.Conn) { io.WriteString(c, "554 \x1b[2J\xe2\x80\xae\r\n"); io.Copy(io.Discard, c) }, no, "", `554 \x1b[2J\u{202e}`},
		"a reply to STARTTLS of another kind": {func(c net.Conn) { upTo(c, "250 no\r\n"); io.Copy(io.Discard, c) }, no, tlsrpt.StartTLSNotSupported, "250 no"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began, p := time.Now(), &pipes{host: c.host}
				defer p.talking.Wait()
				r := p.prober(x509.NewCertPool()).Domain(t.Context(), "hostile.test")
				if took := time.Since(began); took > bound {
					t.Errorf("it took %s", took)
				}
				if r.Verdict != c.want || !strings.Contains(r.Reason, c.why) || !strings.Contains(r.Reason, string(c.result)) {
					t.Errorf("%s because %q; want %s because %s %s", r.Verdict, r.Reason, c.want, c.result, c.why)
				}
				if len(r.Reason) > 500 || strings.ContainsAny(r.Reason, "\x1b\n\u202e") {
					t.Errorf("the reason is not one printable line: %q", r.Reason)
				}
			})
		})
	}
}

func TestAHostThatKeepsTheSessionAfterQUITCostsTwoSeconds(t *testing.T) {
	ca, err := testlab.NewCA("Root")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue(testlab.CertGood, "mx.slow.test")
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		p := &pipes{host: func(c net.Conn) {
			upTo(c, "220 go\r\n")
			s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}, Time: func() time.Time { return time.Time{} }})
			io.Copy(io.Discard, s)
		}}
		began := time.Now()
		r := p.prober(ca.Pool()).Domain(t.Context(), "slow.test")
		// The certificate is not valid yet by the clock of the bubble, which is in 2000.
		if took := time.Since(began); took > 3*time.Second || !strings.Contains(r.Reason, "not valid before") {
			t.Errorf("%s because %s, after %s", r.Verdict, r.Reason, took)
		}
	})
}

func TestAllAddressesOfATarpitTogetherCostAMinuteAtMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dialled atomic.Int32
		p := &pipes{host: func(c net.Conn) { dialled.Add(1); io.Copy(io.Discard, c) }}
		for i := range 32 {
			p.addrs = append(p.addrs, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
		}
		began := time.Now()
		r := p.prober(x509.NewCertPool()).Domain(t.Context(), "tarpit.test")
		if took := time.Since(began); took > bound || r.Verdict != open {
			t.Errorf("%s after %s", r.Verdict, took)
		}
		// Hosts that refuse cost nothing, but not all of them are asked.
		dialled.Store(0)
		closed := &pipes{addrs: p.addrs, host: func(c net.Conn) { dialled.Add(1); io.WriteString(c, "421 no\r\n") }}
		if r := closed.prober(x509.NewCertPool()).Domain(t.Context(), "closed.test"); r.Verdict != no || dialled.Load() != 4 {
			t.Errorf("%s, %d addresses tried", r.Verdict, dialled.Load())
		}
	})
}

func TestAnAddressWithoutARouteHidesNoRefusal(t *testing.T) {
	p := &pipes{addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}}
	prober := p.prober(x509.NewCertPool())
	prober.Dial = func(_ context.Context, _, address string) (net.Conn, error) {
		if strings.HasPrefix(address, "[") {
			return nil, syscall.ENETUNREACH
		}
		return nil, syscall.ECONNREFUSED
	}
	if r := prober.Domain(t.Context(), "a.test"); r.Verdict != no || !strings.Contains(r.Reason, "refused") {
		t.Errorf("%s because %s", r.Verdict, r.Reason)
	}
}

func TestSessionsArePacedAndOneAtAnAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most, all atomic.Int32
		p := &pipes{host: func(c net.Conn) {
			for n := now.Add(1); n > most.Load(); {
				most.Store(n)
			}
			all.Add(1)
			time.Sleep(time.Second)
			now.Add(-1)
			io.WriteString(c, "421 later\r\n")
		}}
		var domains []string
		for i := range 40 {
			domains = append(domains, fmt.Sprintf("d%d.test", i))
		}
		began := time.Now()
		if err := p.prober(x509.NewCertPool()).Domains(t.Context(), domains, func(*probe.Result) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); most.Load() != 1 || all.Load() != 40 || took < 40*time.Second {
			t.Errorf("%d sessions, %d at once at one address, in %s", all.Load(), most.Load(), took)
		}
	})
}

func TestTheEndOfTheContextEndsAProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		p := (&pipes{host: func(c net.Conn) { io.Copy(io.Discard, c) }}).prober(x509.NewCertPool())
		began := time.Now()
		stop := errors.New("stop")
		var results int
		p.Domains(ctx, []string{"a.test", "b.test"}, func(r *probe.Result) error {
			results++
			if r.Verdict != open {
				t.Errorf("%s because %s", r.Verdict, r.Reason)
			}
			return nil
		})
		if took := time.Since(began); took > 2*time.Second || results != 2 {
			t.Errorf("%d results after %s", results, took)
		}
		if err := p.Domains(t.Context(), []string{"a.test", "b.test"}, func(*probe.Result) error { return stop }); !errors.Is(err, stop) {
			t.Errorf("%v", err)
		}
	})
}
