package resolver

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestResolvConf(t *testing.T) {
	yes, no := true, false
	for _, c := range []struct {
		name, text string
		conf       Config
		servers    string
		trust      bool
		timeout    time.Duration
		attempts   int
	}{
		{"empty is this machine", "", Config{}, "127.0.0.1:53", true, 5 * time.Second, 2},
		{"no server is this machine", "search example.com\n# nameserver 192.0.2.9\n;nameserver 192.0.2.9\n", Config{}, "127.0.0.1:53", true, 5 * time.Second, 2},
		{"one on loopback is believed", "nameserver 127.0.0.53\n", Config{}, "127.0.0.53:53", true, 5 * time.Second, 2},
		{"all on loopback are", "nameserver ::1\nnameserver 127.0.0.1", Config{}, "[::1]:53 127.0.0.1:53", true, 5 * time.Second, 2},
		{"one elsewhere is not", "nameserver 192.0.2.1\n", Config{}, "192.0.2.1:53", false, 5 * time.Second, 2},
		{"nor one of two", "nameserver 127.0.0.1\nnameserver 192.0.2.1\n", Config{}, "127.0.0.1:53 192.0.2.1:53", false, 5 * time.Second, 2},
		{"unless it says so", "nameserver 192.0.2.1\noptions edns0 trust-ad\n", Config{}, "192.0.2.1:53", true, 5 * time.Second, 2},
		{"the configuration's no counts", "nameserver 127.0.0.1\noptions trust-ad\n", Config{TrustAD: &no}, "127.0.0.1:53", false, 5 * time.Second, 2},
		{"the configuration's yes counts", "nameserver 192.0.2.1\n", Config{TrustAD: &yes}, "192.0.2.1:53", true, 5 * time.Second, 2},
		{"time-outs and attempts", "options timeout:3 attempts:4\nnameserver ::1", Config{}, "[::1]:53", true, 3 * time.Second, 4},
		{"are bounded", "options timeout:999999999999 attempts:99\noptions timeout:31\nnameserver ::1", Config{}, "[::1]:53", true, 30 * time.Second, 5},
		{"and make sense", "options timeout:0 attempts:-1 timeout: attempts:x timeout\nnameserver ::1", Config{}, "[::1]:53", true, 5 * time.Second, 2},
		{"the configuration's time-out counts", "options timeout:3\nnameserver ::1", Config{Timeout: time.Second}, "[::1]:53", true, time.Second, 2},
		{"a zone", "nameserver fe80::1%eth0\n", Config{}, "[fe80::1%eth0]:53", false, 5 * time.Second, 2},
		{"three at most", strings.Repeat("nameserver 192.0.2.1\n", 5), Config{}, "192.0.2.1:53 192.0.2.1:53 192.0.2.1:53", false, 5 * time.Second, 2},
		{"what is no address is passed over", "nameserver\nnameserver ns.example.com\nnameserver 192.0.2.1 and more\r\n\x00\xff junk\n", Config{}, "192.0.2.1:53", false, 5 * time.Second, 2},
		{"a very long line", "search " + strings.Repeat("x", 60000) + "\nnameserver ::1\n", Config{}, "[::1]:53", true, 5 * time.Second, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.conf.ResolvConf = filepath.Join(t.TempDir(), "resolv.conf")
			if err := os.WriteFile(c.conf.ResolvConf, []byte(c.text), 0o644); err != nil {
				t.Fatal(err)
			}
			r, err := New(c.conf)
			if err != nil {
				t.Fatal(err)
			}
			l := r.servers()
			if got := strings.Trim(fmt.Sprint(r.Servers()), "[]"); got != strings.Trim(c.servers, "[]") || l.trustAD != c.trust || l.timeout != c.timeout || l.attempts != c.attempts {
				t.Errorf("servers %s, trust-ad %v, timeout %v, attempts %d", got, l.trustAD, l.timeout, l.attempts)
			}
		})
	}
}

