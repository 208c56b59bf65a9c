package probe_test

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/explain"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/probe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// newLab returns a lab whose resolver validates: signed.example is signed.
func newLab(t testing.TB) *testlab.T {
	t.Helper()
	lab := testlab.New(t)
	for _, name := range []string{".", "com.", "org.", "home.arpa.", "10.in-addr.arpa."} {
		lab.Set(name + " 300 IN SOA a. b. 1 1 1 1 1")
	}
	for name, signed := range map[string]bool{".": true, "arpa": false, "test": false} {
		lab.DNS.Sign(name, signed)
	}
	return lab
}

// options are those of a prober in the lab that asks in the map.
func options(t testing.TB, lab *testlab.T, mapName string) probe.Options {
	t.Helper()
	dns, err := resolver.New(resolver.Config{Servers: []netip.AddrPort{netip.MustParseAddrPort(lab.DNS.Addr)}, Timeout: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	client, err := policy.NewClient(policy.Config{Resolver: dns, Roots: lab.CA.Pool(), AllowPrivate: true, Dial: lab.Dial, Timeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	checker := dane.New(dane.Options{Resolver: dns})
	sources := explain.Sources{
		Resolver: dns, Policies: client, NextHops: checker, Now: time.Now,
		Held: func(_ context.Context, domain string) (control.Held, string, error) {
			if strings.HasPrefix(domain, "exempt.") {
				return control.Held{Domain: domain, ExemptBy: []exempt.Exemption{{Domain: domain}}}, explain.File, nil
			}
			return control.Held{Domain: domain}, explain.File, control.ErrNothingHeld
		},
	}
	maps := mta.Builtin()
	return probe.Options{
		Resolver: dns, NextHops: checker, Policy: sources.Policy, Map: maps[mta.Find(maps, mapName)],
		Roots: lab.CA.Pool(), EHLO: "relay.test", Dial: lab.Dial,
	}
}

func matching(t *testing.T, m *testlab.MailHost, usage, selector, matching int) string {
	t.Helper()
	record, err := m.TLSA(usage, selector, matching)
	if err != nil {
		t.Fatal(err)
	}
	return record
}

// other is a TLSA record of a host that matches no certificate.
func other(m *testlab.MailHost) string {
	return "_25._tcp." + m.Name + ". 300 IN TLSA 3 1 1 " + strings.Repeat("02", 32)
}
