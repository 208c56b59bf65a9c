//go:build e2e

// Package mta runs the tables of package enforce with the Postfix and the Exim
// of each Debian release.
package mta

import (
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/enforce"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

func TestMain(m *testing.M) { stage.Main(m) }

// Postfix 3.7, 3.10 and 3.11, with and without DANE.
func TestPostfixBookworm(t *testing.T) {
	enforce.Test(t, "postfix-bookworm", "postfix", enforce.ByNames)
}
func TestPostfixBookwormDANE(t *testing.T) {
	enforce.Test(t, "postfix-bookworm", "postfix-dane", enforce.ByNames)
}
func TestPostfixTrixie(t *testing.T) {
	enforce.Test(t, "postfix-trixie", "postfix-tlsrpt", enforce.ByHosts)
}
func TestPostfixTrixieDANE(t *testing.T) {
	enforce.Test(t, "postfix-trixie", "postfix-dane-tlsrpt", enforce.ByHosts)
}
func TestPostfixForky(t *testing.T) {
	enforce.Test(t, "postfix-forky", "postfix-tlsrpt", enforce.ByHosts)
}
func TestPostfixForkyDANE(t *testing.T) {
	enforce.Test(t, "postfix-forky", "postfix-dane-tlsrpt", enforce.ByHosts)
}

func TestEximBookworm(t *testing.T) { enforce.TestExim(t, "exim-bookworm") }
func TestEximTrixie(t *testing.T)   { enforce.TestExim(t, "exim-trixie") }
func TestEximForky(t *testing.T)    { enforce.TestExim(t, "exim-forky") }

// sendmail 8.18.2. Earlier ones do not enforce the policy of each domain.
func TestSendmailForky(t *testing.T) { enforce.TestSendmail(t, "sendmail-forky") }
