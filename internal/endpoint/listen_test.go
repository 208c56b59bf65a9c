package endpoint

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

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
	config := net.ListenConfig{Control: setMode(0o600)}
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
