package enforce

import (
	"fmt"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// What Exim remembers of hosts that fail, it remembers of one address. What
// one domain at a host can do to another is in sharesHost.

// unreachableIPv6 tells of a host that has an IPv6 address which cannot be
// reached from here: every message gets through over the other one.
func unreachableIPv6(t *testing.T, w *world) {
	d := w.lab.Domain("dual.test", testlab.With{})
	w.lab.Set(d.Mail[0].Name + ". 300 IN AAAA 2001:db8:ffff::1")
	for range 3 {
		m := w.exim.Send(t, d.Name)
		check(t, m, m.Outcome(t), verified(d.Mail[0]), d.Mail...)
	}
}

// deadAddress tells of a host that does not answer at one of two addresses,
// which Exim tries in an order drawn at random.
func deadAddress(t *testing.T, w *world) {
	d := w.lab.Domain("two-addresses.test", testlab.With{})
	w.lab.Set(fmt.Sprintf("%s. 300 IN A %s", d.Mail[0].Name, d.Mail[0].Addr), d.Mail[0].Name+". 300 IN A 198.18.77.77")
	for range 6 {
		m := w.exim.Send(t, d.Name)
		check(t, m, m.Outcome(t), verified(d.Mail[0]), d.Mail...)
	}
}
