package probe_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/probe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

func TestWhatATLSReportSaysOfAHostThatThePolicyLists(t *testing.T) {
	lab := newLab(t)
	for _, c := range cases {
		var want tlsrpt.ResultType
		switch {
		case len(c.hosts) > 0 || c.with.NoPolicy || strings.Contains(c.domain, "signed") || c.name == "exempt" || c.nextHop != "":
			continue
		case c.with.MailFault == testlab.GreetingRefused || c.name == "nothing listens":
			want = "nothing"
		case c.result != "":
			want = c.result
		case c.with.MailCert == testlab.CertSelfSigned:
			want = tlsrpt.CertificateNotTrusted
		case c.with.MailFault == testlab.NoSTARTTLS:
			want = tlsrpt.StartTLSNotSupported
		}
		t.Run(c.name, func(t *testing.T) {
			d := lab.Domain("listed."+c.domain, c.with)
			if c.name == "nothing listens" {
				d.Mail[0].Down()
			}
			p := probe.New(options(t, lab, "postfix-tlsrpt"))
			for range 2 {
				got := p.Listed(t.Context(), d.Mail[0].Name)
				switch {
				case got == nil:
					if want != "nothing" {
						t.Errorf("nothing, want %q", want)
					}
				case got.Result != want:
					t.Errorf("got %+v, want %q", got, want)
				case want != "" && (got.MXHost != d.Mail[0].Name || got.ReceivingIP != d.Mail[0].Addr || got.Reason == ""):
					t.Errorf("got %+v", got)
				}
			}
			if n := d.Mail[0].Connections(); n > 1 || d.Mail[0].Asked("MAIL") > 0 {
				t.Errorf("%d sessions", n)
			}
		})
	}
}

// A host may refuse EHLO because it does not like our name.
func TestARefusedEHLOIsNotReportedAsAMissingSTARTTLS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pipes{host: func(c net.Conn) {
			io.WriteString(c, "220 mx ESMTP\r\n")
			hears(c, "EHLO relay.test\r\n")
			io.WriteString(c, "550 5.7.1 Go away\r\n")
			hears(c, "QUIT")
		}}
		if got := p.prober(nil).Listed(t.Context(), "mx.test"); got != nil {
			t.Errorf("got %+v", got)
		}
		p.talking.Wait()
	})
}

func TestAProbeOfPublicHostsConnectsToNoOtherAddressAndOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pipes{}
		for _, a := range []string{"127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fe80::1", "::ffff:192.168.0.1", "64:ff9b::7f00:1"} {
			p.addrs = append(p.addrs, netip.MustParseAddr(a))
		}
		var mu sync.Mutex
		var dialled []string
		begun := time.Now()
		o := probe.Options{Resolver: p, EHLO: "relay.test", PublicOnly: true, PerSecond: 1, Dial: func(_ context.Context, _, address string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			dialled = append(dialled, fmt.Sprint(address, " ", time.Since(begun)))
			return nil, syscall.ECONNREFUSED
		}}
		prober := probe.New(o)
		for i := range p.addrs {
			prober.Resolver = &pipes{addrs: p.addrs[i : i+1]}
			if got := prober.Listed(t.Context(), fmt.Sprintf("mx%d.test", i)); got != nil || len(dialled) > 0 {
				t.Errorf("%s: got %+v, dialled %q", p.addrs[i], got, dialled)
			}
		}
		public := &pipes{addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("93.184.215.14"), netip.MustParseAddr("2606:4700::1")}}
		prober.Resolver = public
		if got := prober.Listed(t.Context(), "mx.test"); got != nil {
			t.Errorf("got %+v", got)
		}
		if got, want := strings.Join(dialled, ", "), "93.184.215.14:25 0s, [2606:4700::1]:25 1s"; got != want {
			t.Errorf("dialled %s, want %s", got, want)
		}
	})
}

// A broken is a resolver that fails.
type broken struct{}

func (broken) Query(context.Context, string, resolver.Type) (*resolver.Answer, error) {
	return nil, errors.New("no descriptors")
}

func TestAFaultOfOursIsNoResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, dial := range map[string]error{"no route": syscall.EHOSTUNREACH, "no descriptors": syscall.EMFILE, "refused": syscall.ECONNREFUSED, "time": syscall.ETIMEDOUT} {
			o := probe.Options{Resolver: &pipes{addrs: []netip.Addr{netip.MustParseAddr("93.184.215.14")}}, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, dial }}
			if got := probe.New(o).Listed(t.Context(), "mx.test"); got != nil {
				t.Errorf("%s: got %+v", name, got)
			}
		}
		if got := probe.New(probe.Options{Resolver: broken{}}).Listed(t.Context(), "mx.test"); got != nil {
			t.Errorf("got %+v", got)
		}
	})
}
