package policy

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
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// A world is a policy host without a network, for tests of time: they run in a
// bubble of synctest, which also fails them if a goroutine is left behind.
type world struct {
	t      *testing.T
	cert   tls.Certificate
	other  tls.Certificate // for another name
	client *Client

	addrs map[resolver.Type][]string      // by type; absent: no records
	late  map[resolver.Type]time.Duration // how long a question of the type takes; below zero: for ever

	mu    sync.Mutex
	how   map[string]dialing // by address; absent: refused
	dials []string           // "at ADDRESS", with the time since the start
	start time.Time
}

// A dialing is how a connection to an address goes.
type dialing int

const (
	refuse  dialing = iota
	stall           // no answer to the SYN
	mute            // accepted, and then nothing
	deaf            // TLS, and then nothing
	reset           // closed at the ClientHello
	strange         // a policy host with the certificate of another name
	answer          // a good policy host
)

// authority signs the certificates of the worlds: keys are made once.
var authority = sync.OnceValues(func() (*testlab.CA, error) { return testlab.NewCA("world") })

// inWorld runs f in a bubble.
func inWorld(t *testing.T, addrs map[string]dialing, f func(t *testing.T, w *world)) {
	t.Helper()
	ca, err := authority()
	if err != nil {
		t.Fatal(err)
	}
	// Bubbles begin on 2000-01-01, before the certificate.
	now := time.Now()
	cert, err := ca.Issue(testlab.CertGood, "mta-sts.example.test")
	if err != nil {
		t.Fatal(err)
	}
	other, err := ca.Issue(testlab.CertWrongName, "mta-sts.example.test")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{cert: cert, other: other, how: addrs, addrs: map[resolver.Type][]string{}, late: map[resolver.Type]time.Duration{}}
	for addr := range addrs {
		qtype := resolver.TypeA
		if strings.Contains(addr, ":") {
			qtype = resolver.TypeAAAA
		}
		w.addrs[qtype] = append(w.addrs[qtype], addr)
	}
	for _, list := range w.addrs {
		slices.Sort(list)
	}
	synctest.Test(t, func(t *testing.T) {
		w.t, w.start = t, time.Now()
		w.client, err = NewClient(Config{Resolver: w, Roots: ca.Pool(), Dial: w.dial})
		if err != nil {
			t.Fatal(err)
		}
		w.client.tls.Time = func() time.Time { return now.Add(time.Since(w.start)) }
		f(t, w)
	})
}

func (w *world) Query(ctx context.Context, name string, qtype resolver.Type) (*resolver.Answer, error) {
	if late, ok := w.late[qtype]; ok {
		after := time.After(late)
		if late < 0 {
			after = nil
		}
		select {
		case <-after:
		case <-ctx.Done():
			return nil, &resolver.Error{Name: name, Type: qtype, Kind: resolver.KindCanceled, Err: ctx.Err()}
		}
	}
	return testlab.Answer(name, qtype, w.addrs[qtype]...), nil
}

func (w *world) dial(ctx context.Context, network, address string) (net.Conn, error) {
	addr := netip.MustParseAddrPort(address).Addr().String()
	w.mu.Lock()
	w.dials = append(w.dials, fmt.Sprintf("%v %s", time.Since(w.start), addr))
	how := w.how[addr]
	w.mu.Unlock()
	switch how {
	case stall:
		<-ctx.Done()
		return nil, ctx.Err()
	case mute, deaf, reset, strange, answer:
		client, server := net.Pipe()
		go w.serve(server, how)
		return client, nil
	}
	return nil, errors.New("connection refused")
}

func (w *world) serve(conn net.Conn, how dialing) {
	defer conn.Close()
	cert := w.cert
	switch how {
	case mute:
		io.Copy(io.Discard, conn)
		return
	case reset:
		conn.Read(make([]byte, 1))
		return
	case strange:
		cert = w.other
	}
	c := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}})
	if how == deaf {
		io.Copy(io.Discard, c)
		return
	}
	if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", len(exampleText), exampleText)
	}
}