func TestTheADBitIsDroppedUnlessTheServersAreBelieved(t *testing.T) {
	yes, no := true, false
	f := (&fake{udp: zone(true, map[string][]string{"example.com.": {"example.com. 300 IN TXT x"}})}).start(t, "127.0.0.1", 0)
	for _, c := range []struct {
		trust *bool
		want  bool
	}{{nil, true}, {&yes, true}, {&no, false}} {
		r := resolverFor(t, Config{TrustAD: c.trust}, f)
		for _, name := range []string{"example.com", "absent.example"} {
			a, err := r.Query(t.Context(), name, TypeTXT)
			if err != nil || a.Authenticated != c.want || r.TrustsAD() != c.want {
				t.Errorf("%s: %+v, %v", name, a, err)
			}
		}
	}
	r := resolverFor(t, Config{Servers: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")}}, f)
	if r.TrustsAD() {
		t.Error("a server across the network is believed by default")
	}
}

// TestResolvConfIsReadAgainWhenItChanges moves a resolver from one server to
// another, to one that is not believed, and through a file that is gone or
// cannot be read.
func TestResolvConfIsReadAgainWhenItChanges(t *testing.T) {
	one := (&fake{udp: zone(true, map[string][]string{"example.com.": {"example.com. 300 IN TXT one"}})}).start(t, "127.0.0.1", 0)
	(&fake{udp: zone(true, map[string][]string{"example.com.": {"example.com. 300 IN TXT two"}})}).start(t, "127.0.0.2", one.addr.Port())
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(text string) {
		t.Helper()
		next := path + ".next"
		if err := os.WriteFile(next, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, path); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer
	write("nameserver 127.0.0.1\n")
	r, err := newResolver(Config{ResolvConf: path, Log: slog.New(slog.NewTextHandler(&log, nil))}, one.addr.Port())
	if err != nil {
		t.Fatal(err)
	}
	expect := func(what, text string, trusted bool, generation uint64) {
		t.Helper()
		a, err := r.Query(t.Context(), "example.com", TypeTXT)
		if err != nil || !slices.Equal(a.Texts, []string{text}) || a.Authenticated != trusted || r.TrustsAD() != trusted || r.Generation() != generation {
			t.Errorf("%s: %+v, %v; generation %d", what, a, err, r.Generation())
		}
	}
	expect("at first", "one", true, 0)
	write("nameserver 127.0.0.2\n")
	expect("before it is time to look", "one", true, 0)
	r.look = 0
	expect("changed", "two", true, 1)
	write("# a comment\nnameserver 127.0.0.2\n")
	expect("changed in nothing that counts", "two", true, 1)
	write("nameserver 127.0.0.2\nnameserver 192.0.2.1\n")
	expect("a server across the network", "two", false, 2)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	expect("gone", "one", true, 3)
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	expect("unreadable", "one", true, 3)
	expect("still unreadable", "one", true, 3)
	if strings.Count(log.String(), "stays in force") != 1 || !strings.Contains(log.String(), `servers=[127.0.0.2:`) {
		t.Errorf("log:\n%s", &log)
	}
	if _, err := New(Config{ResolvConf: path}); err == nil {
		t.Error("a start with a resolv.conf that cannot be read")
	}
	if r, err := New(Config{ResolvConf: path + ".absent"}); err != nil || fmt.Sprint(r.Servers()) != "[127.0.0.1:53]" || !r.TrustsAD() {
		t.Errorf("a start without resolv.conf: %v", err)
	}
}

func TestAChangeOfOptionsKeepsTheStateOfTheServers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("nameserver 192.0.2.1\nnameserver 192.0.2.2\n")
	r, err := New(Config{ResolvConf: path})
	if err != nil {
		t.Fatal(err)
	}
	r.look = 0
	first := r.servers().servers[0]
	for range restAfter {
		first.silent(time.Now())
	}
	write("nameserver 192.0.2.1\nnameserver 192.0.2.2\noptions timeout:3\n")
	l := r.servers()
	if l.timeout != 3*time.Second || r.Generation() != 0 {
		t.Errorf("time-out %v, generation %d", l.timeout, r.Generation())
	}
	if order := l.order(time.Now()); order[len(order)-1] != first {
		t.Error("it is forgotten that the first server was silent")
	}
}
