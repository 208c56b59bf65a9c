package config_test

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

func TestAnAbsentDefaultFileIsNoErrorAndANamedOneIs(t *testing.T) {
	if _, err := os.Stat(config.DefaultPath); errors.Is(err, fs.ErrNotExist) {
		if c, err := config.Load(""); err != nil || !reflect.DeepEqual(c, config.Default()) {
			t.Errorf("got %+v, %v", c, err)
		}
	}
	missing := filepath.Join(t.TempDir(), "none.toml")
	if _, err := config.Load(missing); err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("got %v, want an error that names the file", err)
	}
	if _, err := config.Load(t.TempDir()); err == nil {
		t.Error("a folder was read as a file")
	}
}

// everything sets each key to something other than its default.
const everything = `
listen  = ["inet:127.0.0.2:1", "unix:/run/x/socketmap.sock", "inet:[::1]:0"]
control = "unix:/run/x/control.sock"
metrics = "inet:127.0.0.2:3"
log_level = "debug"
[socket]
mode = "0660"
max_connections = 7
[cache]
path = "/var/cache.db"
max_size = "512MiB"
[dns]
servers = ["127.0.0.1:54", "::1", "[fe80::1%eth0]:99"]
trust_ad = false
timeout = "1s"
[fetch]
timeout = "10s"
allow_private = true
[lookup]
timeout = "11s"
concurrency = 12
[refresh]
recheck = "6m"
unused_after = "1d12h"
fetch_rate = 14
concurrency = 15
[exempt]
domains = ["Example.COM.", ".bücher.example"]
[tlsrpt]
organization = "Example"
contact = "tls@example.test"
sender = "noreply@example.test"
postfix_socket = "unix:/run/x/tlsrpt.sock"
exim_socket = "unix:/run/x/exim.sock"
path = "/var/reports.db"
max_size = "1GiB"
keep = "3d"
window = "1h"
submit = "sendmail:/usr/sbin/sendmail"
collect = true
dkim_key = "/etc/dkim.pem"
dkim_selector = "s1"
https_verify = true
max_per_destination = 17
report = "failures"
probe_testing = false
skip = ["Example.NET", ".example.org"]
[fleet]
url = "valkeys://relay@valkey.example:6379"
password_file = "/etc/password"
key_file = "/etc/key"
ca_file = "/etc/ca.pem"
prefix = "mail:"
name = "mx1"
[map.postfix]
testing = "enforce"
[map.rehearsal]
tlsrpt = true
servername = false
enforce = false
[map.postfix-dane]
dane = false
[map.zrelay]
format = "exim"
`

