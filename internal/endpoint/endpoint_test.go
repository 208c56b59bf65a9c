package endpoint_test

import (
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
)

func TestParse(t *testing.T) {
	for in, want := range map[string]endpoint.Endpoint{
		"inet:127.0.0.1:8461":  {Network: "tcp", Address: "127.0.0.1:8461"},
		"inet:localhost:8461":  {Network: "tcp", Address: "localhost:8461"},
		"inet:[::1]:8461":      {Network: "tcp", Address: "[::1]:8461"},
		"inet:127.0.0.1:0":     {Network: "tcp", Address: "127.0.0.1:0"},
		"unix:/run/x/map.sock": {Network: "unix", Address: "/run/x/map.sock"},
		"unix:/run/a:b":        {Network: "unix", Address: "/run/a:b"},
		"unix:run/map.sock":    {Network: "unix", Address: "run/map.sock"},
	} {
		e, err := endpoint.Parse(in)
		if e != want || err != nil || e.String() != in {
			t.Errorf("%q is %+v, %v; want %+v", in, e, err, want)
		}
	}
	if e, err := endpoint.Parse("inet:127.0.0.1:08461"); err != nil || e.String() != "inet:127.0.0.1:8461" {
		t.Errorf("a port with a zero in front: %v, %v", e, err)
	}
	for _, in := range []string{
		"", "127.0.0.1:8461", "/run/map.sock", "tcp:127.0.0.1:8461", "inet:", "inet:8461", "inet:127.0.0.1", "inet::8461", "inet:*:8461",
		"inet:::1:8461", "inet:127.0.0.1:smtp", "inet:127.0.0.1:65536", "inet:a b:25", "unix:", "unix:/" + strings.Repeat("x", 107), "unix:/a\x00b",
	} {
		if e, err := endpoint.Parse(in); err == nil || !strings.Contains(err.Error(), `expected "inet:HOST:PORT"`) {
			t.Errorf("%q is %+v, %v; want an error", in, e, err)
		}
	}
}

func TestARelativePathIsTakenFromAFolder(t *testing.T) {
	for in, want := range map[string]string{
		"unix:run/map.sock": "unix:/srv/x/run/map.sock", "unix:/run/map.sock": "unix:/run/map.sock", "inet:127.0.0.1:1": "inet:127.0.0.1:1",
	} {
		if e, err := endpoint.Parse(in); err != nil || e.In("/srv/x").String() != want {
			t.Errorf("%s: %v, %v; want %s", in, e.In("/srv/x"), err, want)
		}
	}
}

func TestWhoReachesAnEndpoint(t *testing.T) {
	for in, want := range map[string]struct {
		loopback bool
		local    string // where this machine reaches it; empty: over the network
	}{
		"inet:127.9.9.9:1": {true, "inet:127.9.9.9:1"}, "inet:[::1]:1": {true, "inet:[::1]:1"}, "inet:localhost:1": {true, "inet:localhost:1"},
		"inet:[::ffff:127.0.0.1]:1": {true, "inet:[::ffff:127.0.0.1]:1"}, "unix:/x": {true, "unix:/x"},
		"inet:0.0.0.0:1": {false, "inet:127.0.0.1:1"}, "inet:[::]:1": {false, "inet:[::1]:1"},
		"inet:192.0.2.1:1": {false, ""}, "inet:mx.example:1": {false, ""}, "inet:[::ffff:0.0.0.0]:1": {false, ""},
	} {
		e, err := endpoint.Parse(in)
		at, local := e.Local()
		if err != nil || e.Loopback() != want.loopback || local != (want.local != "") || local && at.String() != want.local || !local && at != e {
			t.Errorf("%s: %v, loopback %t, local %s %t", in, err, e.Loopback(), at, local)
		}
	}
}