// wantDials fails the test unless exactly these connections were tried.
func (w *world) wantDials(want ...string) {
	w.t.Helper()
	if !slices.Equal(w.dials, want) {
		w.t.Errorf("dials %q; want %q", w.dials, want)
	}
}

func TestAnAddressThatDoesNotAnswerGetsCompany(t *testing.T) {
	inWorld(t, map[string]dialing{"2a00::1": stall, "2a00::2": answer, "93.184.215.14": stall}, func(t *testing.T, w *world) {
		f, err := w.client.Fetch(t.Context(), "example.test", nil)
		if err != nil || f.Addr.String() != "2a00::2" || f.Duration != 500*time.Millisecond {
			t.Errorf("got %+v, %v", f, err)
		}
		w.wantDials("0s 2a00::1", "250ms 93.184.215.14", "500ms 2a00::2")
	})
}

func TestAnAddressThatRefusesIsFollowedAtOnce(t *testing.T) {
	inWorld(t, map[string]dialing{"2a00::1": refuse, "93.184.215.14": answer}, func(t *testing.T, w *world) {
		f, err := w.client.Fetch(t.Context(), "example.test", nil)
		if err != nil || f.Addr.String() != "93.184.215.14" || f.Duration != 0 {
			t.Errorf("got %+v, %v", f, err)
		}
		w.wantDials("0s 2a00::1", "0s 93.184.215.14")
	})
}

// How an address may fail to shake hands, and when the next one is then tried.
var handshakeFailures = map[string]struct {
	how    dialing
	next   time.Duration
	took   time.Duration // where there is no other address
	result Result
	want   error
}{
	"silence":                       {mute, staggerDelay, ConnectTimeout, ResultFetch, ErrTimeout},
	"the connection is closed":      {reset, 0, 0, ResultFetch, ErrTLS},
	"a certificate of another name": {strange, 0, 0, ResultWebPKI, ErrCertName},
}

func TestAnAddressThatFailsInTheHandshakeDoesNotHideAGoodOne(t *testing.T) {
	for name, tt := range handshakeFailures {
		t.Run(name, func(t *testing.T) {
			inWorld(t, map[string]dialing{"2a00::1": tt.how, "93.184.215.14": answer}, func(t *testing.T, w *world) {
				limiter := NewAddressLimiter(1)
				f, err := w.client.Fetch(t.Context(), "example.test", limiter.Waiting(9))
				if err != nil || f.Addr.String() != "93.184.215.14" || f.Duration != tt.next {
					t.Errorf("got %+v, %v", f, err)
				}
				w.wantDials("0s 2a00::1", fmt.Sprintf("%v 93.184.215.14", tt.next))
				if len(limiter.slots) != 0 {
					t.Errorf("places are still taken: %v", limiter.slots)
				}
			})
		})
	}
}

