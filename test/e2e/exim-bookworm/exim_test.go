//go:build e2e

// Package exim tests with Debian bookworm's Exim 4.96.
package exim

import (
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/enforce"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

func TestMain(m *testing.M) { stage.Main(m) }

func TestEximEnforcesMTASTS(t *testing.T) { enforce.TestExim(t, "exim-bookworm") }
