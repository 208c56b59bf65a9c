package policy_test

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
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// The bounds that the tests of time expect.
const (
	stagger = 250 * time.Millisecond // until the next address is tried
	grace   = 500 * time.Millisecond // for the second family's lookup
	atOnce  = 3                      // addresses tried at once
)

// A world is a policy host without a network, for tests of time. They run in a
// bubble of synctest, which also fails them if a goroutine is left behind.
type world struct {
	t      *testing.T
	config policy.Config
	cert   tls.Certificate
	other  tls.Certificate // for another name
	start  time.Time

	addrs map[resolver.Type][]string      // absent: no records
	late  map[resolver.Type]time.Duration // how long a question of the type takes; below zero: for ever

	mu          sync.Mutex
	how         map[string]dialing // by address; absent: refused
	dials       []string           // "at ADDRESS", with the time since the start
	busy        string             // an address at which the gate has no place
	taken, most int                // places at the gate now, and at most
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
	full            // this side has no descriptor left
	bomb            // a panic
)

// inWorld runs f in a bubble.
func inWorld(t *testing.T, addrs map[string]dialing, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ca, err := testlab.NewCA("world")
		if err != nil {
			t.Fatal(err)
		}
		w := &world{t: t, how: addrs, addrs: map[resolver.Type][]string{}, late: map[resolver.Type]time.Duration{}, start: time.Now()}
		if w.cert, err = ca.Issue(testlab.CertGood, "mta-sts.example.test"); err != nil {
			t.Fatal(err)
		}
		if w.other, err = ca.Issue(testlab.CertWrongName, "mta-sts.example.test"); err != nil {
			t.Fatal(err)
		}
		for addr := range addrs {
			qtype := resolver.TypeA
			if strings.Contains(addr, ":") {
				qtype = resolver.TypeAAAA
			}
			w.addrs[qtype] = append(w.addrs[qtype], addr)
			slices.Sort(w.addrs[qtype])
		}
		w.config = policy.Config{Resolver: w, Roots: ca.Pool(), Dial: w.dial, Timeout: 30 * time.Second}
		f(t, w)
		if w.taken != 0 {
			t.Errorf("%d places at the gate are still taken", w.taken)
		}
	})
}

func (w *world) fetch(ctx context.Context) (*policy.Fetched, error) {
	w.t.Helper()
	c, err := policy.NewClient(w.config)
	if err != nil {
		w.t.Fatal(err)
	}
	return c.Fetch(ctx, "example.test", w)
}

// Acquire is the world's gate.
func (w *world) Acquire(_ context.Context, addr netip.Addr) (release func(), err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if addr.String() == w.busy {
		return nil, fmt.Errorf("%w at %s", policy.ErrBusy, addr)
	}
	w.taken++
	w.most = max(w.most, w.taken)
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.taken--
	}, nil
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
	case full:
		return nil, &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("socket", syscall.EMFILE)}
	case bomb:
		panic("on purpose")
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

// wantFrom fails the test unless the policy came from an address after a time.
func (w *world) wantFrom(addr string, took time.Duration) {
	w.t.Helper()
	f, err := w.fetch(w.t.Context())
	if err != nil || f.Addr.String() != addr || f.Duration != took {
		w.t.Errorf("got %+v, %v; want the policy from %s after %v", f, err, addr, took)
	}
}

func TestTheNextAddressIsTriedBesideASilentOne(t *testing.T) {
	inWorld(t, map[string]dialing{"2a00::1": stall, "2a00::2": answer, "93.184.215.14": stall}, func(t *testing.T, w *world) {
		w.wantFrom("2a00::2", 2*stagger)
		w.wantDials("0s 2a00::1", "250ms 93.184.215.14", "500ms 2a00::2")
	})
}

func TestTheNextAddressIsTriedAtOnceAfterARefusal(t *testing.T) {
	inWorld(t, map[string]dialing{"2a00::1": refuse, "93.184.215.14": answer}, func(t *testing.T, w *world) {
		w.wantFrom("93.184.215.14", 0)
		w.wantDials("0s 2a00::1", "0s 93.184.215.14")
	})
}

