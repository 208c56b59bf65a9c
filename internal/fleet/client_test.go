package fleet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A respServer answers each command with bytes of the test's choice.
type respServer struct {
	net.Listener
	mu    sync.Mutex
	asked [][]string
	conns int
}

func serve(t *testing.T, answer func(args []string) string) *respServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &respServer{Listener: l}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns++
			s.mu.Unlock()
			go s.speak(c, answer)
		}
	}()
	return s
}

func (s *respServer) speak(c net.Conn, answer func(args []string) string) {
	defer c.Close()
	r := bufio.NewReader(c)
	for {
		left := 1 << 20
		v, err := readReply(r, &left, 0) // a command is a list, too
		if err != nil {
			return
		}
		var args []string
		for _, arg := range v.([]any) {
			args = append(args, arg.(string))
		}
		s.mu.Lock()
		s.asked = append(s.asked, args)
		s.mu.Unlock()
		reply := answer(args)
		if reply == "close" {
			return
		}
		if _, err := io.WriteString(c, reply); err != nil {
			return
		}
	}
}

func (s *respServer) commands() (list []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, args := range s.asked {
		list = append(list, strings.Join(args, " "))
	}
	return list
}

func clientOf(t *testing.T, url string) *client {
	t.Helper()
	target, err := parseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	c, err := newClient(target, "", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	return c
}

// ask does a GET, and gives it plenty of time.
func ask(t *testing.T, c *client) (any, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return c.do(ctx, "k", "GET", "k")
}

func TestRepliesAreReadAndBrokenOnesAreErrors(t *testing.T) {
	deep := strings.Repeat("*1\r\n", 1000) + ":1\r\n"
	for _, test := range []struct {
		reply string
		want  any
		err   string
	}{
		{"$3\r\nabc\r\n", "abc", ""}, {"$0\r\n\r\n", "", ""}, {"$-1\r\n", nil, ""}, {"+OK\r\n", "OK", ""}, {":-12\r\n", int64(-12), ""},
		{"*-1\r\n", nil, ""}, {"*2\r\n$1\r\na\r\n*1\r\n:1\r\n", []any{"a", []any{int64(1)}}, ""},
		{"-ERR no\r\n", nil, `the engine replied "ERR no"`},
		{"$9223372036854775807\r\n", nil, "too long"}, {"*9223372036854775807\r\n", nil, "too long"}, {"$300000\r\n", nil, "too long"},
		{"$99999999999999999999\r\n", nil, "breaks"}, {"$-2\r\n", nil, "breaks"}, {"*-2\r\n", nil, "breaks"}, {"$?\r\n", nil, "breaks"}, {"\r\n\r\n", nil, "breaks"},
		{"\n\n\n", nil, "breaks"}, {"$3\r\nabcde", nil, "breaks"}, {"%1\r\n", nil, "breaks"}, {"HTTP/1.1 400 Bad Request\r\n", nil, "breaks"},
		{deep, nil, "breaks"}, {"+" + strings.Repeat("x", 5000), nil, "breaks"}, {"*200000\r\n" + strings.Repeat(":1\r\n", 200000), nil, "too long"},
	} {
		s := serve(t, func([]string) string { return test.reply })
		got, err := ask(t, clientOf(t, "valkey://"+s.Addr().String()))
		switch {
		case test.err == "" && (err != nil || fmt.Sprint(got) != fmt.Sprint(test.want)):
			t.Errorf("%.40q: %v, %v; want %v", test.reply, got, err, test.want)
		case test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)):
			t.Errorf("%.40q: %v, %v; want an error with %q", test.reply, got, err, test.err)
		}
	}
}

// A length that is announced takes no memory; only what arrives does.
func TestAHugeReplyTakesNoMemory(t *testing.T) {
	s := serve(t, func([]string) string { return "*100000000\r\n$100000000\r\n" })
	c := clientOf(t, "valkey://"+s.Addr().String())
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if _, err := c.do(ctx, "k", "HGETALL", "k"); err == nil {
			t.Error("it is believed")
		}
		cancel()
	}
	if runtime.ReadMemStats(&after); after.TotalAlloc-before.TotalAlloc > 4<<20 {
		t.Errorf("%d bytes were allocated", after.TotalAlloc-before.TotalAlloc)
	}
}

