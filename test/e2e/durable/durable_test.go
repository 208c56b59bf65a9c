//go:build e2e

// Package durable tests the promise that the cache makes: a policy is on disk
// before the lookup that found it is answered, so that no crash at any moment
// loses a policy that was answered. It needs no MTA.
package durable

import (
	"net/netip"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

func TestMain(m *testing.M) { stage.Main(m) }

var daemonAt = endpoint.Endpoint{Network: "tcp", Address: stage.Endpoint}

// newLab starts a lab where the daemon will look for one.
func newLab(t *testing.T) *testlab.T {
	return testlab.NewWith(t, testlab.Options{
		DNS:        stage.Resolver + ":53",
		Net:        netip.MustParsePrefix("127.1.0.0/16"),
		PolicyPort: 443,
	})
}

// newDaemon returns the daemon, which trusts the lab's authority.
func newDaemon(t *testing.T, lab *testlab.T) *stage.Daemon {
	t.Helper()
	return stage.NewDaemon(t, testlab.DaemonConfig{CA: stage.WriteCA(t, lab)})
}
