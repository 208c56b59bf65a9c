package endpoint

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, test := range []struct{ in, network, address string }{
		{"inet:127.0.0.1:8461", "tcp", "127.0.0.1:8461"},
		{"inet:localhost:8461", "tcp", "localhost:8461"},
		{"inet:[::1]:8461", "tcp", "[::1]:8461"},
		{"inet:127.0.0.1:0", "tcp", "127.0.0.1:0"},
		{"unix:/run/x/map.sock", "unix", "/run/x/map.sock"},
		{"unix:/run/a:b", "unix", "/run/a:b"},
	} {
		e, err := Parse(test.in)
		if want := (Endpoint{test.network, test.address}); e != want || err != nil {
			t.Errorf("%q is %+v, %v; want %+v", test.in, e, err, want)
		}
		if e.String() != test.in {
			t.Errorf("%q is written as %q", test.in, e)
		}
	}
}

func TestAnEndpointErrorSaysWhatToWrite(t *testing.T) {
	for _, test := range []struct{ in, hint string }{
		{"", `"inet:HOST:PORT"`},
		{"127.0.0.1:8461", `"inet:127.0.0.1:8461"`},
		{"/run/map.sock", `"unix:/run/map.sock"`},
		{"tcp:127.0.0.1:8461", `"inet:HOST:PORT"`},
		{"inet:", `"inet:127.0.0.1:8461"`},
		{"inet:8461", `"inet:127.0.0.1:8461"`},
		{"inet:127.0.0.1", `"inet:127.0.0.1:8461"`},
		{"inet::8461", `"inet:127.0.0.1:8461" for this machine only`},
		{"inet:*:8461", `"inet:0.0.0.0:8461"`},
		{"inet:::1:8461", "brackets"},
		{"inet:127.0.0.1:smtp", `"smtp" is not a number`},
		{"inet:127.0.0.1:65536", "from 0 to 65535"},
		{"inet:a b:25", "neither an address nor a host name"},
		{"unix:", "write an absolute one"},
		{"unix:run/map.sock", "absolute"},
		{"unix:@abstract", "absolute"},
		{"unix:/" + strings.Repeat("x", 107), "shorter"},
		{"unix:/a\x00b", "zero byte"},
	} {
		if e, err := Parse(test.in); err == nil || !strings.Contains(err.Error(), test.hint) {
			t.Errorf("%q is %+v, %v; want an error with %s", test.in, e, err, test.hint)
		}
	}
}

func TestARelativePathIsReadWhereItsFolderIsKnown(t *testing.T) {
	e, err := ParseRelative("unix:run/map.sock")
	if err != nil || e.In("/srv/x") != (Endpoint{"unix", "/srv/x/run/map.sock"}) {
		t.Errorf("got %v in its folder, %v", e.In("/srv/x"), err)
	}
	for _, s := range []string{"unix:/run/map.sock", "inet:127.0.0.1:8461"} {
		if e, err := ParseRelative(s); err != nil || e.In("/srv/x").String() != s {
			t.Errorf("%s: got %v in a folder, %v", s, e.In("/srv/x"), err)
		}
	}
	for _, s := range []string{"unix:", "unix:a\x00b", "unix:" + strings.Repeat("x", 108)} {
		if e, err := ParseRelative(s); err == nil {
			t.Errorf("%q was read as %+v", s, e)
		}
	}
}

func TestAPortHasOneSpelling(t *testing.T) {
	if e, err := Parse("inet:127.0.0.1:08461"); err != nil || e.String() != "inet:127.0.0.1:8461" {
		t.Errorf("got %v, %v", e, err)
	}
}

func TestAnEndpointAtAllAddressesIsReachedOnLoopback(t *testing.T) {
	for s, want := range map[string]string{
		"inet:0.0.0.0:1": "inet:127.0.0.1:1", "inet:[::]:1": "inet:[::1]:1",
		"inet:127.9.9.9:1": "inet:127.9.9.9:1", "inet:localhost:1": "inet:localhost:1", "unix:/x": "unix:/x",
		"inet:192.0.2.1:1": "", "inet:mx.example:1": "", "inet:[::ffff:0.0.0.0]:1": "",
	} {
		e, err := Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		at, local := e.Local()
		if local != (want != "") || local && at.String() != want || !local && at != e {
			t.Errorf("%s: got %s, %v; want %q", s, at, local, want)
		}
	}
}

func TestLoopback(t *testing.T) {
	for s, want := range map[string]bool{
		"inet:127.0.0.1:1": true, "inet:[::1]:1": true, "inet:localhost:1": true, "unix:/x": true,
		"inet:0.0.0.0:1": false, "inet:[::]:1": false, "inet:192.0.2.1:1": false, "inet:[::ffff:127.0.0.1]:1": true,
	} {
		e, err := Parse(s)
		if err != nil || e.Loopback() != want {
			t.Errorf("%s: got %v %v", s, err, e.Loopback())
		}
		if err == nil && e.String() != s {
			t.Errorf("%s: written as %s", s, e)
		}
	}
}