// A reply that nobody asked for would be taken for the next command's.
func TestRepliesInExcessEndTheConnection(t *testing.T) {
	var n atomic.Int32
	s := serve(t, func(args []string) string { return fmt.Sprintf("$1\r\n%d\r\n$5\r\nstale\r\n", n.Add(1)) })
	c := clientOf(t, "valkey://"+s.Addr().String())
	for i := range 3 {
		if got, err := ask(t, c); got != fmt.Sprint(i+1) {
			t.Errorf("%v, %v", got, err)
		}
	}
}

func TestAConnectionThatTheEngineHasClosedIsReplacedOnce(t *testing.T) {
	var asked atomic.Int32
	s := serve(t, func(args []string) string {
		if n := asked.Add(1); n == 2 || n >= 4 {
			return "close"
		}
		return "+OK\r\n"
	})
	c := clientOf(t, "valkey://"+s.Addr().String())
	for range 2 {
		if got, err := ask(t, c); got != "OK" {
			t.Errorf("%v, %v", got, err)
		}
	}
	if _, err := ask(t, c); !errors.Is(err, io.EOF) {
		t.Errorf("asked for ever: %v", err)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	const questions = 100
	release := make(chan struct{})
	s := serve(t, func([]string) string { <-release; return "+OK\r\n" })
	c := clientOf(t, "valkey://"+s.Addr().String())
	var asking sync.WaitGroup
	for range questions {
		asking.Go(func() {
			if _, err := ask(t, c); err != nil {
				t.Error(err)
			}
		})
	}
	close(release)
	asking.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns > connsPerServer {
		t.Errorf("%d connections", s.conns)
	}
}

func TestAHungEngineCostsALookupNoMoreThanItsWaitAndSoonNothing(t *testing.T) {
	hung := make(chan struct{})
	t.Cleanup(func() { close(hung) })
	s := serve(t, func([]string) string { <-hung; return "close" })
	r := newRelay("r", clientOf(t, "valkey://"+s.Addr().String()), nil)
	for range breakAfter {
		if _, ok := r.Find(t.Context(), domain); ok {
			t.Error("found")
		}
	}
	if !r.breaker.isOpen() {
		t.Error("the breaker is closed")
	}
	asked := len(s.commands())
	if _, ours := r.Lease(t.Context(), "l", domain, time.Minute); !ours || len(s.commands()) != asked {
		t.Error("the engine is asked behind an open breaker")
	}
}

func TestURLs(t *testing.T) {
	for url, want := range map[string]string{
		"valkey://host":                      "single false  [host:6379] ",
		"valkeys://relay@host:7000":          "single true relay [host:7000] ",
		"redis://[2001:db8::1]:7000":         "single false  [[2001:db8::1]:7000] ",
		"valkey://[2001:db8::1]":             "single false  [[2001:db8::1]:6379] ",
		"unix:///run/valkey/valkey.sock":     "single false  [/run/valkey/valkey.sock] ",
		"unix://relay@/run/valkey.sock":      "single false relay [/run/valkey.sock] ",
		"sentinel://a,b:1,c/fleet":           "sentinel false  [a:26379 b:1 c:26379] fleet",
		"sentinels://relay@a/fleet":          "sentinel true relay [a:26379] fleet",
		"clusters://relay@a,b:1,10.0.0.1":    "cluster true relay [a:6379 b:1 10.0.0.1:6379] ",
		"valkey://a,b":                       "",
		"valkey://a/0":                       "",
		"sentinel://a,b":                     "",
		"valkey://":                          "",
		"valkey://a:":                        "",
		"valkey://a,":                        "",
		"unix://run/valkey.sock":             "",
		"http://a":                           "",
		"a:6379":                             "",
		"":                                   "",
		"valkey://relay:password@host":       "",
		"valkey://host:6379?db=1&protocol=3": "",
	} {
		t.Run(url, func(t *testing.T) {
			got, err := parseURL(url)
			if s := fmt.Sprintf("%s %t %s %s %s", got.kind, got.tls, got.user, got.hosts, got.name); err == nil && s != want || (err == nil) != (want != "") {
				t.Errorf("%q, %v; want %q", s, err, want)
			}
			if err != nil && strings.Contains(err.Error(), "relay:password") {
				t.Errorf("the error shows the password: %v", err)
			}
		})
	}
}

func TestClusterSlotsAreThoseOfTheSpecification(t *testing.T) {
	for key, want := range map[string]uint16{"123456789": 12739, "": 0, "t:p:{foo}": 12182, "foo": 12182, "{}foo": slotOf("{}foo"), "x{foo}{bar}": 12182} {
		if got := slotOf(key); got != want {
			t.Errorf("%q: %d, want %d", key, got, want)
		}
	}
}

func TestRedirectionsOfAClusterAreFollowedAndKept(t *testing.T) {
	second := serve(t, func(args []string) string { return "+second\r\n" })
	first := serve(t, func(args []string) string { return fmt.Sprintf("-MOVED %d %s\r\n", slotOf("k"), second.Addr()) })
	c := clientOf(t, "cluster://"+first.Addr().String())
	for range 3 {
		if got, err := ask(t, c); got != "second" {
			t.Errorf("%v, %v", got, err)
		}
	}
	if n := len(first.commands()); n != 1 {
		t.Errorf("the first server was asked %d times", n)
	}
	asking := serve(t, func(args []string) string { return "-ASK 1 " + second.Addr().String() + "\r\n" })
	if got, err := ask(t, clientOf(t, "cluster://"+asking.Addr().String())); got != "second" || !strings.Contains(fmt.Sprint(second.commands()), "ASKING") {
		t.Errorf("%v, %v, %q", got, err, second.commands())
	}
	var loop *respServer
	ready := make(chan struct{})
	loop = serve(t, func(args []string) string { <-ready; return "-MOVED 1 " + loop.Addr().String() + "\r\n" })
	close(ready)
	if _, err := ask(t, clientOf(t, "cluster://"+loop.Addr().String())); err == nil {
		t.Error("redirected for ever")
	}
	alone := serve(t, func(args []string) string { return "-MOVED 1 " + second.Addr().String() + "\r\n" })
	if _, err := ask(t, clientOf(t, "valkey://"+alone.Addr().String())); err == nil {
		t.Error("a single server may send its relays elsewhere")
	}
}

func TestTheSentinelsAreAskedInTurnAndAgainWhenThePrimaryIsReadOnly(t *testing.T) {
	old := serve(t, func(args []string) string { return "-READONLY you cannot write against a replica\r\n" })
	primary := serve(t, func(args []string) string { return "+primary\r\n" })
	var asked atomic.Int32
	sentinel := serve(t, func(args []string) string {
		if len(args) != 3 || args[2] != "fleet" {
			return "*-1\r\n"
		}
		at := old.Addr()
		if asked.Add(1) > 1 {
			at = primary.Addr()
		}
		host, port, _ := net.SplitHostPort(at.String())
		return fmt.Sprintf("*2\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n", len(host), host, len(port), port)
	})
	ignorant := serve(t, func(args []string) string { return "*-1\r\n" })
	c := clientOf(t, "sentinel://"+ignorant.Addr().String()+","+sentinel.Addr().String()+"/fleet")
	if _, err := ask(t, c); err == nil {
		t.Error("a replica is the primary")
	}
	for range 2 {
		if got, err := ask(t, c); got != "primary" {
			t.Errorf("%v, %v", got, err)
		}
	}
	if n := len(sentinel.commands()); n != 2 {
		t.Errorf("the Sentinel was asked %d times", n)
	}
}

func TestTheFilesOfAFleetAreChecked(t *testing.T) {
	file := func(text string) string {
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	one, two := NewKey(), NewKey()
	if one == two || len(one) != 2*keyBytes {
		t.Errorf("keys %q, %q", one, two)
	}
	good := Options{URL: "valkey://relay@127.0.0.1", KeyFile: file(one + "\n"), PasswordFile: file("secret\n")}
	for name, test := range map[string]struct {
		bend func(*Options)
		err  string
	}{
		"good":             {func(o *Options) {}, ""},
		"two keys":         {func(o *Options) { o.KeyFile = file("# new\n" + two + "\n\n" + one + "\r\n") }, ""},
		"no key file":      {func(o *Options) { o.KeyFile = "" }, "-fleet-key"},
		"an empty one":     {func(o *Options) { o.KeyFile = file("\n") }, "has 0 keys"},
		"three keys":       {func(o *Options) { o.KeyFile = file(one + "\n" + two + "\n" + NewKey() + "\n") }, "has 3 keys"},
		"a short key":      {func(o *Options) { o.KeyFile = file("\n" + one[:62] + "\n") }, ":2: not a key"},
		"a missing file":   {func(o *Options) { o.KeyFile = "/nowhere" }, "no such file"},
		"a user alone":     {func(o *Options) { o.PasswordFile = "" }, "password_file"},
		"an empty secret":  {func(o *Options) { o.PasswordFile = file("\n") }, "is empty"},
		"no certificate":   {func(o *Options) { o.CAFile = file("x") }, "no certificate"},
		"a url of nothing": {func(o *Options) { o.URL = "valkey://" }, "expected"},
	} {
		o := good
		test.bend(&o)
		if _, err := New(o); (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
			t.Errorf("%s: %v; want %q", name, err, test.err)
		}
	}
}

func TestAnEngineAcrossANetworkWithoutTLSOrPasswordIsAWarning(t *testing.T) {
	for url, want := range map[string]int{"valkey://127.0.0.1": 0, "valkey://localhost,": 0, "unix:///s": 0, "valkey://192.0.2.1": 2, "valkeys://engine.example": 1, "cluster://127.0.0.1,192.0.2.1": 2} {
		target, _ := parseURL(strings.TrimSuffix(url, ","))
		if got := target.warnings(false); len(got) != want {
			t.Errorf("%s: %q", url, got)
		}
	}
}

func TestAnAddressThatAServerNamesIsChecked(t *testing.T) {
	c := clientOf(t, "cluster://127.0.0.1:6379")
	for rest, want := range map[string]string{
		"1 192.0.2.1:6379": "192.0.2.1:6379",
		"1 ::1:6379":       "[::1]:6379", // as Redis 7 writes it
		"1 [::1]:6379":     "[::1]:6379",
		"1 :6380":          "127.0.0.1:6380",
		"1 a.example":      "",
		"1 a.example:0":    "",
		"1 /run/x:1":       "",
		"1":                "",
		"99999 a:1":        "",
		"1 " + strings.Repeat("a", maxName+1) + ":1": "",
	} {
		if got, ok := c.redirect("127.0.0.1:6379", "MOVED", rest); got != want || ok != (want != "") {
			t.Errorf("%.40q: %q, %v", rest, got, ok)
		}
	}
	long := strings.Repeat("a", 1<<20)
	sentinel := serve(t, func([]string) string { return fmt.Sprintf("*2\r\n$%d\r\n%s\r\n$1\r\n1\r\n", len(long), long) })
	c = clientOf(t, "sentinel://"+sentinel.Addr().String()+"/fleet")
	if _, err := ask(t, c); err == nil || len(err.Error()) > 200 || len(c.servers) != 1 {
		t.Errorf("%.200v; %d servers", err, len(c.servers))
	}
}

func TestAFileOfAFleetThatIsNoRegularFileDoesNotStopTheStart(t *testing.T) {
	for name, o := range map[string]Options{
		"key_file":      {KeyFile: os.DevNull},
		"password_file": {PasswordFile: os.DevNull},
		"ca_file":       {CAFile: os.DevNull},
	} {
		o.URL = "valkey://127.0.0.1"
		if o.KeyFile == "" {
			o.KeyFile = filepath.Join(t.TempDir(), "key")
			if err := os.WriteFile(o.KeyFile, []byte(NewKey()), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
