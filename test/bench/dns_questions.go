package main

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/miekg/dns"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

const (
	questionRepeats = 1000
	questionDomain  = "dane.example"
	questionPlain   = "plain.example"
	questionTesting = "testing.example"
)

// dnsQuestions counts the daemon's DNS questions for a repeated lookup on a map
// with DANE. The note has the count of the first lookup.
func dnsQuestions(b *bench) (result, error) {
	lab, process, err := b.questionLab()
	if err != nil {
		return result{}, err
	}
	path, err := b.newCache()
	if err != nil {
		return result{}, err
	}
	d, err := b.startDaemon(daemonConfig{cache: path, lab: process})
	if err != nil {
		return result{}, err
	}
	l, err := b.newLoad(d.address, 1)
	if err != nil {
		return result{}, err
	}
	ask := func(domain, want string, n int) (int, error) {
		before := lab.DNS.Total()
		err := l.ask(b.ctx, n,
			func(dst []byte, _, _ int) []byte { return append(dst, "postfix-dane "+domain...) },
			func(_, reply []byte) error {
				if string(reply) != want {
					return fmt.Errorf("%s: %q, want %q", domain, reply, want)
				}
				return nil
			})
		return lab.DNS.Total() - before, err
	}
	// The first lookup on such a map makes the daemon probe the resolver.
	if _, err := ask("probe.example", "NOTFOUND ", 1); err != nil {
		return result{}, err
	}
	first, err1 := ask(questionDomain, "OK dane-only", 1)
	repeated, err2 := ask(questionDomain, "OK dane-only", questionRepeats)
	_, err3 := ask(questionPlain, "NOTFOUND ", 1)
	plain, err4 := ask(questionPlain, "NOTFOUND ", questionRepeats)
	_, err5 := ask(questionTesting, "NOTFOUND ", 1)
	testing, err6 := ask(questionTesting, "NOTFOUND ", questionRepeats)
	if err := errors.Join(err1, err2, err3, err4, err5, err6); err != nil {
		return result{}, err
	}
	for _, q := range []struct{ name, qtype string }{
		{questionPlain, "MX"}, {"_25._tcp.mx1." + questionPlain, "TLSA"},
		{questionTesting, "MX"}, {"_25._tcp.mx1." + questionTesting, "TLSA"},
	} {
		if n := lab.DNS.Asked(q.name, q.qtype); n != 0 {
			return result{}, fmt.Errorf("%d questions for %s %s, where no policy is enforced", n, q.name, q.qtype)
		}
	}
	each := float64(repeated+plain+testing) / (3 * questionRepeats)
	return result{value: each, low: each, high: each,
		note: fmt.Sprintf("the first lookup, with its discovery, asks %d; a domain without an enforced policy is asked for no MX and no TLSA", first)}, nil
}

// questionLab starts a lab in this process, so that its counts can be read: a
// signed domain with DANE and an enforced policy, one without a policy, and one
// in mode testing.
func (b *bench) questionLab() (*testlab.Lab, *labProcess, error) {
	lab, err := testlab.Start(testlab.Options{Net: netip.MustParsePrefix("127.215.0.0/16"), PolicyPort: 443})
	if err != nil {
		return nil, nil, fmt.Errorf("%w: policy hosts need port 443; run as root", err)
	}
	b.atEnd(func() { lab.Close() })
	roots := filepath.Join(b.shop.dir, "question-roots.pem")
	if err := lab.CA.WritePEM(roots); err != nil {
		return nil, nil, err
	}
	// The daemon's questions to probe the resolver.
	for _, name := range []string{".", "com", "org", "home.arpa", "10.in-addr.arpa"} {
		if err := lab.DNS.Set(dns.Fqdn(name) + " 300 IN SOA a. b. 1 1 1 1 1"); err != nil {
			return nil, nil, err
		}
	}
	lab.DNS.Sign(".", true)
	lab.DNS.Sign("arpa", false)
	signed, err := lab.Domain(questionDomain, testlab.With{Signed: true})
	if err != nil {
		return nil, nil, err
	}
	lab.DNS.Sign(questionDomain, true)
	tlsa, err := signed.Mail[0].TLSA(3, 1, 1)
	if err != nil {
		return nil, nil, err
	}
	if err := lab.DNS.Set(tlsa); err != nil {
		return nil, nil, err
	}
	for domain, with := range map[string]testlab.With{questionPlain: {NoPolicy: true}, questionTesting: {Mode: "testing"}} {
		if _, err := lab.Domain(domain, with); err != nil {
			return nil, nil, err
		}
	}
	return lab, &labProcess{dns: lab.DNS.Addr, roots: roots}, nil
}
