package keeper

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// This file: whoever fills the bounds of discovery keeps nobody out who goes
// elsewhere. What is tested is the keeper with the client that it has in the
// daemon.

// An internet is what policy.Client sees in a bubble: a resolver, and policy
// hosts at the other end of pipes.
type internet struct {
	ca *testlab.CA

	mu      sync.Mutex
	at      map[string]netip.Addr // policy hosts' addresses, by domain
	silent  map[string]bool       // domains whose policy hosts' addresses are never answered for
	servers map[netip.Addr]server
	asking  level // domains whose policy host's address is looked up now
	open    level // connections
}

// A server is what is at an address.
type server struct {
	tarpit bool          // the handshake ends well; then nothing comes
	takes  time.Duration // to answer
}

// A level counts what goes on at once.
type level struct{ now, most int }

func (l *level) add(n int) {
	l.now += n
	l.most = max(l.most, l.now)
}

// inInternet runs a test in a bubble with a keeper and the real client.
func inInternet(t *testing.T, bend func(*Options), test func(*testing.T, *site, *internet)) {
	t.Helper()
	path := filepath.Join(memoryDir(t), "cache.db")
	synctest.Test(t, func(t *testing.T) {
		ca, err := testlab.NewCA("crowd")
		if err != nil {
			t.Fatal(err)
		}
		n := &internet{
			ca: ca, at: make(map[string]netip.Addr), silent: make(map[string]bool), servers: make(map[netip.Addr]server),
		}
		client, err := policy.NewClient(policy.Config{Resolver: n, Roots: ca.Pool(), Dial: n.dial})
		if err != nil {
			t.Fatal(err)
		}
		s := openSite(t, path, newFakeNet(), func(o *Options) {
			o.Network = client
			if bend != nil {
				bend(o)
			}
		})
		test(t, s, n)
		if err := s.stop(); err != nil {
			t.Errorf("stopping: %v", err)
		}
	})
}

// publish gives a domain a policy at an address, where a server is.
func (n *internet) publish(domain, addr string, s server) {
	n.mu.Lock()
	defer n.mu.Unlock()
	a := netip.MustParseAddr(addr)
	n.at[domain], n.servers[a] = a, s
}

func (n *internet) Query(ctx context.Context, name string, qtype resolver.Type) (*resolver.Answer, error) {
	_, domain, _ := strings.Cut(name, ".")
	n.mu.Lock()
	addr, known := n.at[domain]
	silent := n.silent[domain] && qtype != resolver.TypeTXT
	if silent && qtype == resolver.TypeA {
		n.asking.add(1)
	}
	n.mu.Unlock()
	if silent {
		<-ctx.Done()
		if qtype == resolver.TypeA {
			n.mu.Lock()
			n.asking.add(-1)
			n.mu.Unlock()
		}
		return nil, &resolver.Error{Name: name, Type: qtype, Kind: resolver.KindCanceled, Err: ctx.Err()}
	}
	var data []string
	switch {
	case !known:
	case qtype == resolver.TypeTXT:
		data = []string{"v=STSv1; id=1"}
	case qtype == resolver.TypeA && addr.Is4(), qtype == resolver.TypeAAAA && addr.Is6():
		data = []string{addr.String()}
	}
	a := testlab.Answer(name, qtype, data...)
	a.TTL, a.NXDomain = time.Minute, !known
	return a, nil
}

func (n *internet) dial(_ context.Context, _, address string) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s, ok := n.servers[netip.MustParseAddrPort(address).Addr()]
	if !ok {
		return nil, errors.New("connection refused")
	}
	n.open.add(1)
	client, conn := net.Pipe()
	go n.serve(conn, s)
	return &counted{Conn: client, closed: sync.OnceFunc(func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.open.add(-1)
	})}, nil
}

// counted is a connection that says when it was closed.
type counted struct {
	net.Conn
	closed func()
}

func (c *counted) Close() error {
	c.closed()
	return c.Conn.Close()
}

// mostOpen returns how many connections there were at once.
func (n *internet) mostOpen() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.open.most
}

// lookingUp returns how many policy hosts' addresses are looked up now.
func (n *internet) lookingUp() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.asking.now
}

