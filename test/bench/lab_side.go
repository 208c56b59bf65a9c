package main

import (
	"fmt"
	"hash/maphash"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"

	"github.com/miekg/dns"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// labNet has the addresses of the policy hosts. They listen on port 443, which
// requires root or a net.ipv4.ip_unprivileged_port_start of 443 or less.
var labNet = netip.MustParsePrefix("127.214.0.0/16")

const (
	labTTL = 300

	// labHosts is the number of addresses that the policy hosts share: the
	// daemon limits its fetches at one address.
	labHosts = 64
)

// A labProcess is a small internet in its own process. Every domain below
// "example" has a policy.
type labProcess struct {
	*process
	dns   string // address and port of its resolver
	roots string // file with the root certificate
}

func (b *bench) startLab() (*labProcess, error) {
	l := &labProcess{roots: filepath.Join(b.shop.dir, "roots.pem")}
	var err error
	if l.process, err = b.startSide("lab", l.roots); err != nil {
		return nil, err
	}
	l.dns = l.address
	return l, nil
}

// labSide runs the lab.
func labSide(args []string) error {
	lab, err := testlab.Start(testlab.Options{Net: labNet, PolicyPort: 443})
	if err != nil {
		return err
	}
	if err := lab.CA.WritePEM(args[0]); err != nil {
		return err
	}
	var addrs []netip.Addr
	for range labHosts {
		server, err := lab.PolicyServer("")
		if err != nil {
			return fmt.Errorf("%w: policy hosts need port 443; run as root", err)
		}
		serveAll(server)
		addrs = append(addrs, server.Addr)
	}
	seed := maphash.MakeSeed()
	lab.DNS.Func("example", func(name string, qtype uint16) []dns.RR {
		return labRecords(name, qtype, addrs[maphash.String(seed, name)%labHosts])
	})
	ready(lab.DNS.Addr)
	select {}
}

// serveAll makes the server serve a policy for every domain.
func serveAll(server *testlab.PolicyServer) {
	var hosts sync.Map // name -> *testlab.PolicyHost
	server.Fallback(func(name string) *testlab.PolicyHost {
		if h, ok := hosts.Load(name); ok {
			return h.(*testlab.PolicyHost)
		}
		h := server.NewHost(name)
		h.SetPolicy(policyText(strings.TrimPrefix(name, "mta-sts.")))
		if h.Present(testlab.CertGood) != nil {
			return nil
		}
		first, _ := hosts.LoadOrStore(name, h)
		return first.(*testlab.PolicyHost)
	})
}

// labRecords returns the records of name, nil if it does not exist.
func labRecords(name string, qtype uint16, host netip.Addr) []dns.RR {
	header := func(t uint16) dns.RR_Header {
		return dns.RR_Header{Name: name, Rrtype: t, Class: dns.ClassINET, Ttl: labTTL}
	}
	switch {
	case strings.HasPrefix(name, "_mta-sts.") && qtype == dns.TypeTXT:
		return []dns.RR{&dns.TXT{Hdr: header(dns.TypeTXT), Txt: []string{"v=STSv1; id=" + millionID + ";"}}}
	case strings.HasPrefix(name, "mta-sts.") && qtype == dns.TypeA:
		return []dns.RR{&dns.A{Hdr: header(dns.TypeA), A: host.AsSlice()}}
	case strings.HasPrefix(name, "_mta-sts."), strings.HasPrefix(name, "mta-sts."):
		return []dns.RR{} // the name exists without records of that type
	}
	return nil
}
