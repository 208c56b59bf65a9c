//go:build e2e

// Package durable tests that a policy is on disk before its lookup is answered,
// so that no crash loses an answered policy. It needs no MTA.
package durable

import (
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

func TestMain(m *testing.M) { stage.Main(m) }

var daemonAt = endpoint.Endpoint{Network: "tcp", Address: stage.Endpoint}

// newDaemon returns a daemon that trusts the lab's authority.
func newDaemon(t *testing.T, lab *testlab.T) *stage.Daemon {
	t.Helper()
	return stage.NewDaemon(t, testlab.DaemonConfig{CA: stage.WriteCA(t, lab)})
}
