package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"golang.org/x/sys/unix"
)

// patience bounds every wait of a test.
const patience = 30 * time.Second

// fakeKeeper holds records in memory.
type fakeKeeper struct {
	mu        sync.Mutex
	records   map[string]cache.Record
	negatives map[string]keeper.Negative
	listErr   error         // of every page after the first
	refresh   chan struct{} // if not nil, refreshes wait for it
	waiting   chan string   // if not nil, is told of refreshes that wait
	pages     int
}

func (k *fakeKeeper) Get(domain string) (cache.Record, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if domain == "damaged.test" {
		return cache.Record{}, &cache.DamagedError{Domain: domain, Err: errors.New("its checksum is wrong")}
	}
	if r, ok := k.records[domain]; ok {
		return r, nil
	}
	return cache.Record{}, cache.ErrNotFound
}

func (k *fakeKeeper) List(after string, limit int) ([]cache.Record, string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.pages++; k.pages > 1 && k.listErr != nil {
		return nil, "", k.listErr
	}
	var page []cache.Record
	for _, d := range slices.Sorted(func(yield func(string) bool) {
		for d := range k.records {
			if d > after && !yield(d) {
				return
			}
		}
	}) {
		if len(page) == limit {
			return page, page[limit-1].Domain, nil
		}
		page = append(page, k.records[d])
	}
	return page, "", nil
}

func (k *fakeKeeper) Refresh(ctx context.Context, domain string) (keeper.Refreshed, error) {
	if k.refresh != nil {
		if k.waiting != nil {
			k.waiting <- domain
		}
		select {
		case <-k.refresh:
		case <-ctx.Done():
			return keeper.Refreshed{}, ctx.Err()
		}
	}
	return keeper.Refreshed{Domain: domain, Result: policy.ResultOK, Mode: "enforce", ID: "1"}, nil
}

func (k *fakeKeeper) Forget(_ context.Context, domain string) (held, failure bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, held = k.records[domain]
	_, failure = k.negatives[domain]
	delete(k.records, domain)
	delete(k.negatives, domain)
	return held, failure, nil
}

func (k *fakeKeeper) ForgetFailures() int {
	n := len(k.negatives)
	clear(k.negatives)
	return n
}

func (k *fakeKeeper) Negative(domain string) (keeper.Negative, bool) {
	n, ok := k.negatives[domain]
	return n, ok
}

func (k *fakeKeeper) add(n int, text []byte) {
	k.records = make(map[string]cache.Record, n)
	for i := range n {
		d := fmt.Sprintf("d%06d.test", i)
		k.records[d] = cache.Record{
			Domain: d, Mode: policy.ModeEnforce, ID: "1", Text: text,
			Fetched: time.Unix(1000, 0), Expires: time.Unix(2000, 0),
		}
	}
}