func TestEveryKeyIsTaken(t *testing.T) {
	got, err := config.Parse("/etc/x.toml", []byte(everything))
	if err != nil {
		t.Fatal(err)
	}
	no := false
	want := &config.Config{
		File: "/etc/x.toml",
		Listen: []endpoint.Endpoint{
			{Network: "tcp", Address: "127.0.0.2:1"},
			{Network: "unix", Address: "/run/x/socketmap.sock"},
			{Network: "tcp", Address: "[::1]:0"},
		},
		Control:  endpoint.Endpoint{Network: "unix", Address: "/run/x/control.sock"},
		Metrics:  endpoint.Endpoint{Network: "tcp", Address: "127.0.0.2:3"},
		LogLevel: slog.LevelDebug,
		Socket:   config.Socket{Mode: 0o660, MaxConnections: 7},
		Cache:    config.Cache{Path: "/var/cache.db", MaxSize: 512 << 20},
		DNS: config.DNS{
			Servers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:54"), netip.MustParseAddrPort("[::1]:53"), netip.MustParseAddrPort("[fe80::1%eth0]:99")},
			TrustAD: &no, Timeout: time.Second,
		},
		Fetch:  config.Fetch{Timeout: 10 * time.Second, AllowPrivate: true},
		Lookup: config.Lookup{Timeout: 11 * time.Second, Concurrency: 12},
		Refresh: config.Refresh{
			Recheck: 6 * time.Minute, UnusedAfter: 36 * time.Hour, FetchRate: 14, Concurrency: 15,
		},
		Exempt: config.Exempt{Domains: []string{"example.com", ".xn--bcher-kva.example"}},
		TLSRPT: config.TLSRPT{
			Organization: "Example", Contact: "tls@example.test", Sender: "noreply@example.test",
			PostfixSocket: endpoint.Endpoint{Network: "unix", Address: "/run/x/tlsrpt.sock"},
			EximSocket:    endpoint.Endpoint{Network: "unix", Address: "/run/x/exim.sock"},
			Path:          "/var/reports.db", MaxSize: 1 << 30, Keep: 72 * time.Hour, Window: time.Hour,
			Submit: "sendmail:/usr/sbin/sendmail", Collect: true, DKIMKey: "/etc/dkim.pem", DKIMSelector: "s1",
			HTTPSVerify: true, MaxPerDestination: 17, Report: "failures", Skip: []string{"example.net", ".example.org"},
		},
		Fleet: config.Fleet{
			URL: "valkeys://relay@valkey.example:6379", PasswordFile: "/etc/password", KeyFile: "/etc/key", CAFile: "/etc/ca.pem",
			Prefix: "mail:", Name: "mx1",
		},
		Maps: []mta.Map{
			{Name: "postfix", Format: "postfix", Servername: true, Enforce: true, Testing: true},
			{Name: "postfix-tlsrpt", Format: "postfix", TLSRPT: true, Servername: true, Enforce: true},
			{Name: "postfix-dane", Format: "postfix", Servername: true, Enforce: true},
			{Name: "postfix-dane-tlsrpt", Format: "postfix", DANE: true, TLSRPT: true, Servername: true, Enforce: true},
			{Name: "exim", Format: "exim", Servername: true, Enforce: true},
			{Name: "sts", Format: "sendmail", Servername: true, Enforce: true},
			{Name: "rehearsal", Format: "postfix", TLSRPT: true},
			{Name: "zrelay", Format: "exim", Servername: true, Enforce: true},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestEveryKeyOfTheFileIsInTheTableOfKeys(t *testing.T) {
	for _, name := range config.Keys() {
		last := name[strings.LastIndexByte(name, '.')+1:]
		switch name { // not in everything: they need a file
		case "fetch.ca_file", "exempt.file":
			continue
		}
		if !strings.Contains(everything, "\n"+last+" ") {
			t.Errorf("the test's file does not set %s", name)
		}
	}
}

func TestEachMistakeIsNamedWithItsLineAndKey(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"no TOML", "listen = [\n\n", "f.toml:"},
		{"a key given twice", "log_level = \"info\"\nlog_level = \"info\"\n", "f.toml:2: "},
		{"a slip of the finger", "\nlog_levle = \"info\"", "f.toml:2: log_levle: there is no such key; did you mean log_level?"},
		{"a slip in a section", "[cache]\nmaxsize = \"1GiB\"", "f.toml:2: cache.maxsize: there is no such key; did you mean cache.max_size?"},
		{"a key of another section", "max_size = \"1GiB\"", "f.toml:1: max_size: there is no such key; did you mean cache.max_size or tlsrpt.max_size?"},
		{"a key nobody can guess", "[cache]\nfrobnicate = 1", "f.toml:2: cache.frobnicate: there is no such key; [cache] has path, max_size"},
		{"a key of two sections", "timeout = \"1s\"", "did you mean dns.timeout or fetch.timeout or lookup.timeout?"},
		{"a key of a section in quotes", "\n\"cache.path\" = \"nowhere/x.db\"", `f.toml:2: "cache.path": there is no such key; did you mean cache.path?`},
		{"the same beside its section", "\"cache.path\" = \"/x.db\"\n[cache]\npath = \"/y.db\"", `f.toml:1: "cache.path": there is no such key`},
		{"a table of a map in quotes", "[\"map.x\"]\ndane = true", `f.toml:1: "map.x": there is no such key`},
		{"an unknown section", "[cahce]\npath = \"/x\"", "f.toml:1: cahce: there is no such key; did you mean the table"},
		{"a section that is a value", "cache = \"/x\"", `f.toml:1: cache: is "/x"; expected a table`},
		{"an empty listen", "listen = []", "f.toml:1: listen: is a list of 0; expected a list of 1 to 32"},
		{"a listener without its kind", "listen = [\"127.0.0.1:8461\"]", `f.toml:1: listen[0]: is "127.0.0.1:8461"; expected "inet:ADDRESS:PORT"`},
		{"the second listener", "listen = [\n\"inet:127.0.0.1:1\",\n\"inet:x.example:1\"]", "f.toml:3: listen[1]: "},
		{"a listener twice", "listen = [\"inet:127.0.0.1:1\",\n\"inet:127.0.0.1:1\"]", "f.toml:2: listen[1]: inet:127.0.0.1:1 is used twice"},
		{"a listener that is no array", "listen = \"inet:127.0.0.1:1\"", `f.toml:1: listen: is "inet:127.0.0.1:1"; expected a list`},
		{"a socket path too long", "control = \"unix:/" + strings.Repeat("x", 107) + `"`, "f.toml:1: control: "},
		{"a control socket on the network", "control = \"inet:127.0.0.1:1\"", "expected a unix socket"},
		{"control and listener the same", "control = \"unix:/x\"\nlisten = [\"unix:/x\"]", "f.toml:1: control: unix:/x is used twice"},
		{"metrics on a unix socket", "metrics = \"unix:/x\"", "f.toml:1: metrics: is \"unix:/x\"; expected \"inet:ADDRESS:PORT\""},
		{"metrics and a listener the same", "metrics = \"inet:127.0.0.1:1\"\nlisten = [\"inet:127.0.0.1:1\"]", "f.toml:1: metrics: inet:127.0.0.1:1 is used twice"},
		{"a bad level", "log_level = \"loud\"", `f.toml:1: log_level: is "loud"; expected "debug", "info"`},
		{"a mode that is a number", "[socket]\nmode = 666", "f.toml:2: socket.mode: is the number 666; expected an octal file mode"},
		{"a mode with more than permissions", "[socket]\nmode = \"7777\"", "f.toml:2: socket.mode: "},
		{"no connections", "[socket]\nmax_connections = 0", "expected a whole number from 1 to 65536"},
		{"a number with a point", "[lookup]\nconcurrency = 1.0", "f.toml:2: lookup.concurrency: is the number 1.0; expected a whole number from 1 to 4096"},
		{"no quotes", "log_level = info", `f.toml:1: log_level: expected newline but got U+006F 'o'; text needs quotes: "info"`},
		{"no quotes in a section", "[cache]\npath = /var/lib/x # here", `f.toml:2: cache.path: unexpected character U+002F '/' at start of value; text needs quotes: "/var/lib/x"`},
		{"no quotes around a mode", "socket.mode = 0666", `f.toml:1: socket.mode: integers cannot have leading zeroes; text needs quotes: "0666"`},
		{"no quotes around a duration", "[dns]\ntimeout = 1s\r\n", `f.toml:2: dns.timeout: strings must be quoted; text needs quotes: "1s"`},
		{"no quotes in a map", "[map.x]\nformat = exim", `f.toml:2: map.x.format: unexpected character U+0065 'e' at start of value; text needs quotes: "exim"`},
		{"no quotes in an array", "listen = [inet:127.0.0.1:1, unix:/x]", `f.toml:1: listen: expected keyword "inf"; expected a list, as ["..."]`},
		{"no quotes in a long array", "[exempt]\ndomains = [\n\"a.example\",\nb.example,\n]", "f.toml:4: unexpected character U+0062 'b' at start of value"},
		{"no closing quote", "log_level = \"info\n", "f.toml:1: log_level: basic strings cannot have new lines"},
		{"quotes of a text processor", "log_level = “info”\n", `at start of value; text needs quotes: "info"`},
		{"no quotes, and not what the key takes", "log_level = loud", `at start of value; expected "debug", "info", "warn" or "error"`},
		{"no quotes, and no array", "[dns]\nservers = 127.0.0.1", `expected a list, as ["..."]`},
		{"another word for true", "[dns]\ntrust_ad = yes", "f.toml:2: dns.trust_ad: unexpected character U+0079 'y' at start of value; expected true or false, without quotes"},
		{"a number with a comma", "[socket]\nmax_connections = 1,000", "f.toml:2: socket.max_connections: expected newline but got U+002C ','; expected a whole number from 1 to 65536"},
		{"no value", "[cache]\nmax_size =\n[dns]", "f.toml:2: cache.max_size: unexpected character U+000A at start of value; expected a size from 1MiB to 1TiB"},
		{"no sign", "log_level info", "f.toml:1: expected '=' after key"},
		{"words after the value", "[cache]\npath = \"/x\" y", "f.toml:2: cache.path: expected newline"},
		{"an array that does not end", "[dns]\nservers = [\n\"::1\",\n", "f.toml:3: array is incomplete"},
		{"a number given twice", "[socket]\nmax_connections = 5\nmax_connections = 5", "f.toml:3: socket.max_connections: key max_connections is already defined"},
		{"a size without a unit known", "[cache]\nmax_size = \"4GB\"", `f.toml:2: cache.max_size: is "4GB"; expected a size from 1MiB to 1TiB`},
		{"a size too small", "[cache]\nmax_size = 7", "f.toml:2: cache.max_size: is the number 7"},
		{"a DNS server's port 0", "[dns]\nservers = [\"127.0.0.1:0\"]", "f.toml:2: dns.servers[0]: "},
		{"a DNS server's port by name", "[dns]\nservers = [\"127.0.0.1:domain\"]", "f.toml:2: dns.servers[0]: "},
		{"a DNS server's port that is missing", "[dns]\nservers = [\"127.0.0.1:\"]", "f.toml:2: dns.servers[0]: "},
		{"an empty DNS server", "[dns]\nservers = [\"\"]", "f.toml:2: dns.servers[0]: "},
		{"a DNS server by name", "[dns]\nservers = [\"dns.example\"]", "f.toml:2: dns.servers[0]: "},
		{"trust_ad in quotes", "[dns]\ntrust_ad = \"yes\"", "expected true or false, without quotes"},
		{"a lookup longer than Postfix waits", "[lookup]\ntimeout = \"100s\"", "expected a duration from 100ms to 1m30s"},
		{"a duration that is a number", "[refresh]\nrecheck = 5", "f.toml:2: refresh.recheck: is the number 5; expected a duration"},
		{"a ca_file that is not there", "[fetch]\nca_file = \"/nowhere.pem\"", "f.toml:2: fetch.ca_file: "},
		{"a ca_file that is a folder", "[fetch]\nca_file = \"/\"", "f.toml:2: fetch.ca_file: read /: is a directory"},
		{"an exempt domain with a space", "[exempt]\ndomains = [\"a b\"]", "f.toml:2: exempt.domains[0]: "},
		{"an exempt file that is not there", "[exempt]\nfile = \"/nowhere\"", "f.toml:2: exempt.file: open /nowhere: no such file or directory; create it"},
		{"map as a value", "map = 1", "f.toml:1: map: is the number 1; expected a table"},
		{"a map as a value", "map.x = 1", "f.toml:1: map.x: is the number 1; expected a table"},
		{"a map with a space", "[map.\"a b\"]\nenforce = true", "is not the name of a map"},
		{"a key of a map", "[map.x]\nenforced = true", "f.toml:2: map.x.enforced: there is no such key; did you mean map.x.enforce?"},
		{"testing as a truth", "[map.x]\ntesting = true", `f.toml:2: map.x.testing: is true; expected "off" or "enforce"`},
		{"a bad format", "[map.x]\nformat = \"qmail\"", `f.toml:2: map.x.format: is "qmail"; expected "postfix" or "exim" or "sendmail"`},
		{"dane in quotes", "[map.x]\ndane = \"yes\"", `f.toml:2: map.x.dane: is "yes"; expected true or false`},
		{"DANE for Exim", "[map.x]\nformat = \"exim\"\ndane = true", `f.toml:1: map.x: dane does not go with format "exim"`},
		{"a way of mail that there is not", "[tlsrpt]\nsubmit = \"lmtp:/x\"", `f.toml:2: tlsrpt.submit: is "lmtp:/x"; expected "smtp:HOST:PORT"`},
		{"a way of mail without a port", "[tlsrpt]\nsubmit = \"smtp:127.0.0.1\"", "f.toml:2: tlsrpt.submit: "},
		{"a command that is no path", "[tlsrpt]\nsubmit = \"sendmail:sendmail\"", "f.toml:2: tlsrpt.submit: "},
		{"the socket of TLS reports twice", "control = \"unix:/x\"\n[tlsrpt]\npostfix_socket = \"unix:/x\"", "f.toml:3: tlsrpt.postfix_socket: unix:/x is used twice"},
		{"reports without a sender", "[tlsrpt]\norganization = \"x\"\ncontact = \"a@b.test\"", "f.toml:1: tlsrpt.sender: is missing; organization is set, and needs it"},
		{"a DKIM key without its selector", "[tlsrpt]\ndkim_key = \"/x\"", "f.toml:1: tlsrpt.dkim_selector: is missing; dkim_key is set"},
		{"reports for Exim", "[map.exim]\ntlsrpt = true", `f.toml:1: map.exim: tlsrpt does not go with format "exim"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := config.Parse("f.toml", []byte(test.text))
			var errs config.Errors
			if !errors.As(err, &errs) || len(errs) != 1 {
				t.Fatalf("got %v, want one error", err)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("got  %v\nwant %s", err, test.want)
			}
		})
	}
}

func TestAllMistakesAreReportedAtOnceInTheOrderOfTheLines(t *testing.T) {
	_, err := config.Parse("f.toml", []byte("listen = [\"x\", 7]\nlog_level = 1\nfoo = 1\n[cache]\nmax_size = true\n[map.x]\nbar = 1\n"))
	var errs config.Errors
	if !errors.As(err, &errs) {
		t.Fatal(err)
	}
	var keys []string
	last := 0
	for _, e := range errs {
		keys = append(keys, e.Key)
		if e.Line < last {
			t.Errorf("line %d after line %d", e.Line, last)
		}
		last = e.Line
	}
	want := "listen[0] listen[1] log_level foo cache.max_size map.x.bar"
	if got := strings.Join(keys, " "); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestAByteOrderMarkIsSkipped(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f.toml")
	for path, text := range map[string]string{
		file:                             "\ufefflog_level = \"debug\"\nexempt.file = \"exempt.txt\"\n",
		filepath.Join(dir, "exempt.txt"): "\ufeffa.example\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	if c.LogLevel != slog.LevelDebug || strings.Join(c.Exempt.Domains, " ") != "a.example" {
		t.Errorf("got %+v", c)
	}
}

func TestAKeyThatIsGoneIsAWarning(t *testing.T) {
	c, err := config.Parse("f.toml", []byte("[refresh]\nrecheck = \"6m\"\ncheck_rate = 50\ninterval = \"1d\"\n"))
	if err != nil || c.Refresh.Recheck != 6*time.Minute {
		t.Fatalf("got %+v, %v", c, err)
	}
	if w := c.Warnings; len(w) != 2 || !strings.HasPrefix(w[0], "f.toml:3: refresh.check_rate: has no effect: ") || !strings.HasPrefix(w[1], "f.toml:4: refresh.interval: ") {
		t.Errorf("warnings %q", w)
	}
}

func TestAMistakeInOneKeyHidesNoneInAnother(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"values and files", "log_level = 3\n[fetch]\nca_file = \"/nowhere.pem\"\n[exempt]\nfile = \"/nowhere\"\n",
			"f.toml:1: log_level: is the number 3; |f.toml:3: fetch.ca_file: open /nowhere.pem: |f.toml:5: exempt.file: open /nowhere: "},
		{"values and sockets", "log_level = 3\nlisten = [\n\"unix:/x\",\n7,\nfalse,\n\"unix:/x\"]\n",
			"f.toml:1: log_level: |f.toml:4: listen[1]: is the number 7; |f.toml:5: listen[2]: is false; |f.toml:6: listen[3]: unix:/x is used twice"},
		{"two keys of a map", "[map.x]\nformat = \"exim\"\ndane = true\ntesting = true\n",
			"f.toml:1: map.x: dane does not go with |f.toml:4: map.x.testing: is true; "},
		{"a key in quotes and the one it looks like", "\"cache.path\" = \"/x.db\"\n[cache]\npath = 7\n", "f.toml:1: \"cache.path\": |f.toml:3: cache.path: is the number 7; "},
		{"a default in the place of a mistake", "listen = [\"unix:/run/sts-tlsmap/control.sock\"]\ncontrol = 7\n", "f.toml:2: control: is the number 7; "},
		{"defaults in the place of a mistake", "listen = 7\nmetrics = \"inet:127.0.0.1:8461\"\n", "f.toml:1: listen: is the number 7; "},
		{"a map's default in the place of a mistake", "[map.exim]\nformat = 7\ndane = true\n", "f.toml:2: map.exim.format: is the number 7; "},
	} {
		_, err := config.Parse("f.toml", []byte(test.text))
		var errs config.Errors
		if !errors.As(err, &errs) {
			t.Errorf("%s: got %v", test.name, err)
			continue
		}
		want := strings.Split(test.want, "|")
		for i, e := range errs {
			if len(errs) != len(want) || !strings.HasPrefix(e.Error(), want[i]) {
				t.Errorf("%s: got\n%v\nwant\n%s", test.name, err, strings.Join(want, "\n"))
				break
			}
		}
	}
}

func TestAFileOfCertificatesWithoutAnyIsAMistakeOfItsKey(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f.toml")
	for _, text := range []string{"", "no certificate\n", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if err := os.WriteFile(filepath.Join(dir, "ca.pem"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := config.Parse(file, []byte("[fetch]\nca_file = \"ca.pem\"\n"))
		want := file + ":2: fetch.ca_file: there is no certificate in PEM form in " + dir + "/ca.pem; expected a file of PEM certificates"
		if err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
}

func TestTheNumberOfMapsIsBounded(t *testing.T) {
	var b strings.Builder
	for i := range config.MaxMaps {
		b.WriteString("[map.x" + string(rune('a'+i)) + "]\n")
	}
	if _, err := config.Parse("f", []byte(b.String())); err != nil {
		t.Error(err)
	}
	b.WriteString("[map.y]\n")
	if _, err := config.Parse("f", []byte(b.String())); err == nil || !strings.Contains(err.Error(), "too many maps") {
		t.Errorf("got %v", err)
	}
}

func TestATableNamedLikeAnAliasStartsFromTheAliasedMap(t *testing.T) {
	c, err := config.Parse("f", []byte("[map.query]\nenforce = false\n[map.postfix-dane]\ntesting = \"enforce\"\n[map.STS]\nenforce = false\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := []mta.Map{
		{Name: "STS", Format: "sendmail", Servername: true},
		{Name: "query", Format: "postfix", DANE: true, Servername: true, Testing: true},
	}
	if got := c.Maps[6:]; !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestTheFileSaysWhetherDANEIsWanted(t *testing.T) {
	for text, want := range map[string]bool{
		"": false, "[map.x]\n": false, "[map.postfix]\ntesting = \"enforce\"\n": false, "[map.postfix-dane]\ndane = false": false,
		"[map.x]\ndane = true\n": true, "[map.postfix-dane]\ntesting = \"enforce\"\n": true, "[map.QUERY]\nenforce = false\n": true,
	} {
		c, err := config.Parse("f", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if c.SetsDANE() != want {
			t.Errorf("%q: got %v", text, !want)
		}
	}
	if config.Default().SetsDANE() {
		t.Error("the defaults do")
	}
}

func TestAnExemptFileIsReadAndItsErrorsHaveItsOwnLines(t *testing.T) {
	dir := t.TempDir()
	text := []byte("[exempt]\ndomains = [\"a.example\"]\nfile = \"exempt.txt\"\n")
	write := func(s string) {
		if err := os.WriteFile(filepath.Join(dir, "exempt.txt"), []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("# those who cannot\nb.example # since May\r\n\n .c.example\n")
	c, err := config.Parse(filepath.Join(dir, "f.toml"), text)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(c.Exempt.Domains, " "); got != "a.example b.example .c.example" {
		t.Errorf("got %s", got)
	}
	write("b.example\nno domain\n")
	_, err = config.Parse(filepath.Join(dir, "f.toml"), text)
	if err == nil || !strings.Contains(err.Error(), "exempt.txt:2: ") {
		t.Errorf("got %v", err)
	}
	write(strings.Repeat("no domain\n", 1000))
	_, err = config.Parse(filepath.Join(dir, "f.toml"), text)
	var errs config.Errors
	if !errors.As(err, &errs) || len(errs) != 20 {
		t.Errorf("got %d errors", len(errs))
	}
}

func TestWhatIsAboveAnErrorInTheSyntaxIsTaken(t *testing.T) {
	const above = "listen = [\"inet:127.0.0.1:18461\"]\ncontrol = \"unix:/c.sock\"\n[socket]\nmode = \"0600\"\n"
	for _, below := range []string{"foo = = 3\n", "[exempt]\ndomains = [\n\"a.example\",\nb.example,\n]\n", "mode = \"0666\"\n", "[cache\n"} {
		c, err := config.Parse("f.toml", []byte(above+below))
		if err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: got %v, want one error", below, err)
		}
		if c.Listen[0].Address != "127.0.0.1:18461" || c.Control.Address != "/c.sock" || c.Socket.Mode != 0o600 {
			t.Errorf("%q: got %v, %v and %o", below, c.Listen, c.Control, c.Socket.Mode)
		}
	}
}

func TestRelativePathsAreTakenFromTheFoldersOfTheFile(t *testing.T) {
	c, err := config.Parse("/srv/x/f.toml", []byte("control = \"unix:c.sock\"\nlisten = [\"unix:s.sock\"]\n[cache]\npath = \"cache.db\""))
	if err != nil {
		t.Fatal(err)
	}
	if c.Control.Address != "/srv/x/c.sock" || c.Listen[0].Address != "/srv/x/s.sock" || c.Cache.Path != "/srv/x/cache.db" {
		t.Errorf("got %+v", c)
	}
}

func TestTLSReportsAreOffWithoutTheirThreeKeys(t *testing.T) {
	for text, want := range map[string][2]bool{
		"":                            {false, false},
		"[tlsrpt]\nwindow = \"1h\"\n": {false, false},
		"[tlsrpt]\ncollect = true\n":  {true, false},
		"[tlsrpt]\norganization = \"x\"\ncontact = \"a@b.test\"\nsender = \"a@b.test\"\n": {true, true},
	} {
		c, err := config.Parse("f.toml", []byte(text))
		if got := [2]bool{c.TLSRPT.On(), c.TLSRPT.Reports()}; err != nil || got != want {
			t.Errorf("%q: on and reports are %v, %v; want %v", text, got, err, want)
		}
	}
	_, err := config.Parse("f.toml", []byte("[tlsrpt]\ncontact = \"a@b.test\"\n"))
	if err == nil || !strings.Contains(err.Error(), "tlsrpt.organization: is missing") || !strings.Contains(err.Error(), "tlsrpt.sender: is missing") {
		t.Errorf("each missing key is named: %v", err)
	}
}

func TestAMistakeInTLSReportsTurnsReportsOffAndIsNoErrorOfTheFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f.toml")
	for text, fatal := range map[string]string{"": "", "listen = 1\n": "listen: "} {
		text += "[tlsrpt]\norganization = \"x\"\ncontact = \"a@b.test\"\nwindow = \"0\"\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := config.Load(file)
		if (err == nil) != (fatal == "") || err != nil && (!strings.Contains(err.Error(), fatal) || strings.Contains(err.Error(), "tlsrpt")) {
			t.Errorf("%q: %v", text, err)
		}
		if got := c.TLSRPT.Errs.Error(); !c.TLSRPT.On() || !strings.Contains(got, "tlsrpt.sender: is missing") || !strings.Contains(got, "tlsrpt.window: ") {
			t.Errorf("%q: on: %v, %s", text, c.TLSRPT.On(), got)
		}
		if err := c.TLSRPT.Mistake("contact", os.ErrPermission); !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "f.toml:"+fmt.Sprint(3+strings.Count(text, "listen"))+": tlsrpt.contact: ") {
			t.Error(err)
		}
	}
}

func TestDurations(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"0s": 0, "90s": 90 * time.Second, "1d": 24 * time.Hour, "1d12h": 36 * time.Hour, "2d0s": 48 * time.Hour, "1.5h": 90 * time.Minute,
	} {
		if got, ok := config.ParseDuration(s); !ok || got != want {
			t.Errorf("%s: got %v %v, want %v", s, got, ok, want)
		}
	}
	for _, s := range []string{"", "d", "5", "-1s", "+1s", "+1d", "-1d", "1dd", "1h1d", "1d-1h", "1d+1h", "200000d", "99999999999999999999d", "106751d47h"} {
		if got, ok := config.ParseDuration(s); ok {
			t.Errorf("%q was read as %v", s, got)
		}
	}
}

func TestSizes(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "1B": 1, "1KiB": 1024, "4GiB": 4 << 30, "512 MiB": 512 << 20, "1TiB": 1 << 40, "17": 17} {
		if got, ok := config.ParseSize(s); !ok || got != want {
			t.Errorf("%s: got %v %v, want %v", s, got, ok, want)
		}
	}
	for _, s := range []string{"", "GiB", "-1B", "1.5GiB", "1GB", "99999999TiB", "x"} {
		if got, ok := config.ParseSize(s); ok {
			t.Errorf("%q was read as %v", s, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(everything))
	f.Add([]byte("map.x = {dane = true}\nlisten = [[1], {a = 2}, 1979-05-27]\n[[cache]]\n[refresh.x]\n"))
	f.Add([]byte("[cache]\npath = /x\n"))
	f.Add([]byte("listen = [\n\"a\",\nb,\n]\n"))
	f.Add([]byte("map.x.\"a b\" =\n"))
	f.Add([]byte("\"cache.path\" = 1\n\"a\\\".b\".c = 1\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := config.Parse("f.toml", text)
		if err != nil {
			var errs config.Errors
			if !errors.As(err, &errs) || len(errs) == 0 {
				t.Fatalf("an error without errors: %v", err)
			}
			return
		}
		if len(c.Listen) == 0 || c.Lookup.Timeout > 90*time.Second || len(c.Maps) > len(mta.Builtin())+config.MaxMaps {
			t.Fatalf("out of bounds: %+v", c)
		}
	})
}

func TestTheLimitOfASocketPathIncludesItsFolder(t *testing.T) {
	file := filepath.Join(t.TempDir(), strings.Repeat("d", 80), "sts-tlsmap.toml")
	for key, text := range map[string]string{
		"control":   `control = "unix:run/control.sock"`,
		"listen[0]": `listen = ["unix:run/socketmap.sock"]`,
	} {
		_, err := config.Parse(file, []byte(text))
		if err == nil || !strings.Contains(err.Error(), key) || !strings.Contains(err.Error(), "at most 107") {
			t.Errorf("%s: got %v", text, err)
		}
	}
}

func TestALongListIsReadAtOnceAndItsMistakesHaveTheirLines(t *testing.T) {
	const n = 60_000
	text := "[exempt]\ndomains = [\n" + strings.Repeat("\"x.example\",\n", n) + "\"not a domain\",\n]\n"
	start := time.Now()
	_, err := config.Parse("f.toml", []byte(text))
	if took := time.Since(start); took > 10*time.Second { // a moment, unless lines are counted from the start each time
		t.Errorf("it took %s", took)
	}
	if want := fmt.Sprintf("f.toml:%d: exempt.domains[%d]: ", n+3, n); err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
}
