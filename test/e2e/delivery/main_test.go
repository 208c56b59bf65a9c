//go:build e2e

// Package delivery has the daemon deliver TLS reports (RFC 8460, 5) to real receivers:
// through Postfix and Exim to another Postfix, and to an HTTPS server in Python.
//
// Left out: what is in a report, which package tlsrpt tests.
package delivery

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// program is the environment variable for the program under test: here always one with
// a testlab.Clock.
const program = "STS_TLSMAP_E2E_PROGRAM"

func TestMain(m *testing.M) {
	const built = "STS_TLSMAP_E2E_DELIVERY"
	if os.Getenv(built) != "" { // this is a copy on the stage
		stage.Main(m)
	}
	dir, err := os.MkdirTemp("", "sts-tlsmap-e2e-")
	path := ""
	if err == nil {
		path, err = testlab.BuildDaemonWithClock(context.Background(), dir)
	}
	if err != nil {
		os.RemoveAll(dir)
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	os.Setenv(program, path)
	os.Setenv(built, "1")
	stage.Main(m, func() { os.RemoveAll(dir) })
}
