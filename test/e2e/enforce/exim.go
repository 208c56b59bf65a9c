package enforce

import (
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// hostNet is where the mail hosts are when the relay is an Exim. It takes no
// mail to hosts at 127.0.0.0/8.
const hostNet = "198.18.0.0/16"

// systemRoots is where Debian has the authorities, and its GnuTLS looks for them.
const systemRoots = "/etc/ssl/certs/ca-certificates.crt"

// shipped is packaging/exim, from the folder of a package of tests.
var shipped = os.DirFS("../../../packaging/exim")

// TestExim runs all rows and stories, and those of Exim, with the Exim in a
// root of test/e2e/setup, by the files in packaging/exim beside Debian's own.
// Exim does DANE itself, with a resolver that validates.
func TestExim(t *testing.T, root string) {
	w := newEximWorld(t)
	w.startExim(t, root, stage.EximOptions{
		Shipped: shipped,
		Files:   eximFiles(),
		Debian:  map[string]string{"dc_relay_domains": backupDomain},
	})
	t.Log(w.exim.Name())
	for _, r := range slices.Concat(rows, eximRows) {
		t.Run(r.name, func(t *testing.T) { w.play(t, r, w.domain(t, r)) })
	}
	w.playSigned(t)
	for _, s := range slices.Concat(stories, eximStories) {
		t.Run(s.name, func(t *testing.T) { s.tell(t, w) })
	}
}

// newEximWorld makes a world without its Exim.
func newEximWorld(t *testing.T) *world {
	t.Helper()
	w := &world{mapName: "exim", strict: ByHosts}
	stage.AddNetwork(t, hostNet)
	stage.AddNetwork(t, "2001:db8::/64")
	w.enterLab(t, netip.MustParsePrefix(hostNet), true)
	w.daemon = startDaemon(t, w.lab)
	return w
}

// startExim sets up the world's Exim, which trusts the lab's authority.
func (w *world) startExim(t *testing.T, root string, o stage.EximOptions) {
	t.Helper()
	w.root = root
	e, err := w.tryExim(t, o)
	if err != nil {
		t.Fatal(err)
	}
	w.exim, w.mta = e, e
}

// tryExim sets up another Exim of the same root.
func (w *world) tryExim(t *testing.T, o stage.EximOptions) (*stage.Exim, error) {
	t.Helper()
	if o.Files == nil {
		o.Files = make(map[string]string)
	}
	o.Files[systemRoots] = string(w.lab.CA.PEM())
	return stage.TryExim(t, w.root, o)
}
