package enforce

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/unbound"
)

// nameServer is the address of the lab's DNS if unbound is the resolver.
// unbound forwards all names below test to it.
const nameServer = "127.0.0.54"

// signedZones are signed before Postfix starts and do not change afterwards.
// The daemon asks for com and org when it probes the resolver.
var signedZones = []string{"signed.example", "attacker.example", "com", "org"}

// A signedWorld is what DANE needs besides the lab.
type signedWorld struct {
	domains  []*testlab.Domain // of daneRows
	settings []string          // for Postfix
	resolver *unbound.Server
}

// makeSignedWorld sets up the domains of all DANE rows, signs the zones and
// starts a validating resolver.
func (w *world) makeSignedWorld(t *testing.T) *signedWorld {
	t.Helper()
	s := new(signedWorld)
	transports := "transport_maps = inline:{"
	for _, r := range daneRows {
		d := w.domain(t, r)
		s.domains = append(s.domains, d)
		if r.nextHop != "" {
			transports += fmt.Sprintf(" {%s = smtp:%s}", d.Name, r.nextHop)
			alsoAt587(t, d.Mail[0])
		}
	}
	s.settings = []string{transports + " }"}

	o := unbound.Options{
		Dir:     t.TempDir(),
		Addr:    netip.MustParseAddrPort(stage.Resolver + ":53"),
		Forward: netip.MustParseAddrPort(nameServer + ":53"),
	}
	// The daemon needs an answer for the root to prove that a resolver does not
	// validate.
	o.Zones = []*unbound.Zone{unbound.WriteZone(t, o.Dir, ".", "")}
	for _, name := range signedZones {
		var records strings.Builder
		for _, rr := range w.lab.DNS.Below(name) {
			fmt.Fprintln(&records, rr)
		}
		z := unbound.WriteZone(t, o.Dir, name, records.String())
		z.Sign(t)
		o.Zones = append(o.Zones, z)
	}
	for _, r := range daneRows {
		for _, b := range r.broken {
			w.breakRecords(t, o.Zones[1:], b)
		}
	}
	s.resolver = unbound.Start(t, o)
	return s
}

// breakRecords makes the resolver answer "NAME TYPE" with SERVFAIL: in signed
// zones by missing signatures, elsewhere by the lab's DNS.
func (w *world) breakRecords(t *testing.T, zones []*unbound.Zone, what string) {
	t.Helper()
	name, rtype, _ := strings.Cut(what, " ")
	for _, z := range zones {
		if dns.IsSubDomain(dns.Fqdn(z.Name), dns.Fqdn(name)) {
			z.Unsign(t, name, rtype)
			return
		}
	}
	w.lab.DNS.Break(name, rtype, testlab.ServFail)
}

// alsoAt587 forwards port 587 of a mail host to its port 25.
func alsoAt587(t *testing.T, m *testlab.MailHost) {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(m.Addr, 587).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", m.Real)
			if err != nil {
				in.Close()
				continue
			}
			go pass(in, out)
			go pass(out, in)
		}
	}()
}

// pass copies from one connection to the other and passes on the half-close.
func pass(to, from net.Conn) {
	io.Copy(to, from)
	to.(*net.TCPConn).CloseWrite()
}

// playSigned plays the DANE rows.
func (w *world) playSigned(t *testing.T) {
	for i, r := range daneRows {
		if r.nextHop != "" && w.postfix == nil {
			continue // only Postfix has transport_maps
		}
		t.Run(r.name, func(t *testing.T) { w.play(t, r, w.signed.domains[i]) })
	}
}
