//go:build e2e

// Package trixie tests with Debian trixie's Postfix.
package trixie

import (
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/enforce"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

func TestMain(m *testing.M) { stage.Main(m) }

func TestPostfixEnforcesMTASTS(t *testing.T) {
	enforce.Test(t, "postfix-trixie", "postfix-tlsrpt", enforce.ByHosts)
}

func TestPostfixPutsDANEFirst(t *testing.T) {
	enforce.Test(t, "postfix-trixie", "postfix-dane-tlsrpt", enforce.ByHosts)
}