func (n *internet) serve(conn net.Conn, s server) {
	defer conn.Close()
	c := tls.Server(conn, &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		cert, err := n.ca.Issue(testlab.CertGood, hello.ServerName)
		return &cert, err
	}})
	r, err := http.ReadRequest(bufio.NewReader(c))
	switch {
	case err != nil:
	case s.tarpit:
		io.Copy(io.Discard, c)
	default:
		time.Sleep(s.takes) // of the bubble's time
		_, domain, _ := strings.Cut(r.Host, ".")
		text := policyText("enforce", 30*day, "mx."+domain)
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
	}
}

func TestTarpitsAtOneAddressOrInOneNetworkDelayNobodyElse(t *testing.T) {
	for name, tt := range map[string]struct {
		at   func(i int) string
		most int // connections
	}{
		"at one address":     {func(int) string { return "2a00::1" }, hostFetches},
		"in /64s of one /48": {func(i int) string { return fmt.Sprintf("2a00:0:0:%x::1", i) }, 64},
		"in one /24 of IPv4": {func(i int) string { return fmt.Sprintf("93.184.215.%d", i%250) }, 64},
		"at four addresses":  {func(i int) string { return fmt.Sprintf("2a00:0:%x::1", i%4) }, 4 * hostFetches},
	} {
		t.Run(name, func(t *testing.T) {
			inInternet(t, nil, func(t *testing.T, s *site, n *internet) {
				for i := range 300 {
					d := fmt.Sprintf("t%d.example", i)
					n.publish(d, tt.at(i), server{tarpit: true})
					go func() { _, _ = s.lookup(t, d) }()
				}
				synctest.Wait()
				if most := n.mostOpen(); most != tt.most {
					t.Errorf("%d connections at once; want %d", most, tt.most)
				}
				n.publish("honest.example", "193.0.6.1", server{takes: time.Second})
				begun := time.Now()
				s.mustHold(t, "honest.example")
				if took := time.Since(begun); took != time.Second {
					t.Errorf("the policy of a host elsewhere took %s", took)
				}
				begun = time.Now()
				if _, err := s.lookup(t, "none.example"); !errors.Is(err, ErrNoPolicy) {
					t.Errorf("lookup: %v", err)
				}
				if took := time.Since(begun); took != 0 {
					t.Errorf("a domain without a policy took %s", took)
				}
			})
		})
	}
}

func TestAColdStartAtOneBigHonestHostFindsAll(t *testing.T) {
	inInternet(t, nil, func(t *testing.T, s *site, n *internet) {
		var all sync.WaitGroup
		for i := range 400 {
			d := fmt.Sprintf("d%d.example", i)
			n.publish(d, "2a00::1", server{takes: 200 * time.Millisecond})
			all.Go(func() {
				if _, err := s.lookup(t, d); err != nil {
					t.Errorf("%s: %v", d, err)
				}
			})
		}
		all.Wait()
		if most := n.mostOpen(); most != hostFetches {
			t.Errorf("%d connections at once", most)
		}
		if o := s.Stats().Overloads; o != 0 {
			t.Errorf("%d got no turn", o)
		}
	})
}

func TestWhoWaitsInVainForAPlaceIsBusyWithinALookupsTimeAndCounted(t *testing.T) {
	inInternet(t, nil, func(t *testing.T, s *site, n *internet) {
		for i := range hostFetches {
			n.publish(fmt.Sprintf("t%d.example", i), "2a00::1", server{tarpit: true})
			go func() { _, _ = s.lookup(t, fmt.Sprintf("t%d.example", i)) }()
		}
		synctest.Wait()
		n.publish("late.example", "2a00::1", server{})
		if _, err := s.lookup(t, "late.example"); !errors.Is(err, ErrNoPolicy) {
			t.Errorf("lookup: %v", err)
		}
		synctest.Wait()
		if neg, ok := s.Negative("late.example"); !ok || neg.Result != policy.ResultBusy {
			t.Errorf("remembered: %+v", neg)
		}
		if o := s.Stats().Overloads; o != 1 {
			t.Errorf("%d are counted", o)
		}
	})
}

