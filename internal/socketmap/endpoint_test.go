package socketmap

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestParseEndpoint(t *testing.T) {
	for _, test := range []struct{ in, network, address string }{
		{"inet:127.0.0.1:8461", "tcp", "127.0.0.1:8461"},
		{"inet:localhost:8461", "tcp", "localhost:8461"},
		{"inet:[::1]:8461", "tcp", "[::1]:8461"},
		{"inet:127.0.0.1:0", "tcp", "127.0.0.1:0"},
		{"unix:/run/x/map.sock", "unix", "/run/x/map.sock"},
		{"unix:/run/a:b", "unix", "/run/a:b"},
	} {
		e, err := ParseEndpoint(test.in)
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
		{"unix:", "absolute"},
		{"unix:run/map.sock", "absolute"},
		{"unix:@abstract", "absolute"},
		{"unix:/" + strings.Repeat("x", 107), "shorter"},
		{"unix:/a\x00b", "zero byte"},
	} {
		if e, err := ParseEndpoint(test.in); err == nil || !strings.Contains(err.Error(), test.hint) {
			t.Errorf("%q is %+v, %v; want an error with %s", test.in, e, err, test.hint)
		}
	}
}

func socketPath(t *testing.T) Endpoint {
	return Endpoint{"unix", filepath.Join(t.TempDir(), "map.sock")}
}

// withUmask runs the test under a umask that would get in the way.
func withUmask(t *testing.T, mask int) {
	old := syscall.Umask(mask)
	t.Cleanup(func() { syscall.Umask(old) })
}

func TestAUnixSocketHasItsModeWhateverTheUmask(t *testing.T) {
	for _, mask := range []int{0, 0o022, 0o077} {
		for _, mode := range []fs.FileMode{0o666, 0o660, 0o600} {
			withUmask(t, mask)
			at := socketPath(t)
			l, err := Listen(at, mode)
			if err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(at.Address)
			if err != nil {
				t.Fatal(err)
			}
			if got := info.Mode().Perm(); got != mode {
				t.Errorf("umask %o: mode %o, want %o", mask, got, mode)
			}
			l.Close()
			if _, err := os.Lstat(at.Address); err == nil {
				t.Error("the socket is still there after Close")
			}
		}
	}
}

// The kernel gives a socket file the mode that the socket had before it was
// bound: there is no moment in which more users may connect.
func TestAUnixSocketIsNeverMoreOpenThanItsMode(t *testing.T) {
	withUmask(t, 0)
	at := socketPath(t)
	config := listenConfig(0o600)
	l, err := config.Listen(t.Context(), "unix", at.Address) // no chmod after it
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	info, err := os.Stat(at.Address)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("mode %o at first, want 600", got)
	}
}

func TestTheSocketOfAServerThatIsGoneIsReplaced(t *testing.T) {
	at := socketPath(t)
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: at.Address, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	l, err := Listen(at, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

func TestTheSocketOfALivingServerIsLeftAlone(t *testing.T) {
	at := socketPath(t)
	alive, err := Listen(at, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	if _, err := Listen(at, 0o666); err == nil || !strings.Contains(err.Error(), "another server runs there") {
		t.Errorf("Listen: %v, want an error that says who is there", err)
	}
	if nc, err := net.Dial("unix", at.Address); err != nil {
		t.Errorf("the living server lost its socket: %v", err)
	} else {
		nc.Close()
	}
}

func TestAListenErrorSaysWhatToDo(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for _, test := range []struct {
		at   Endpoint
		hint string
	}{
		{Endpoint{"unix", file}, "remove it or choose another path"},
		{Endpoint{"unix", filepath.Join(dir, "none", "map.sock")}, "make the directory first"},
		{Endpoint{"tcp", busy.Addr().String()}, "stop it or choose another"},
		{Endpoint{"tcp", "192.0.2.1:8461"}, "does not have the address"},
	} {
		if _, err := Listen(test.at, 0o666); err == nil || !strings.Contains(err.Error(), test.hint) {
			t.Errorf("Listen at %s: %v, want %q", test.at, err, test.hint)
		}
	}
	if _, err := os.Stat(file); err != nil {
		t.Errorf("the file was removed: %v", err)
	}
}