func TestAHandshakeThatDoesNotEndIsGivenUpInTime(t *testing.T) {
	for name, tt := range handshakeFailures {
		t.Run(name, func(t *testing.T) {
			inWorld(t, map[string]dialing{"93.184.215.14": tt.how}, func(t *testing.T, w *world) {
				_, err := w.client.Fetch(t.Context(), "example.test", nil)
				wantError(t, err, "example.test", tt.result, tt.want)
				if took := time.Since(w.start); took != tt.took {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

func TestACertificateThatDoesNotHoldIsSaidWhateverTheOtherAddressesDo(t *testing.T) {
	for _, how := range []dialing{refuse, stall, mute, reset} {
		for _, addr := range []string{"2a00::1", "93.184.215.14"} {
			addrs := map[string]dialing{"2a00::1": how, "93.184.215.14": how}
			addrs[addr] = strange
			inWorld(t, addrs, func(t *testing.T, w *world) {
				_, err := w.client.Fetch(t.Context(), "example.test", nil)
				wantError(t, err, "example.test", ResultWebPKI, ErrCertName)
			})
		}
	}
	inWorld(t, map[string]dialing{"2a00::1": answer, "93.184.215.14": strange}, func(t *testing.T, w *world) {
		limiter := NewAddressLimiter(1)
		release, err := limiter.Waiting(9).Acquire(t.Context(), netip.MustParseAddr("2a00::1"))
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		_, err = w.client.Fetch(t.Context(), "example.test", limiter.NonWaiting())
		wantError(t, err, "example.test", ResultWebPKI, ErrCertName)
	})
}

func TestThroughAProxyTheAddressesTakeTurns(t *testing.T) {
	const first, second = "93.184.215.14", "93.184.215.15"
	for name, tt := range map[string]struct {
		how  dialing
		next time.Duration
	}{
		"silence to CONNECT":            {stall, ConnectTimeout},
		"silence in the handshake":      {mute, ConnectTimeout},
		"closed in the handshake":       {reset, 0},
		"a certificate of another name": {strange, 0},
		"refused by the proxy":          {refuse, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, map[string]dialing{first: tt.how, second: answer}, func(t *testing.T, w *world) {
				w.behindProxy()
				f, err := w.client.Fetch(t.Context(), "example.test", nil)
				if err != nil || f.Addr.String() != second || f.Duration != tt.next {
					t.Errorf("got %+v, %v", f, err)
				}
				w.wantDials("0s "+first, fmt.Sprintf("%v %s", tt.next, second))
			})
		})
	}
}

// behindProxy has the client reach the world through a proxy only.
func (w *world) behindProxy() {
	w.client.proxy = func(*url.URL) (*url.URL, error) { return url.Parse("http://proxy.test:3128") }
	w.client.dial = func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("there is no way but the proxy's")
	}
	w.client.dialProxy = func(ctx context.Context, network, address string) (net.Conn, error) {
		client, server := net.Pipe()
		go w.serveProxy(ctx, server)
		return client, nil
	}
}

// serveProxy leads a connection to where it asks for; ctx is that of the dial.
func (w *world) serveProxy(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	r, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return
	}
	to, err := w.dial(ctx, "tcp", r.Host)
	if err != nil {
		io.WriteString(conn, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
		return
	}
	defer to.Close()
	io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
	go func() {
		io.Copy(to, conn)
		to.Close()
	}()
	io.Copy(conn, to)
}

func TestOnlySoManyAddressesAreTried(t *testing.T) {
	addrs := map[string]dialing{}
	for i := range 3 * MaxAddresses {
		addrs[fmt.Sprintf("2a00::%x", i+1)], addrs[fmt.Sprintf("93.184.215.%d", i+1)] = refuse, refuse
	}
	inWorld(t, addrs, func(t *testing.T, w *world) {
		_, err := w.client.Fetch(t.Context(), "example.test", nil)
		wantError(t, err, "example.test", ResultFetch, ErrConnect)
		if len(w.dials) != MaxAddresses || !strings.Contains(err.Error(), "at 7 more") {
			t.Errorf("dials %q, %v", w.dials, err)
		}
	})
}

// Anybody can name addresses that never answer, in as many networks as he
// likes: the places of all fetches are not to be had for a few domains.
func TestAFetchTakesFewOfAllPlaces(t *testing.T) {
	addrs := map[string]dialing{}
	for i := range MaxAddresses {
		addrs[fmt.Sprintf("93.184.%d.1", i)] = stall
	}
	inWorld(t, addrs, func(t *testing.T, w *world) {
		gate := NewAddressLimiter(1).Waiting(100).(waiting)
		var mu sync.Mutex
		most := 0
		watched := gateFunc(func(ctx context.Context, addr netip.Addr) (func(), error) {
			release, err := gate.Acquire(ctx, addr)
			mu.Lock()
			defer mu.Unlock()
			most = max(most, len(gate.total))
			return release, err
		})
		_, err := w.client.Fetch(t.Context(), "example.test", watched)
		wantError(t, err, "example.test", ResultFetch, ErrTimeout)
		if most != maxAtOnce {
			t.Errorf("%d places taken at once", most)
		}
		if len(w.dials) != MaxAddresses {
			t.Errorf("dials %q", w.dials)
		}
	})
}

func TestAddressesThatDoNotAnswerEndTheFetchInTime(t *testing.T) {
	inWorld(t, map[string]dialing{"2a00::1": stall, "93.184.215.14": stall}, func(t *testing.T, w *world) {
		_, err := w.client.Fetch(t.Context(), "example.test", nil)
		wantError(t, err, "example.test", ResultFetch, ErrTimeout)
		if took := time.Since(w.start); took != staggerDelay+ConnectTimeout {
			t.Errorf("it took %v", took)
		}
	})
}

func TestRFC8461_3_3_AHostThatFallsSilentEndsTheFetchInTime(t *testing.T) {
	inWorld(t, map[string]dialing{"93.184.215.14": deaf}, func(t *testing.T, w *world) {
		_, err := w.client.Fetch(t.Context(), "example.test", nil)
		wantError(t, err, "example.test", ResultFetch, ErrTimeout)
		if took := time.Since(w.start); took != DefaultTimeout {
			t.Errorf("it took %v", took)
		}
	})
}

func TestOneFamilysSilentNameServerDelaysTheFetchALittle(t *testing.T) {
	inWorld(t, map[string]dialing{"93.184.215.14": answer}, func(t *testing.T, w *world) {
		w.late[resolver.TypeAAAA] = -1
		f, err := w.client.Fetch(t.Context(), "example.test", nil)
		if err != nil || f.Duration != familyGrace {
			t.Errorf("got %+v, %v", f, err)
		}
	})
}

func TestALateFamilyIsWaitedForWhileTheOtherIsEmpty(t *testing.T) {
	inWorld(t, map[string]dialing{"2a00::1": answer}, func(t *testing.T, w *world) {
		w.late[resolver.TypeAAAA] = 5 * time.Second
		f, err := w.client.Fetch(t.Context(), "example.test", nil)
		if err != nil || f.Duration != 5*time.Second {
			t.Errorf("got %+v, %v", f, err)
		}
	})
}

func TestSilentNameServersEndTheFetchInTime(t *testing.T) {
	inWorld(t, map[string]dialing{"93.184.215.14": answer}, func(t *testing.T, w *world) {
		w.late[resolver.TypeAAAA], w.late[resolver.TypeA] = -1, -1
		_, err := w.client.Fetch(t.Context(), "example.test", nil)
		wantError(t, err, "example.test", ResultFetch, ErrHostLookup)
		if took := time.Since(w.start); took != DefaultTimeout {
			t.Errorf("it took %v", took)
		}
	})
}

func TestOfTwoConnectionsTheSecondIsClosedAndItsPlaceGivenBack(t *testing.T) {
	inWorld(t, map[string]dialing{"2a00::1": answer, "93.184.215.14": answer}, func(t *testing.T, w *world) {
		limiter := NewAddressLimiter(1)
		// Both connections are made at the same moment.
		gate := gateFunc(func(ctx context.Context, addr netip.Addr) (func(), error) {
			if addr.Is6() {
				time.Sleep(staggerDelay)
			}
			return limiter.Waiting(9).Acquire(ctx, addr)
		})
		if _, err := w.client.Fetch(t.Context(), "example.test", gate); err != nil {
			t.Fatal(err)
		}
		if len(limiter.slots) != 0 {
			t.Errorf("places are still taken: %v", limiter.slots)
		}
	})
}

type gateFunc func(ctx context.Context, addr netip.Addr) (func(), error)

func (f gateFunc) Acquire(ctx context.Context, addr netip.Addr) (func(), error) { return f(ctx, addr) }

func TestFetchesAtOneAddressWaitForEachOther(t *testing.T) {
	inWorld(t, map[string]dialing{"93.184.215.14": deaf}, func(t *testing.T, w *world) {
		limiter := NewAddressLimiter(2)
		var wg sync.WaitGroup
		results := make([]Result, 3)
		for i := range results {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), DefaultTimeout-time.Duration(i)*time.Second)
				defer cancel()
				_, err := w.client.Fetch(ctx, "example.test", limiter.Waiting(9))
				results[i] = ResultOf(err)
			})
			synctest.Wait()
		}
		_, err := w.client.Fetch(t.Context(), "example.test", limiter.NonWaiting())
		wantError(t, err, "example.test", ResultBusy, ErrBusy)
		if took := time.Since(w.start); took != 0 {
			t.Errorf("the answer of the gate that does not wait took %v", took)
		}
		wg.Wait()
		if want := []Result{ResultFetch, ResultFetch, ResultBusy}; !slices.Equal(results, want) {
			t.Errorf("got %q; want %q", results, want)
		}
		w.wantDials("0s 93.184.215.14", "0s 93.184.215.14")
		if len(limiter.slots) != 0 {
			t.Errorf("the limiter still holds %v", limiter.slots)
		}
	})
}