func TestTheAddressesOfPolicyHostsAreLookedUpInTheDNSSlots(t *testing.T) {
	inInternet(t, func(o *Options) { o.LookupConcurrency = 4 }, func(t *testing.T, s *site, n *internet) {
		for i := range 20 {
			d := fmt.Sprintf("s%d.example", i)
			n.publish(d, "2a00::1", server{})
			n.mu.Lock()
			n.silent[d] = true
			n.mu.Unlock()
			go func() { _, _ = s.lookup(t, d) }()
		}
		synctest.Wait()
		if now := n.lookingUp(); now != 4 {
			t.Errorf("the addresses of %d policy hosts are looked up at once", now)
		}
	})
}

func TestTheRefresherNeedsNoneOfTheLookupsPlaces(t *testing.T) {
	inSite(t, func(o *Options) { o.LookupConcurrency = 1 }, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		s.mustHold(t, "example.com")
		s.net.set("tarpit.example", fakeHost{id: "1", tarpit: true})
		go func() { _, _ = s.lookup(t, "tarpit.example") }()
		synctest.Wait()
		s.fetch.hurry("example.com")
		synctest.Wait()
		if _, fetches := s.net.asked("example.com"); fetches != 2 {
			t.Errorf("%d fetches", fetches)
		}
	})
}

func TestTarpitsBesideAPolicyHostDoNotKeepTheRefresherFromIt(t *testing.T) {
	var refreshed atomic.Int64
	inInternet(t, func(o *Options) {
		o.Observe = func(e Event) {
			if e.Step == StepFetch && e.Domain == "honest.example" && e.Result == policy.ResultOK {
				refreshed.Add(1)
			}
		}
	}, func(t *testing.T, s *site, n *internet) {
		n.publish("honest.example", "2a00::2", server{})
		s.mustHold(t, "honest.example")
		for i := range 2 * hostFetches {
			d := fmt.Sprintf("t%d.example", i)
			n.publish(d, "2a00::1", server{tarpit: true}) // the same /64
			go func() { _, _ = s.lookup(t, d) }()
		}
		synctest.Wait()
		s.fetch.hurry("honest.example")
		synctest.Wait()
		if refreshed.Load() != 1 {
			t.Error("the policy was not fetched again")
		}
	})
}

func TestAFloodOfUnknownDomainsBeyondTheBoundIsAnsweredAtOnce(t *testing.T) {
	const slots, flood = 4, 2000
	const most = maxFlights * slots
	var busy, answered atomic.Int64
	inSite(t, func(o *Options) {
		o.LookupConcurrency = slots
		o.Observe = func(e Event) {
			if e.Step == StepDiscovery && e.Result == policy.ResultBusy {
				busy.Add(1)
			}
		}
	}, func(t *testing.T, s *site) {
		never := make(chan struct{})
		ask := func(domain string) {
			go func() {
				if _, err := s.lookup(t, domain); err != nil && !errors.Is(err, ErrNoPolicy) {
					t.Errorf("%s: %v", domain, err)
				}
				answered.Add(1)
			}()
			synctest.Wait()
		}
		for i := range flood {
			d := fmt.Sprintf("u%d.example", i)
			s.net.set(d, fakeHost{recordGate: never})
			ask(d)
		}
		if answered.Load() != flood-most || busy.Load() != flood-most || s.Stats().Overloads != flood-most {
			t.Errorf("%d are answered, %d observed, %d counted; want %d", answered.Load(), busy.Load(), s.Stats().Overloads, flood-most)
		}
		if d := s.Stats().Discovering; d != most {
			t.Errorf("%d are under way; want %d", d, most)
		}
		if n, remembered := s.Negative(fmt.Sprintf("u%d.example", flood-1)); remembered {
			t.Errorf("the overload is remembered against a domain: %+v", n)
		}
		ask("u0.example") // joins what is under way
		if answered.Load() != flood-most {
			t.Error("a lookup that joins a discovery was turned away")
		}
		s.disk.set(func(d *faultyStore) { d.damaged["held.example"] = true })
		if _, err := s.lookup(t, "held.example"); !errors.Is(err, ErrUnreadable) {
			t.Errorf("a damaged policy: %v", err)
		}
		// Once they have given up there is room again.
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if d := s.Stats().Discovering; d != 0 {
			t.Errorf("%d are still under way", d)
		}
		s.net.enforced("honest.example", 30*day)
		s.mustHold(t, "honest.example")
	})
}
