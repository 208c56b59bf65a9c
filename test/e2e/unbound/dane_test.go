//go:build e2e

package unbound

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// probeNames are names that this unbound knows.
var probeNames = dane.ProbeNames{Signed: []string{"signed.example"}, Unsigned: []string{"unsigned.example"}}

func listed(string) bool { return true }

func check(host string) dane.NextHop { return dane.NextHop{Host: host} }

func bracketed(host string, port uint16) dane.NextHop {
	return dane.NextHop{Host: host, Port: port, Bracketed: true}
}

// start starts an unbound with the zones and returns a resolver that asks it.
func start(t *testing.T, dir string, zones []*Zone, noValidator bool) *resolver.Resolver {
	t.Helper()
	addr := freeAddr(t)
	for range portTries {
		_, err := tryStart(t, Options{Dir: dir, Addr: addr, Zones: zones, NoValidator: noValidator})
		if err == nil {
			break
		}
		if !errors.Is(err, errEnded) {
			t.Fatal(err)
		}
		addr = freeAddr(t) // another process took the port
	}
	r, err := resolver.New(resolver.Config{Servers: []netip.AddrPort{addr}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// portTries limits the attempts to find a port.
const portTries = 20

// freeAddr returns a loopback port that is free for UDP and TCP at the moment.
func freeAddr(t *testing.T) netip.AddrPort {
	t.Helper()
	for range portTries {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := pc.LocalAddr().(*net.UDPAddr).AddrPort()
		l, err := net.Listen("tcp", addr.String())
		pc.Close()
		if err == nil {
			l.Close()
			return addr
		}
	}
	t.Fatal("no port is free for both UDP and TCP")
	return netip.AddrPort{}
}

// nextHops has next-hops and their states.
var nextHops = []struct {
	what string
	hop  dane.NextHop
	want dane.State
}{
	{"TLSA at its host", check("good.signed.example"), dane.Usable},
	{"a host with IPv6 only", check("ipv6.signed.example"), dane.Usable},
	{"one host with TLSA, one without", check("some.signed.example"), dane.Usable},
	{"MX from a wildcard", check("any.wild.signed.example"), dane.Usable},
	{"no MX records, TLSA at the domain", check("implicit.signed.example"), dane.Usable},
	{"the domain is an alias", check("domainalias.signed.example"), dane.Usable},
	{"TLSA where the host's alias leads", check("toalias.signed.example"), dane.Usable},
	{"TLSA at the host's alias only", check("tooriginal.signed.example"), dane.Usable},
	{"an alias into an unsigned zone, TLSA at it", check("intounsigned.signed.example"), dane.Usable},
	{"TLSA through an alias", check("tlsaalias.signed.example"), dane.Usable},
	{"an alias into an unsigned zone, TLSA there", check("intounsigned2.signed.example"), dane.Absent},
	{"a host in an unsigned zone, TLSA there", check("outside.signed.example"), dane.Absent},
	{"proven that there is no TLSA", check("none.signed.example"), dane.Absent},
	{"unusable TLSA", check("unusable.signed.example"), dane.Absent},
	{"a host that does not exist", check("gone.signed.example"), dane.Absent},
	{"null MX", check("null.signed.example"), dane.NoMail},
	{"no such domain", check("nx.signed.example"), dane.NoMail},
	{"unsigned MX at a signed host", check("unsigned.example"), dane.UnsignedMX},
	{"no MX in an unsigned zone", check("none.unsigned.example"), dane.UnsignedMX},
	{"MX changed", check("forgedmx.bogus.example"), dane.Undecided},
	{"the host's address changed", check("addr.bogus.example"), dane.LookupFailed},
	{"TLSA changed", check("tlsa.bogus.example"), dane.LookupFailed},
	{"one host changed, one good", check("addrandgood.bogus.example"), dane.Usable},
	{"an unchanged name in a zone with changes", check("good.bogus.example"), dane.Usable},
	{"brackets, the key's port", bracketed("relay.signed.example", 587), dane.Usable},
	{"brackets, another port", bracketed("relay.signed.example", 25), dane.Absent},
	{"brackets, an unsigned host", bracketed("mx.unsigned.example", 25), dane.Absent},
	{"brackets, a changed address", bracketed("badaddr.bogus.example", 25), dane.LookupFailed},
}

// TestRFC7672_StatesFollowFromRealValidation gets the AD bit from real
// signatures, with each kind of denial of existence.
func TestRFC7672_StatesFollowFromRealValidation(t *testing.T) {
	for name, options := range map[string][]string{
		"NSEC":  nil,
		"NSEC3": {"-n", "-t", "0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			r := start(t, dir, makeZones(t, dir, options...), false)
			c := dane.New(dane.Options{Resolver: r, Probe: probeNames})
			if p := c.Probe(t.Context()); p.Verdict != dane.Validates {
				t.Errorf("probe: %v", p.Verdict)
			}
			for _, n := range nextHops {
				if got := c.Check(t.Context(), n.hop, listed); got.State != n.want {
					t.Errorf("%s (%s): %v, want %v; %s", n.what, n.hop.Host, got.State, n.want, got.Why)
				}
				if got := c.Look(t.Context(), n.hop, listed).Finding; got.State != n.want {
					t.Errorf("%s (%s), in full: %v, want %v; %s", n.what, n.hop.Host, got.State, n.want, got.Why)
				}
			}
		})
	}
}

func TestAnswersOfARealResolver(t *testing.T) {
	dir := t.TempDir()
	r := start(t, dir, makeZones(t, dir), false)
	for _, c := range []struct {
		name    string
		qtype   resolver.Type
		records int
		secure  bool
		nx      bool
	}{
		{"signed.example", resolver.TypeSOA, 1, true, false},
		{"none.signed.example", resolver.TypeTXT, 0, true, false},
		{"nx.signed.example", resolver.TypeTXT, 0, true, true},
		{"large.signed.example", resolver.TypeTXT, 40, true, false},
		{"alias.signed.example", resolver.TypeA, 1, true, false},
		{"leaves.signed.example", resolver.TypeA, 1, false, false},
		{"leaves.signed.example", resolver.TypeCNAME, 1, true, false},
		{"unsigned.example", resolver.TypeMX, 1, false, false},
		{"nx.unsigned.example", resolver.TypeMX, 0, false, true},
	} {
		a, err := r.Query(t.Context(), c.name, c.qtype)
		if err != nil || len(a.Data()) != c.records || a.Authenticated != c.secure || a.NXDomain != c.nx || a.TTL <= 0 {
			t.Errorf("%s %s: %+v, %v", c.name, c.qtype, a, err)
		}
	}
	_, err := r.Query(t.Context(), "badaddr.bogus.example", resolver.TypeA)
	var e *resolver.Error
	if !errors.As(err, &e) || e.Kind != resolver.KindServFail {
		t.Errorf("a changed address: %v", err)
	}
}

func TestTheProbeFindsOutThatARealResolverDoesNotValidate(t *testing.T) {
	dir := t.TempDir()
	r := start(t, dir, makeZones(t, dir), true)
	c := dane.New(dane.Options{Resolver: r, Probe: probeNames})
	if p := c.Probe(t.Context()); p.Verdict != dane.NoAD {
		t.Errorf("probe: %v", p.Verdict)
	}
	for _, n := range nextHops {
		if got := c.Check(t.Context(), n.hop, listed); got.State != dane.NotValidating {
			t.Errorf("%s: %v", n.what, got.State)
		}
	}
}
