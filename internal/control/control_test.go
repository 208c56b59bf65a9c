package control_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// patience bounds every wait of a test, and short is the server's where it is
// to lose its own.
const (
	patience = 30 * time.Second
	short    = 200 * time.Millisecond
)

var (
	end  = time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	once = []cache.Record{{Domain: "one.test", Mode: policy.ModeEnforce, ID: "1", Text: []byte("text"), Expires: end}}
)

// fakeKeeper holds records, in the order of their domains.
type fakeKeeper struct {
	mu        sync.Mutex
	records   []cache.Record
	negatives map[string]keeper.Negative
	listErr   error         // of every page after the first
	refresh   chan struct{} // if not nil, refreshes wait for it
	waiting   chan string   // is told of refreshes that wait
}

func (k *fakeKeeper) at(domain string) int {
	return slices.IndexFunc(k.records, func(r cache.Record) bool { return r.Domain == domain })
}

func (k *fakeKeeper) Get(domain string) (cache.Record, error) {
	if domain == "damaged.test" {
		return cache.Record{}, &cache.DamagedError{Domain: domain, Err: errors.New("its checksum is wrong")}
	}
	if i := k.at(domain); i >= 0 {
		return k.records[i], nil
	}
	return cache.Record{}, cache.ErrNotFound
}

func (k *fakeKeeper) List(after string, limit int) ([]cache.Record, string, error) {
	from := k.at(after) + 1
	if from > 0 && k.listErr != nil {
		return nil, "", k.listErr
	}
	if len(k.records) <= from+limit {
		return k.records[from:], "", nil
	}
	return k.records[from : from+limit], k.records[from+limit-1].Domain, nil
}

func (k *fakeKeeper) Refresh(ctx context.Context, domain string) (keeper.Refreshed, error) {
	if k.refresh != nil {
		k.waiting <- domain
		select {
		case <-k.refresh:
		case <-ctx.Done():
		}
	}
	return keeper.Refreshed{Domain: domain, Result: policy.ResultOK}, ctx.Err()
}

func (k *fakeKeeper) Forget(_ context.Context, domain string) (held, failure bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, failure = k.negatives[domain]
	delete(k.negatives, domain)
	return k.at(domain) >= 0, failure, nil
}

func (k *fakeKeeper) ForgetFailures() int { return len(k.negatives) }

func (k *fakeKeeper) Negative(domain string) (keeper.Negative, bool) {
	n, ok := k.negatives[domain]
	return n, ok
}

func (k *fakeKeeper) Learn(_ context.Context, domain string) (keeper.Learned, error) {
	return keeper.Learned{Domain: domain, Result: policy.ResultOK, Mode: "enforce"}, nil
}

func (k *fakeKeeper) Take(_ context.Context, f keeper.Foreign) (keeper.Learned, error) {
	if f.Domain == "bad.test" {
		return keeper.Learned{}, errors.New("it is no policy")
	}
	return keeper.Learned{Domain: f.Domain, Taken: f.ID == "1" && string(f.Text) == "text" && f.Expires.Equal(end)}, nil
}

// many are records of a text, more than the buffers of a socket hold.
func many(n int) []cache.Record {
	list := make([]cache.Record, n)
	for i := range list {
		list[i] = cache.Record{Domain: fmt.Sprintf("d%06d.test", i), Mode: policy.ModeEnforce, Text: []byte(strings.Repeat("x", 8<<10))}
	}
	return list
}

// fakeExemptions answers every Set with err.
type fakeExemptions struct{ err error }

func (f *fakeExemptions) InForce() []exempt.Exemption {
	return []exempt.Exemption{{Domain: "a.test", Until: end}}
}

func (f *fakeExemptions) Set(string, time.Duration) (time.Time, bool, error) { return end, true, f.err }

