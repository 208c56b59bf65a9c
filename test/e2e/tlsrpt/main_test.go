//go:build e2e

package tlsrpt

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// hasty says that the program under test is the one that buildHasty built. It is set for
// the copies of the test binary on the stage.
const hasty = "STS_TLSMAP_E2E_HASTY"

func TestMain(m *testing.M) {
	if os.Getenv("STS_TLSMAP_E2E_PROGRAM") != "" { // one to be tested, or this is a copy
		stage.Main(m)
	}
	dir, err := os.MkdirTemp("", "sts-tlsmap-e2e-")
	if err == nil {
		err = buildHasty(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	stage.Main(m, func() { os.RemoveAll(dir) })
}

// buildHasty builds the program with two constants changed: failures of policy fetches are
// held back for a second, not for ten minutes, and domains to be probed are looked for each
// second, not each minute.
func buildHasty(dir string) error {
	replaced, overlay := map[string]string{}, filepath.Join(dir, "overlay.json")
	for file, change := range map[string][2]string{
		"policies.go": {"holdBack   = 10 * time.Minute", "holdBack   = time.Second"},
		"probes.go":   {"probeEvery   = time.Minute", "probeEvery   = time.Second"},
	} {
		source, err := filepath.Abs("../../../internal/tlsrpt/reporting/" + file)
		if err != nil {
			return err
		}
		text, err := os.ReadFile(source)
		if err != nil {
			return err
		}
		if strings.Count(string(text), change[0]) != 1 {
			return fmt.Errorf("%s no longer has the line %q", source, change[0])
		}
		replaced[source] = filepath.Join(dir, file)
		if err := os.WriteFile(replaced[source], []byte(strings.Replace(string(text), change[0], change[1], 1)), 0o644); err != nil {
			return err
		}
	}
	replace, err := json.Marshal(map[string]map[string]string{"Replace": replaced})
	if err != nil {
		return err
	}
	if err := os.WriteFile(overlay, replace, 0o644); err != nil {
		return err
	}
	program, err := testlab.BuildDaemon(context.Background(), dir, "-overlay", overlay)
	if err != nil {
		return err
	}
	os.Setenv("STS_TLSMAP_E2E_PROGRAM", program)
	os.Setenv(hasty, "1")
	return nil
}