func TestABusyAddressDoesNotHideAFreeOne(t *testing.T) {
	inWorld(t, map[string]dialing{"2a00::1": answer, "93.184.215.14": answer}, func(t *testing.T, w *world) {
		limiter := NewAddressLimiter(1)
		release, err := limiter.Waiting(9).Acquire(t.Context(), netip.MustParseAddr("2a00::1"))
		if err != nil {
			t.Fatal(err)
		}
		f, err := w.client.Fetch(t.Context(), "example.test", limiter.NonWaiting())
		if err != nil || f.Addr.String() != "93.184.215.14" {
			t.Errorf("got %+v, %v", f, err)
		}
		release()
		release() // again does no harm
		if len(limiter.slots) != 0 {
			t.Errorf("the limiter still holds %v", limiter.slots)
		}
	})
}

func TestABusyAddressProvesNothingAgainstTheHost(t *testing.T) {
	inWorld(t, map[string]dialing{"2a00::1": answer, "93.184.215.14": refuse}, func(t *testing.T, w *world) {
		limiter := NewAddressLimiter(1)
		release, err := limiter.Waiting(9).Acquire(t.Context(), netip.MustParseAddr("2a00::1"))
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		_, err = w.client.Fetch(t.Context(), "example.test", limiter.NonWaiting())
		wantError(t, err, "example.test", ResultBusy, ErrBusy)
	})
}

