//go:build e2e

// Package bookworm tests with Debian bookworm's Postfix.
package bookworm

import (
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/enforce"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

func TestMain(m *testing.M) { stage.Main(m) }

func TestPostfixEnforcesMTASTS(t *testing.T) {
	enforce.Test(t, "postfix-bookworm", "postfix", enforce.ByNames)
}

func TestPostfixPutsDANEFirst(t *testing.T) {
	enforce.Test(t, "postfix-bookworm", "postfix-dane", enforce.ByNames)
}