// serve starts a server for k and returns a client of it. Everybody may open
// its socket.
func serve(t *testing.T, k *fakeKeeper, change func(*control.Options, *http.Server)) (*control.Client, string) {
	t.Helper()
	fake := new(fakeExemptions)
	o := control.Options{
		Keeper: k, Exemptions: fake, Exempt: fake.InForce, Log: slog.New(slog.DiscardHandler),
		Health:    func() control.Health { return control.Health{Version: "test", PID: 7} },
		ExemptBy:  func(string) []exempt.Exemption { return nil },
		Rehearsed: func(string) []tlsmap.Rehearsed { return nil },
		DANE:      func(string) map[dane.NextHop]dane.Finding { return nil },
	}
	settings := new(http.Server)
	if change != nil {
		change(&o, settings)
	}
	s := control.NewServer(o)
	for to, from := range map[*time.Duration]time.Duration{
		&s.ReadTimeout: settings.ReadTimeout, &s.ReadHeaderTimeout: settings.ReadHeaderTimeout,
		&s.IdleTimeout: settings.IdleTimeout, &s.WriteTimeout: settings.WriteTimeout,
	} {
		if from > 0 {
			*to = from
		}
	}
	path := filepath.Join(t.TempDir(), "c.sock")
	l, err := control.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{path: 0o666, filepath.Dir(path): 0o755, filepath.Dir(filepath.Dir(path)): 0o755} {
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil { // it waits for handlers
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	c := control.NewClient(path)
	t.Cleanup(c.Close)
	return c, path
}

// ask sends a request over a connection of its own.
func ask(t *testing.T, path, request string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	io.WriteString(conn, request) // the server may have closed it already
	return conn
}

// hungUp waits until the server has closed the connection.
func hungUp(t *testing.T, conn net.Conn) {
	t.Helper()
	if _, err := io.ReadAll(conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the server keeps the connection")
	}
}

func TestTheWholeCacheIsListedInOrderPageByPage(t *testing.T) {
	k := &fakeKeeper{records: many(100)}
	c, _ := serve(t, k, nil)
	n := 0
	err := c.List(t.Context(), func(e control.Entry) error {
		if want := k.records[n]; e.Domain != want.Domain || e.Mode != "enforce" || e.Policy != string(want.Text) || !e.Used.IsZero() {
			t.Errorf("%d: got %+v", n, e)
		}
		n++
		return nil
	})
	if err != nil || n != len(k.records) {
		t.Errorf("%d entries, %v", n, err)
	}
}

func TestAListingThatIsCutOffIsAnErrorForTheClient(t *testing.T) {
	c, _ := serve(t, &fakeKeeper{records: many(100), listErr: errors.New("the disk is on fire")}, nil)
	err := c.List(t.Context(), func(control.Entry) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "stopped in the middle: the cache cannot be read: the disk is on fire") {
		t.Errorf("got %v", err)
	}
	path := filepath.Join(t.TempDir(), "c.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, `{"domain":"a"}`) }))
	if err := control.NewClient(path).List(t.Context(), func(control.Entry) error { return nil }); err == nil || !strings.Contains(err.Error(), "broke off") {
		t.Errorf("an answer without an end: %v", err)
	}
}

func TestAClientThatDoesNotReadIsDisconnectedAndBlocksNobody(t *testing.T) {
	for _, timeout := range []time.Duration{time.Hour, short} {
		c, path := serve(t, &fakeKeeper{records: many(1000)}, func(_ *control.Options, s *http.Server) { s.WriteTimeout = timeout })
		conn := ask(t, path, "GET /v1/cache HTTP/1.1\r\nHost: x\r\n\r\n")
		if _, err := bufio.NewReaderSize(conn, 16).ReadByte(); err != nil { // it has begun
			t.Fatal(err)
		}
		if _, err := c.Held(t.Context(), "d000001.test"); err != nil {
			t.Error(err)
		}
		if timeout == time.Hour {
			conn.Close() // the cleanup waits for the listing
		}
	}
}

func TestWhatIsHeldForADomain(t *testing.T) {
	k := &fakeKeeper{records: once, negatives: map[string]keeper.Negative{
		"gone.test": {Domain: "gone.test", Result: policy.ResultNoRecord, Err: "nothing", Until: end},
	}}
	c, _ := serve(t, k, func(o *control.Options, _ *http.Server) {
		o.ExemptBy = func(d string) []exempt.Exemption {
			return map[string][]exempt.Exemption{
				"timed.test": {{Domain: ".test", Until: end.Add(-1)}, {Domain: "timed.test", Until: end}}, "ever.test": {{Domain: ".test", Until: end}, {Domain: "ever.test"}},
			}[d]
		}
		o.Rehearsed = func(d string) []tlsmap.Rehearsed {
			if d == "rehearsed.test" || d == "" {
				return []tlsmap.Rehearsed{{Domain: "rehearsed.test", Map: "m", Deferred: true, Count: 3}}
			}
			return nil
		}
		o.DANE = func(host string) map[dane.NextHop]dane.Finding {
			return map[dane.NextHop]dane.Finding{
				{Host: host, Port: 25}: {State: dane.Usable, Why: "1 of 1", Until: end}, {Host: host, Port: 587, Bracketed: true}: {State: dane.NotValidating, Until: end},
			}
		}
	})
	for domain, want := range map[string]func(h control.Held) bool{
		"one.test": func(h control.Held) bool {
			return h.Entry != nil && h.Entry.Policy == "text" && h.Negative == nil && !h.Exempt && reflect.DeepEqual(h.DANE, []control.DANE{
				{NextHop: "[one.test]:587", State: dane.NotValidating, Until: end}, {NextHop: "one.test", State: dane.Usable, Why: "1 of 1", Until: end}})
		},
		"gone.test":      func(h control.Held) bool { return h.Entry == nil && h.Negative.Result == policy.ResultNoRecord },
		"damaged.test":   func(h control.Held) bool { return strings.Contains(h.Damaged, "its checksum is wrong") },
		"timed.test":     func(h control.Held) bool { return h.Exempt && h.ExemptUntil.Equal(end) && len(h.ExemptBy) == 2 },
		"ever.test":      func(h control.Held) bool { return h.Exempt && h.ExemptUntil.IsZero() },
		"rehearsed.test": func(h control.Held) bool { return len(h.Rehearsed) == 1 },
	} {
		if h, err := c.Held(t.Context(), domain); err != nil || !want(h) {
			t.Errorf("%s: got %+v, %v", domain, h, err)
		}
	}
	if _, err := c.Held(t.Context(), "never.test"); !errors.Is(err, control.ErrNothingHeld) {
		t.Errorf("got %v", err)
	}
	n := 0
	if err := c.Rehearsed(t.Context(), func(r tlsmap.Rehearsed) error { n++; return nil }); err != nil || n != 1 {
		t.Errorf("%d rehearsed, %v", n, err)
	}
}

func TestDomainsAreRefreshedAtOnceAndForgotten(t *testing.T) {
	k := &fakeKeeper{refresh: make(chan struct{}), waiting: make(chan string, 3), records: once}
	c, _ := serve(t, k, nil)
	got := map[string]bool{}
	done := make(chan error, 1)
	go func() {
		done <- c.Refresh(context.Background(), []string{"a.test", "b.test", "c.test"}, func(r keeper.Refreshed) error {
			got[r.Domain] = r.Result == policy.ResultOK
			return nil
		})
	}()
	for range 3 { // all wait before one is let go
		select {
		case <-k.waiting:
		case <-time.After(patience):
			t.Fatal("refreshes wait for each other")
		}
	}
	close(k.refresh)
	if err := <-done; err != nil || !maps.Equal(got, map[string]bool{"a.test": true, "b.test": true, "c.test": true}) {
		t.Errorf("got %v, %v", got, err)
	}

	k.negatives = map[string]keeper.Negative{"y.test": {}, "z.test": {}}
	forgotten := make(map[string]control.Forgotten)
	err := c.Forget(t.Context(), []string{"one.test", "x.test", "y.test"}, func(f control.Forgotten) error {
		forgotten[f.Domain] = f
		return nil
	})
	want := map[string]control.Forgotten{
		"one.test": {Domain: "one.test", Found: true}, "x.test": {Domain: "x.test"}, "y.test": {Domain: "y.test", Failure: true},
	}
	if err != nil || !maps.Equal(forgotten, want) {
		t.Errorf("got %v, %v", forgotten, err)
	}
	if n, err := c.ForgetFailures(t.Context()); err != nil || n != 1 {
		t.Errorf("%d failures, %v", n, err)
	}
	if err := c.Refresh(t.Context(), []string{"UPPER.test"}, func(keeper.Refreshed) error { return nil }); err == nil || !strings.Contains(err.Error(), "not a domain in lower case") {
		t.Errorf("got %v", err)
	}
}

func TestARefreshEndsWhenItsClientGoesAway(t *testing.T) {
	k := &fakeKeeper{refresh: make(chan struct{}), waiting: make(chan string, 1)}
	c, _ := serve(t, k, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Refresh(ctx, []string{"a.test"}, func(keeper.Refreshed) error { return nil }) }()
	<-k.waiting
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestLearningSplitsItsInputIntoRequestsThatTheServerAccepts(t *testing.T) {
	c, _ := serve(t, &fakeKeeper{}, nil)
	got := map[string]keeper.Learned{}
	all := []control.Entry{{Domain: "a.test"}, {Domain: "b.test", ID: "1", Policy: "text", Expires: end}, {Domain: "bad.test", Policy: "x"}}
	for i := range 20 { // 7 MB of JSON
		all = append(all, control.Entry{Domain: fmt.Sprintf("long%d.test", i), Policy: strings.Repeat("\x01", 64<<10)})
	}
	err := c.Learn(t.Context(), slices.Values(all), func(l keeper.Learned) error { got[l.Domain] = l; return nil })
	if err != nil || len(got) != 23 || got["a.test"].Mode != "enforce" || !got["b.test"].Taken || got["bad.test"].Err != "it is no policy" {
		t.Errorf("%d: %+v, %v", len(got), got, err)
	}
}

func TestAnExemptionThatIsNotOnDiskAppliesAndIsReported(t *testing.T) {
	x := new(fakeExemptions)
	c, _ := serve(t, &fakeKeeper{}, func(o *control.Options, _ *http.Server) {
		o.Exemptions = x
		o.ExemptBy = func(string) []exempt.Exemption { return []exempt.Exemption{{Domain: ".test", Until: end}} }
	})
	for _, test := range []struct {
		long       time.Duration
		err        error
		said, fail string
		still      int
	}{
		{time.Hour, nil, "", "", 0},
		{0, nil, "", "", 1}, // by the parent's entry
		{time.Hour, fmt.Errorf("%w: the disk is full", exempt.ErrNotKept), "the disk is full", "", 0},
		{time.Hour, exempt.ErrTooLong, "", "at most 366 days", 0},
	} {
		x.err = test.err
		got, err := c.Exempt(t.Context(), "a.test", test.long)
		if test.fail != "" {
			if err == nil || !strings.Contains(err.Error(), test.fail) {
				t.Errorf("%+v: %v", test, err)
			}
			continue
		}
		if err != nil || !got.Was || !got.Until.Equal(end) || !strings.Contains(got.Err, test.said) || len(got.Still) != test.still {
			t.Errorf("%+v: %+v, %v", test, got, err)
		}
	}
	var list []exempt.Exemption
	if err := c.Exemptions(t.Context(), func(x exempt.Exemption) error { list = append(list, x); return nil }); err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
}

func TestTheClientSaysWhatItSaw(t *testing.T) {
	dir := t.TempDir()
	is := func(name string, want error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), short)
		defer cancel()
		if _, err := control.NewClient(filepath.Join(dir, name)).Health(ctx); !errors.Is(err, want) || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	listen := func(name string) *net.UnixListener {
		l, err := net.Listen("unix", filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l.(*net.UnixListener)
	}
	is("none.sock", control.ErrNoDaemon)
	stale := listen("stale.sock") // a socket file whose server is gone
	stale.SetUnlinkOnClose(false)
	stale.Close()
	is("stale.sock", control.ErrNoDaemon)
	listen("silent.sock") // as systemd does, for a daemon that cannot start
	is("silent.sock", control.ErrNoAnswer)
	closing := listen("closing.sock")
	go func() {
		for {
			c, err := closing.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	is("closing.sock", control.ErrClosed)

	// A stale socket is replaced, one in use is not.
	l, err := control.Listen(filepath.Join(dir, "stale.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if st, err := os.Stat(filepath.Join(dir, "stale.sock")); err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("got %v, %v", st.Mode(), err)
	}
	if _, err := control.Listen(filepath.Join(dir, "stale.sock")); err == nil || !strings.Contains(err.Error(), "another server runs there") {
		t.Errorf("got %v", err)
	}
}

func TestAnUnfinishedRequestIsDisconnected(t *testing.T) {
	_, path := serve(t, &fakeKeeper{}, func(_ *control.Options, s *http.Server) {
		s.ReadHeaderTimeout, s.ReadTimeout, s.IdleTimeout = short, short, short
	})
	for _, start := range []string{
		"", "GET /v1/he",
		"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n", // and is then idle
		"GET /v1/health HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n",
		"POST /v1/nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n",
		"POST /v1/forget HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{",
		"POST /v1/learn HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n" + strings.Repeat(" ", 1000),
		"GET /v1/health HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n",
	} {
		hungUp(t, ask(t, path, start))
	}
}

func TestTheReadTimeoutDoesNotEndASlowRequest(t *testing.T) {
	k := &fakeKeeper{refresh: make(chan struct{}), waiting: make(chan string, 1)}
	c, path := serve(t, k, func(_ *control.Options, s *http.Server) { s.ReadTimeout, s.ReadHeaderTimeout = short, short })
	done := make(chan error, 1)
	go func() {
		done <- c.Refresh(t.Context(), []string{"a.test"}, func(r keeper.Refreshed) error {
			if r.Err != "" {
				return errors.New(r.Err)
			}
			return nil
		})
	}()
	<-k.waiting
	for range 2 { // clients in turn, whose times have run out: so has the refresh's
		hungUp(t, ask(t, path, "GET"))
	}
	close(k.refresh)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestManyCallsOfOneClientAllGetAnAnswer(t *testing.T) {
	c, _ := serve(t, &fakeKeeper{records: once}, nil)
	var calls errgroup.Group
	for range 20 * control.MaxClients {
		calls.Go(func() error {
			_, err := c.Health(t.Context())
			return err
		})
	}
	if err := calls.Wait(); err != nil {
		t.Error(err)
	}
}