// serve starts a server for k and returns a client of it.
func serve(t *testing.T, k Keeper, change func(*Server)) (*Client, *Server, string) {
	t.Helper()
	s := NewServer(Options{
		Keeper: k,
		Health: func() Health { return Health{Version: "test", PID: 7} },
		Stats:  func() any { return map[string]int{"lookups": 3} },
		Exempt: func(d string) bool { return d == "exempt.test" },
	})
	if change != nil {
		change(s)
	}
	path := filepath.Join(t.TempDir(), "c.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	c := NewClient(path)
	t.Cleanup(c.Close)
	return c, s, path
}

func TestHealthAndStatsAreAnswered(t *testing.T) {
	c, _, _ := serve(t, &fakeKeeper{}, nil)
	h, err := c.Health(t.Context())
	if err != nil || h.Version != "test" || h.PID != 7 {
		t.Errorf("got %+v, %v", h, err)
	}
	stats, err := c.Stats(t.Context())
	if err != nil || string(stats) != `{"lookups":3}` {
		t.Errorf("got %s, %v", stats, err)
	}
}

func TestTheWholeCacheIsListedInOrderPageByPage(t *testing.T) {
	k := &fakeKeeper{}
	const n = 3*pageSize + 7
	k.add(n, []byte("version: STSv1\n"))
	c, _, _ := serve(t, k, nil)
	for _, summary := range []bool{false, true} {
		var got []string
		err := c.List(t.Context(), summary, func(e Entry) error {
			got = append(got, e.Domain)
			if (e.Policy == "") != summary || e.Mode != "enforce" || !e.Expires.Equal(time.Unix(2000, 0)) || !e.Used.IsZero() {
				return fmt.Errorf("got %+v", e)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != n || !slices.IsSorted(got) {
			t.Errorf("got %d domains, sorted: %v", len(got), slices.IsSorted(got))
		}
	}
	if k.pages < 2*4 {
		t.Errorf("%d pages were read", k.pages)
	}
}

func TestAListingThatIsCutOffIsAnErrorForTheClient(t *testing.T) {
	k := &fakeKeeper{listErr: errors.New("the disk is on fire")}
	k.add(2*pageSize, nil)
	c, _, _ := serve(t, k, nil)
	err := c.List(t.Context(), true, func(Entry) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "the disk is on fire") {
		t.Errorf("got %v", err)
	}
	if err := readLines(nopCloser{strings.NewReader(`{"domain":"a"}` + "\n")}, func(Entry) error { return nil }); err == nil {
		t.Error("an answer without an end was taken for whole")
	}
}

type nopCloser struct{ *strings.Reader }

func (nopCloser) Close() error { return nil }

// TestAClientThatStopsReadingIsDroppedAndHoldsUpNobody opens listings that
// nobody reads. Others are answered meanwhile, and the listings end: on servers
// of their own, since no time is both longer than a busy machine needs to look
// and shorter than a test may wait.
func TestAClientThatStopsReadingIsDroppedAndHoldsUpNobody(t *testing.T) {
	k := &fakeKeeper{}
	k.add(4000, []byte(strings.Repeat("x", 8<<10))) // far more than socket buffers hold

	t.Run("while they stall", func(t *testing.T) {
		c, _, path := serve(t, k, func(s *Server) { s.writeTimeout = time.Hour })
		stallListings(t, path, maxListings+ownListings) // this test runs as the daemon's user
		// All places for listings are taken; the store is free all the same.
		if err := c.List(t.Context(), true, func(Entry) error { return nil }); err == nil || !strings.Contains(err.Error(), "are under way") {
			t.Errorf("got %v", err)
		}
		if _, err := c.Held(t.Context(), "d000001.test"); err != nil {
			t.Error(err)
		}
	})
	t.Run("after that", func(t *testing.T) {
		c, s, path := serve(t, k, func(s *Server) { s.writeTimeout = 300 * time.Millisecond })
		stallListings(t, path, maxListings+ownListings) // this test runs as the daemon's user
		deadline := time.After(patience)
		for range maxListings { // the places come free without any client's doing
			select {
			case s.listings.all <- struct{}{}:
			case <-deadline:
				t.Fatal("a client that does not read keeps its place")
			}
		}
		for range maxListings {
			<-s.listings.all
		}
		if err := c.List(t.Context(), true, func(Entry) error { return nil }); err != nil {
			t.Error(err)
		}
	})
}

// stallListings begins n listings that are not read, until the test ends.
func stallListings(t *testing.T, path string, n int) {
	t.Helper()
	for range n {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if _, err := conn.Write([]byte("GET /v1/cache HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReaderSize(conn, 16).ReadByte(); err != nil { // it has begun
			t.Fatal(err)
		}
	}
}

func TestWhatIsHeldOfADomainsDANEIsTold(t *testing.T) {
	k := &fakeKeeper{}
	k.add(1, []byte("text"))
	until := time.Unix(5000, 0)
	c, _, _ := serve(t, k, func(s *Server) {
		s.o.DANE = func(host string) map[dane.NextHop]dane.Finding {
			return map[dane.NextHop]dane.Finding{
				{Host: host, Port: 25}: {State: dane.Usable, Why: "1 of 1", Until: until}, {Host: host, Port: 587, Bracketed: true}: {State: dane.NotValidating, Until: until},
			}
		}
	})
	h, err := c.Held(t.Context(), "d000000.test")
	want := []DANE{{NextHop: "[d000000.test]:587", State: dane.NotValidating, Until: until.UTC()}, {NextHop: "d000000.test", State: dane.Usable, Why: "1 of 1", Until: until.UTC()}}
	if err != nil || !reflect.DeepEqual(h.DANE, want) {
		t.Errorf("got %+v, %v", h.DANE, err)
	}
	if _, err := c.Held(t.Context(), "other.test"); !errors.Is(err, ErrNothingHeld) {
		t.Errorf("of a domain without a policy: %v", err)
	}
}

func TestWhatIsHeldOfADomain(t *testing.T) {
	k := &fakeKeeper{negatives: map[string]keeper.Negative{
		"gone.test": {Domain: "gone.test", Result: policy.ResultNoRecord, Err: "nothing", Until: time.Unix(5000, 0)},
	}}
	k.add(1, []byte("text"))
	c, _, _ := serve(t, k, nil)
	h, err := c.Held(t.Context(), "d000000.test")
	if err != nil || h.Entry == nil || h.Entry.Policy != "text" || h.Negative != nil || h.Exempt {
		t.Errorf("got %+v, %v", h, err)
	}
	h, err = c.Held(t.Context(), "gone.test")
	if err != nil || h.Entry != nil || h.Negative == nil || h.Negative.Result != policy.ResultNoRecord {
		t.Errorf("got %+v, %v", h, err)
	}
	h, err = c.Held(t.Context(), "damaged.test")
	if err != nil || !strings.Contains(h.Damaged, "its checksum is wrong") {
		t.Errorf("got %+v, %v", h, err)
	}
	h, err = c.Held(t.Context(), "exempt.test")
	if err != nil || !h.Exempt {
		t.Errorf("got %+v, %v", h, err)
	}
	if _, err := c.Held(t.Context(), "never.test"); !errors.Is(err, ErrNothingHeld) {
		t.Errorf("got %v", err)
	}
	for _, bad := range []string{"UPPER.test", "a b", "../stats", "x..y", strings.Repeat("a.", 130) + "b"} {
		if _, err := c.Held(t.Context(), bad); err == nil || errors.Is(err, ErrNothingHeld) {
			t.Errorf("%q: got %v", bad, err)
		}
	}
}

func TestDomainsAreRefreshedAtOnceAndForgotten(t *testing.T) {
	k := &fakeKeeper{refresh: make(chan struct{}), waiting: make(chan string, MaxDomains)}
	k.add(3, nil)
	c, _, _ := serve(t, k, nil)

	domains := []string{"a.test", "b.test", "c.test"}
	var got []string
	done := make(chan error, 1)
	go func() {
		done <- c.Refresh(context.Background(), domains, func(r Refreshed) error {
			got = append(got, r.Domain+" "+string(r.Result))
			return nil
		})
	}()
	for range domains { // all three wait before one is let go
		select {
		case <-k.waiting:
		case <-time.After(patience):
			t.Fatal("refreshes wait for each other")
		}
	}
	close(k.refresh)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	if want := []string{"a.test ok", "b.test ok", "c.test ok"}; !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}

	k.negatives = map[string]keeper.Negative{"y.test": {}, "z.test": {}}
	forgotten := make(map[string]Forgotten)
	err := c.Forget(t.Context(), []string{"d000000.test", "x.test", "y.test"}, func(f Forgotten) error {
		forgotten[f.Domain] = f
		return nil
	})
	want := map[string]Forgotten{
		"d000000.test": {Domain: "d000000.test", Found: true}, "x.test": {Domain: "x.test"}, "y.test": {Domain: "y.test", Failure: true},
	}
	if err != nil || !maps.Equal(forgotten, want) {
		t.Errorf("got %v, %v", forgotten, err)
	}
	if n, err := c.ForgetFailures(t.Context()); err != nil || n != 1 {
		t.Errorf("%d failures, %v", n, err)
	}
}

func TestARefreshEndsWhenItsClientGoesAway(t *testing.T) {
	k := &fakeKeeper{refresh: make(chan struct{}), waiting: make(chan string, 1)}
	c, s, _ := serve(t, k, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Refresh(ctx, []string{"a.test"}, func(Refreshed) error { return nil }) }()
	<-k.waiting
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	// Shutdown waits for handlers: it would run into its time if one hung.
	end, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	if err := s.http.Server.Shutdown(end); err != nil {
		t.Error(err)
	}
}

func TestARequestForTooManyOrForNoDomainsIsRefused(t *testing.T) {
	c, _, _ := serve(t, &fakeKeeper{}, nil)
	none := func(Refreshed) error { return errors.New("a line came") }
	for _, domains := range [][]string{nil, {}, slices.Repeat([]string{"a.test"}, MaxDomains+1), {"UPPER.test"}, {"a.test", "b c"}} {
		if err := c.Refresh(t.Context(), domains, none); err == nil || strings.Contains(err.Error(), "a line came") {
			t.Errorf("%d domains: got %v", len(domains), err)
		}
	}
	if err := c.Refresh(t.Context(), slices.Repeat([]string{strings.Repeat("a", 60) + "." + strings.Repeat("b", 190)}, MaxDomains*3), none); err == nil {
		t.Error("a body without end was read")
	}
}

func TestOnlyRootAndTheDaemonsUserMayChangeAnything(t *testing.T) {
	for _, test := range []struct {
		p    peer
		want bool
	}{
		{peer{uid: 0}, true}, {peer{uid: 42}, true}, {peer{uid: 43}, false}, {peer{uid: 42, err: errors.New("?")}, false},
	} {
		if got := test.p.mayWrite(42); got != test.want {
			t.Errorf("%+v: got %v", test.p, got)
		}
	}
	if os.Geteuid() != 0 {
		return // who asks here is the daemon's user, and may
	}
	// Root becomes somebody else for the connection: the kernel keeps who
	// connected. A thread of its own, since the uid is the thread's.
	c, _, path := serve(t, &fakeKeeper{}, nil)
	for _, dir := range []string{filepath.Dir(path), filepath.Dir(filepath.Dir(path))} { // of this test alone
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	const body = `{"domains":["d000.test"]}`
	for request, want := range map[string]string{
		fmt.Sprintf("POST /v1/forget HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body): "403",
		fmt.Sprintf("POST /v1/exempt HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body): "403",
		fmt.Sprintf("POST /v1/learn HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body):  "403",
		"GET /v1/exempt HTTP/1.1\r\nHost: x\r\n\r\n":                                                        "200",
		"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n":                                                        "200",
	} {
		conn := dialAs(t, path, 65534)
		if _, err := conn.Write([]byte(request)); err != nil {
			t.Fatal(err)
		}
		status, err := bufio.NewReader(conn).ReadString('\n')
		conn.Close()
		if err != nil || !strings.Contains(status, want) {
			t.Errorf("%.20s: got %q, %v; want %s", request, status, err, want)
		}
	}
	if err := c.Forget(t.Context(), []string{"d000.test"}, func(Forgotten) error { return nil }); err != nil {
		t.Errorf("root: %v", err)
	}
}

func TestTheClientSaysThatItWasNotLetIn(t *testing.T) {
	// A server that hangs up, as ours does on one client too many.
	path := filepath.Join(t.TempDir(), "c.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	if _, err := NewClient(path).Health(t.Context()); !errors.Is(err, ErrBusy) || errors.Is(err, ErrNoAnswer) {
		t.Errorf("hung up on: %v", err)
	}
	l.Close()
	// A server that accepts nobody, until the kernel queues no more.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	first, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if _, err := NewClient(path).Health(t.Context()); !errors.Is(err, ErrBusy) || errors.Is(err, ErrNoAnswer) {
		t.Errorf("a full queue: %v", err)
	}
}

func TestTheClientSaysWhyNobodyAnswers(t *testing.T) {
	dir := t.TempDir()
	if _, err := NewClient(filepath.Join(dir, "none.sock")).Health(t.Context()); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("got %v", err)
	}
	// A socket file whose server is gone.
	path := filepath.Join(dir, "stale.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if _, err := NewClient(path).Health(t.Context()); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("got %v", err)
	}
	// It is replaced.
	l, err = Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != socketMode {
		t.Errorf("got %v, %v", st.Mode(), err)
	}
	// One in use is not.
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "another server runs there") {
		t.Errorf("got %v", err)
	}
}

func TestConnectionsBeyondTheBoundWaitAndIdleOnesEnd(t *testing.T) {
	c, _, path := serve(t, &fakeKeeper{}, func(s *Server) {
		s.http.IdleTimeout = 200 * time.Millisecond
		s.http.ReadHeaderTimeout = 200 * time.Millisecond
	})
	for range MaxConnections + ownConnections { // silent ones
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := c.Health(ctx); err != nil {
		t.Errorf("silent clients keep others out: %v", err)
	}
}

func TestAHugeHeaderIsRefused(t *testing.T) {
	_, _, path := serve(t, &fakeKeeper{}, nil)
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(conn, "GET /v1/health HTTP/1.1\r\nHost: x\r\nX: %s\r\n\r\n", strings.Repeat("x", 64<<10))
	status, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && !strings.Contains(status, "431") {
		t.Errorf("got %q", status)
	}
}
