package enforce

import (
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// hostNet has the mail hosts if the relay is Exim, which does not deliver to
// 127.0.0.0/8.
const hostNet = "198.18.0.0/16"

// systemRoots is Debian's file of root certificates, used by its GnuTLS.
const systemRoots = "/etc/ssl/certs/ca-certificates.crt"

// shipped is packaging/exim, relative to a test package's directory.
var shipped = os.DirFS("../../../packaging/exim")

// TestExim runs all rows and stories, including Exim's own, with the Exim in a
// root of test/e2e/setup. It uses the files in packaging/exim with Debian's
// configuration. Exim does DANE itself, with a validating resolver.
func TestExim(t *testing.T, root string) {
	w := newEximWorld(t)
	w.startExim(t, root, stage.EximOptions{
		Shipped: shipped,
		Files:   eximFiles(),
		Debian:  map[string]string{"dc_relay_domains": backupDomain},
	})
	t.Log(w.exim.Name())
	w.share(t)
	for _, r := range slices.Concat(rows, eximRows) {
		t.Run(r.name, func(t *testing.T) { w.play(t, r, w.domain(t, r)) })
	}
	w.playSigned(t)
	t.Run("-waiting knows why each message waits", func(t *testing.T) {
		w.explainsQueue(t, slices.DeleteFunc(slices.Concat(rows, eximRows, daneRows), func(r row) bool { return r.nextHop != "" }))
	})
	t.Run("-waiting leads somebody who knows nothing to cause and remedy", func(t *testing.T) { leadsToRemedy(t, w) })
	for _, s := range slices.Concat(stories, eximStories) {
		t.Run(s.name, func(t *testing.T) { s.tell(t, w) })
	}
}

// newEximWorld creates a world without its Exim.
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

// tryExim sets up another Exim in the same root.
func (w *world) tryExim(t *testing.T, o stage.EximOptions) (*stage.Exim, error) {
	t.Helper()
	if o.Files == nil {
		o.Files = make(map[string]string)
	}
	o.Files[systemRoots] = string(w.lab.CA.PEM())
	return stage.TryExim(t, w.root, o)
}
