//go:build e2e

// Package forky tests with Debian forky's Postfix.
package forky

import (
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/enforce"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

func TestMain(m *testing.M) { stage.Main(m) }

func TestPostfixEnforcesMTASTS(t *testing.T) {
	enforce.Test(t, "postfix-forky", "postfix-tlsrpt", enforce.ByHosts)
}

func TestPostfixPutsDANEFirst(t *testing.T) {
	enforce.Test(t, "postfix-forky", "postfix-dane-tlsrpt", enforce.ByHosts)
}