// How an address may fail in the handshake, and when the next one is tried.
var handshakeFailures = map[string]struct {
	how    dialing
	next   time.Duration
	took   time.Duration // where there is no other address
	result policy.Result
	want   error
}{
	"silence":                       {mute, stagger, policy.ConnectTimeout, policy.ResultFetch, policy.ErrTimeout},
	"the connection is closed":      {reset, 0, 0, policy.ResultFetch, policy.ErrTLS},
	"a certificate of another name": {strange, 0, 0, policy.ResultWebPKI, policy.ErrCertName},
}

func TestAnAddressThatFailsInTheHandshakeDoesNotHideAGoodOne(t *testing.T) {
	for name, tt := range handshakeFailures {
		t.Run(name, func(t *testing.T) {
			inWorld(t, map[string]dialing{"2a00::1": tt.how, "93.184.215.14": answer}, func(t *testing.T, w *world) {
				w.wantFrom("93.184.215.14", tt.next)
				w.wantDials("0s 2a00::1", fmt.Sprintf("%v 93.184.215.14", tt.next))
			})
		})
	}
}

func TestAHandshakeThatDoesNotEndIsGivenUpInTime(t *testing.T) {
	for name, tt := range handshakeFailures {
		t.Run(name, func(t *testing.T) {
			inWorld(t, map[string]dialing{"93.184.215.14": tt.how}, func(t *testing.T, w *world) {
				_, err := w.fetch(t.Context())
				wantError(t, err, "example.test", tt.result, tt.want)
				if took := time.Since(w.start); took != tt.took {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

func TestABadCertificateIsReportedWhateverTheOtherAddressesDo(t *testing.T) {
	for _, how := range []dialing{refuse, stall, mute, reset} {
		for _, addr := range []string{"2a00::1", "93.184.215.14"} {
			addrs := map[string]dialing{"2a00::1": how, "93.184.215.14": how}
			addrs[addr] = strange
			inWorld(t, addrs, func(t *testing.T, w *world) {
				_, err := w.fetch(t.Context())
				wantError(t, err, "example.test", policy.ResultWebPKI, policy.ErrCertName)
			})
		}
	}
}

func TestThroughAProxyTheAddressesTakeTurns(t *testing.T) {
	const first, second = "93.184.215.14", "93.184.215.15"
	for name, tt := range map[string]struct {
		how  dialing
		next time.Duration
	}{
		"silence to CONNECT":            {stall, policy.ConnectTimeout},
		"silence in the handshake":      {mute, policy.ConnectTimeout},
		"closed in the handshake":       {reset, 0},
		"a certificate of another name": {strange, 0},
		"refused by the proxy":          {refuse, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, map[string]dialing{first: tt.how, second: answer}, func(t *testing.T, w *world) {
				w.behindProxy()
				w.wantFrom(second, tt.next)
				w.wantDials("0s "+first, fmt.Sprintf("%v %s", tt.next, second))
			})
		})
	}
}

// The lookup that waits for the fetch must learn in its time that the proxy is to blame.
func TestAProxyThatCannotBeReachedIsTriedForOneAddress(t *testing.T) {
	inWorld(t, map[string]dialing{"2a00::1": answer, "93.184.215.14": answer, "93.184.215.15": answer}, func(t *testing.T, w *world) {
		w.behindProxy()
		w.config.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		_, err := w.fetch(t.Context())
		wantError(t, err, "example.test", policy.ResultFetch, policy.ErrProxy)
		if took := time.Since(w.start); took != policy.ConnectTimeout || !policy.OurFault(err) {
			t.Errorf("after %v: %v", took, err)
		}
	})
}

// behindProxy has the client reach the world through a proxy only.
func (w *world) behindProxy() {
	w.config.Proxy = func(*url.URL) (*url.URL, error) { return url.Parse("http://proxy.test:3128") }
	w.config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if address != "proxy.test:3128" {
			return nil, errors.New("there is no way but the proxy's")
		}
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

func TestTheNumberOfAddressesTriedIsBounded(t *testing.T) {
	addrs := map[string]dialing{}
	for i := range 3 * policy.MaxAddresses {
		addrs[fmt.Sprintf("2a00::%x", i+1)], addrs[fmt.Sprintf("93.184.215.%d", i+1)] = refuse, refuse
	}
	inWorld(t, addrs, func(t *testing.T, w *world) {
		_, err := w.fetch(t.Context())
		wantError(t, err, "example.test", policy.ResultFetch, policy.ErrConnect)
		if len(w.dials) != policy.MaxAddresses || !strings.Contains(err.Error(), "at 7 more") {
			t.Errorf("dials %q, %v", w.dials, err)
		}
	})
}

// Anybody can name addresses that never answer, in as many networks as they
// like: a few domains must not take the places of all fetches.
func TestAFetchTakesFewOfAllPlaces(t *testing.T) {
	addrs := map[string]dialing{}
	for i := range policy.MaxAddresses {
		addrs[fmt.Sprintf("93.184.%d.1", i)] = stall
	}
	inWorld(t, addrs, func(t *testing.T, w *world) {
		_, err := w.fetch(t.Context())
		wantError(t, err, "example.test", policy.ResultFetch, policy.ErrTimeout)
		if w.most != atOnce || len(w.dials) != policy.MaxAddresses {
			t.Errorf("%d places taken at once, dials %q", w.most, w.dials)
		}
	})
}

func TestAddressesThatDoNotAnswerEndTheFetchInTime(t *testing.T) {
	inWorld(t, map[string]dialing{"2a00::1": stall, "93.184.215.14": stall}, func(t *testing.T, w *world) {
		_, err := w.fetch(t.Context())
		wantError(t, err, "example.test", policy.ResultFetch, policy.ErrTimeout)
		if took := time.Since(w.start); took != stagger+policy.ConnectTimeout {
			t.Errorf("it took %v", took)
		}
	})
}

func TestRFC8461_3_3_AHostThatFallsSilentEndsTheFetchInTime(t *testing.T) {
	inWorld(t, map[string]dialing{"93.184.215.14": deaf}, func(t *testing.T, w *world) {
		_, err := w.fetch(t.Context())
		wantError(t, err, "example.test", policy.ResultFetch, policy.ErrTimeout)
		if took := time.Since(w.start); took != w.config.Timeout {
			t.Errorf("it took %v", took)
		}
	})
}

func TestOneFamilysSilentNameServerDelaysTheFetchALittle(t *testing.T) {
	inWorld(t, map[string]dialing{"93.184.215.14": answer}, func(t *testing.T, w *world) {
		w.late[resolver.TypeAAAA] = -1
		w.wantFrom("93.184.215.14", grace)
	})
}

func TestALateFamilyIsWaitedForWhileTheOtherIsEmpty(t *testing.T) {
	inWorld(t, map[string]dialing{"2a00::1": answer}, func(t *testing.T, w *world) {
		w.late[resolver.TypeAAAA] = 5 * time.Second
		w.wantFrom("2a00::1", 5*time.Second)
	})
}

func TestSilentNameServersEndTheFetchInTime(t *testing.T) {
	inWorld(t, map[string]dialing{"93.184.215.14": answer}, func(t *testing.T, w *world) {
		w.late[resolver.TypeAAAA], w.late[resolver.TypeA] = -1, -1
		_, err := w.fetch(t.Context())
		wantError(t, err, "example.test", policy.ResultFetch, policy.ErrHostLookup)
		if took := time.Since(w.start); took != w.config.Timeout {
			t.Errorf("it took %v", took)
		}
	})
}

func TestOfTwoConnectionsTheSecondIsClosed(t *testing.T) {
	inWorld(t, map[string]dialing{"2a00::1": answer, "93.184.215.14": answer}, func(t *testing.T, w *world) {
		w.config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if strings.Contains(address, "2a00::1") {
				time.Sleep(stagger) // both connections are made at the same moment
			}
			return w.dial(ctx, network, address)
		}
		if _, err := w.fetch(t.Context()); err != nil || w.most != 2 {
			t.Errorf("%v, %d connections", err, w.most)
		}
	})
}

func TestABusyAddressDoesNotHideAFreeOne(t *testing.T) {
	inWorld(t, map[string]dialing{"2a00::1": answer, "93.184.215.14": answer}, func(t *testing.T, w *world) {
		w.busy = "2a00::1"
		w.wantFrom("93.184.215.14", 0)
	})
}

// An address that was not tried proves nothing against the host, whatever the
// others do.
func TestAnAddressThatWasNotTriedIsReportedFirst(t *testing.T) {
	for _, how := range []dialing{refuse, stall, strange} {
		inWorld(t, map[string]dialing{"2a00::1": answer, "93.184.215.14": how}, func(t *testing.T, w *world) {
			w.busy = "2a00::1"
			_, err := w.fetch(t.Context())
			wantError(t, err, "example.test", policy.ResultBusy, policy.ErrBusy)
			if !policy.OurFault(err) {
				t.Errorf("%v is not our fault", err)
			}
		})
		inWorld(t, map[string]dialing{"2a00::1": full, "93.184.215.14": how}, func(t *testing.T, w *world) {
			_, err := w.fetch(t.Context())
			wantError(t, err, "example.test", policy.ResultFetch, syscall.EMFILE)
			if !policy.OurFault(err) {
				t.Errorf("%v is not our fault", err)
			}
		})
	}
}

// The keeper ends a fetch for the sake of another one with a cause.
func TestTheCauseOfACancelledFetchIsInItsError(t *testing.T) {
	for _, how := range []dialing{stall, mute, deaf} {
		inWorld(t, map[string]dialing{"93.184.215.14": how}, func(t *testing.T, w *world) {
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(time.Second, func() { cancel(fmt.Errorf("%w: ended for a newcomer", policy.ErrBusy)) })
			_, err := w.fetch(ctx)
			wantError(t, err, "example.test", policy.ResultBusy, policy.ErrBusy)
			if took := time.Since(w.start); took != time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// A bombAt is a resolver that panics at one type of question.
type bombAt struct {
	policy.Resolver
	qtype resolver.Type
}

func (b bombAt) Query(ctx context.Context, name string, qtype resolver.Type) (*resolver.Answer, error) {
	if qtype == b.qtype {
		panic("on purpose")
	}
	return b.Resolver.Query(ctx, name, qtype)
}

// The keeper survives a panic in its own goroutine. One in another goroutine
// would end the daemon, and hostile certificates are read in others.
func TestAPanicInAFetchReachesTheCaller(t *testing.T) {
	for name, arm := range map[string]func(*world){
		"in an AAAA lookup": func(w *world) { w.config.Resolver = bombAt{w, resolver.TypeAAAA}; w.addrs[resolver.TypeA] = nil },
		"in an A lookup":    func(w *world) { w.config.Resolver = bombAt{w, resolver.TypeA}; w.addrs[resolver.TypeAAAA] = nil },
		"in a connection":   func(w *world) { w.how["93.184.215.14"] = bomb },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, map[string]dialing{"2a00::1": stall, "93.184.215.14": answer}, func(t *testing.T, w *world) {
				arm(w)
				defer func() {
					if v := recover(); v == nil || !strings.Contains(fmt.Sprint(v), "on purpose") {
						t.Errorf("got %v", v)
					}
				}()
				_, err := w.fetch(t.Context())
				t.Errorf("got %v", err)
			})
		})
	}
}

// It is called in goroutines of net/http, where nobody can recover from a panic.
func TestAPanicInDialTLSIsAnError(t *testing.T) {
	for name, arm := range map[string]func(*world){
		"in a lookup":     func(w *world) { w.config.Resolver = bombAt{w, resolver.TypeAAAA}; w.addrs[resolver.TypeA] = nil },
		"in a connection": func(w *world) { w.how["93.184.215.14"] = bomb },
		"before either":   func(w *world) { w.config.Proxy = func(*url.URL) (*url.URL, error) { panic("on purpose") } },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, map[string]dialing{"93.184.215.14": answer}, func(t *testing.T, w *world) {
				arm(w)
				client, err := policy.NewClient(w.config)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := client.DialTLS(t.Context(), "mta-sts.example.com", true); err == nil || !strings.Contains(err.Error(), "on purpose") {
					t.Errorf("got %v", err)
				}
			})
		})
	}
}