func TestWhoeverWaitsAtTheGateIsLetInWhenAPlaceIsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limiter := NewAddressLimiter(0) // one, at least
		addr := netip.MustParseAddr("93.184.215.14")
		release, err := limiter.NonWaiting().Acquire(t.Context(), addr)
		if err != nil {
			t.Fatal(err)
		}
		entered := make(chan error)
		go func() {
			release, err := limiter.Waiting(9).Acquire(t.Context(), netip.MustParseAddr("::ffff:93.184.215.14"))
			if err == nil {
				release()
			}
			entered <- err
		}()
		synctest.Wait()
		select {
		case err := <-entered:
			t.Fatalf("it did not wait: %v", err)
		default:
		}
		release()
		if err := <-entered; err != nil {
			t.Error(err)
		}
		if len(limiter.slots) != 0 {
			t.Errorf("the limiter still holds %v", limiter.slots)
		}
	})
}

func TestIPv6AddressesCountByTheirNetwork(t *testing.T) {
	limiter := NewAddressLimiter(1)
	gate := limiter.NonWaiting()
	if _, err := gate.Acquire(t.Context(), netip.MustParseAddr("2a00::1")); err != nil {
		t.Fatal(err)
	}
	if _, err := gate.Acquire(t.Context(), netip.MustParseAddr("2a00::ffff:0:0:2")); !errors.Is(err, ErrBusy) {
		t.Errorf("the same /64: %v", err)
	}
	for _, addr := range []string{"2a00:0:0:1::1", "93.184.215.14", "93.184.215.15"} {
		if _, err := gate.Acquire(t.Context(), netip.MustParseAddr(addr)); err != nil {
			t.Errorf("%s: %v", addr, err)
		}
	}
}
