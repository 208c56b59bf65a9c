package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
)

const (
	discoveryClients = 64  // discoveries at once
	discoverySection = 256 // domains in one section
	discoveryTimeout = time.Minute
)

// discoveryDomain returns the i-th unknown domain.
func discoveryDomain(i int) string { return fmt.Sprintf("first%07d.example", i) }

// firstDiscovery looks up domains unknown to the daemon: TXT record, addresses,
// policy over HTTPS, and the commit to disk before the answer. The other side
// sends the same questions and discards the answers.
func firstDiscovery(b *bench) (result, error) {
	lab, err := b.startLab()
	if err != nil {
		return result{}, err
	}
	path, err := b.newCache()
	if err != nil {
		return result{}, err
	}
	ours, err := b.startDaemon(daemonConfig{cache: path, lab: lab})
	if err != nil {
		return result{}, err
	}
	limit, err := b.startSide("ask", lab.dns, lab.roots)
	if err != nil {
		return result{}, err
	}
	l, err := b.newLoad(ours.address, discoveryClients)
	if err != nil {
		return result{}, err
	}
	order, err := b.newLoad(limit.address, 1)
	if err != nil {
		return result{}, err
	}
	return b.pairs(b.discoveries(ours, l), b.bareAsking(limit, order), ratio)
}

// discoveries makes the daemon discover the domains of one section at a time.
func (b *bench) discoveries(d *daemon, l *load) measure {
	first := 0
	domain := func(client, i int) string { return discoveryDomain(first + i*discoveryClients + client) }
	request := func(dst []byte, client, i int) []byte {
		return append(append(dst, postfixMap...), domain(client, i)...)
	}
	check := func(body, reply []byte) error {
		if want := replyFor(string(body[len(postfixMap):])); string(reply) != want {
			return fmt.Errorf("reply %q for %q", reply, body)
		}
		return nil
	}
	return func() (float64, error) {
		defer func() { first += discoverySection }()
		return d.cpuOf(discoverySection, func() error { return l.ask(b.ctx, discoverySection, request, check) })
	}
}

// bareAsking makes the other side do one section at a time, each by a single
// request.
func (b *bench) bareAsking(p *process, order *load) measure {
	first := 0
	request := func(dst []byte, _, _ int) []byte { return strconv.AppendInt(dst, int64(first), 10) }
	return func() (float64, error) {
		defer func() { first += discoverySection }()
		return p.cpuOf(discoverySection, func() error { return order.ask(b.ctx, 1, request, wantReply("done")) })
	}
}

// An asker asks the questions of a discovery with the usual libraries:
// miekg/dns and net/http. It uses a new connection for each question.
type asker struct {
	dns    dns.Client
	server string
	roots  *x509.CertPool
}

// askSide is the limit of discoveries.
func askSide(args []string) error {
	pem, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	a := &asker{server: args[0], roots: x509.NewCertPool()}
	if !a.roots.AppendCertsFromPEM(pem) {
		return errors.New("no certificate in " + args[1])
	}
	return serveSections(a.ask)
}

// serveSections does ask for all domains of a section. A request is the number of the
// first one.
func serveSections(ask func(context.Context, string) error) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	ready(l.Addr().String())
	nc, err := l.Accept()
	if err != nil {
		return err
	}
	r := bufio.NewReader(nc)
	for {
		request, err := readNetstring(r)
		if err == io.EOF {
			return nil // the row has ended
		}
		if err != nil {
			return err
		}
		first, err := strconv.Atoi(string(request))
		if err != nil {
			return err
		}
		if err := section(first, ask); err != nil {
			return err
		}
		if _, err := io.WriteString(nc, "4:done,"); err != nil {
			return err
		}
	}
}

// section asks for all domains of a section, discoveryClients at once.
func section(first int, ask func(context.Context, string) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), discoveryTimeout)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	for client := range discoveryClients {
		group.Go(func() error {
			for i := range discoverySection / discoveryClients {
				if err := ask(ctx, discoveryDomain(first+i*discoveryClients+client)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

func (a *asker) ask(ctx context.Context, domain string) error {
	if _, err := a.query(ctx, "_mta-sts."+domain, dns.TypeTXT); err != nil {
		return err
	}
	if _, err := a.query(ctx, "mta-sts."+domain, dns.TypeAAAA); err != nil {
		return err
	}
	answer, err := a.query(ctx, "mta-sts."+domain, dns.TypeA)
	if err != nil {
		return err
	}
	for _, rr := range answer.Answer {
		if host, ok := rr.(*dns.A); ok {
			return a.get(ctx, "https://mta-sts."+domain+"/.well-known/mta-sts.txt", host.A)
		}
	}
	return errors.New(domain + " has no policy host")
}

func (a *asker) query(ctx context.Context, name string, qtype uint16) (*dns.Msg, error) {
	answer, _, err := a.dns.ExchangeContext(ctx, new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype), a.server)
	return answer, err
}

func (a *asker) get(ctx context.Context, url string, host net.IP) error {
	address, _ := netip.AddrFromSlice(host)
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, netip.AddrPortFrom(address, 443).String())
		},
		TLSClientConfig:    &tls.Config{RootCAs: a.roots},
		DisableKeepAlives:  true,
		DisableCompression: true,
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && !strings.HasPrefix(string(text), "version: STSv1") {
		err = fmt.Errorf("%s: status %s", url, response.Status)
	}
	return err
}
