package enforce

import (
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/packaging/exim"
)

// printsRecipe checks -recipe on a machine without problems.
func printsRecipe(t *testing.T, w *world) {
	text := w.exim.Program(t, "-recipe", "exim")
	for _, part := range []string{exim.Macros, exim.Routers, exim.Transport, exim.Retry} {
		if !strings.Contains(text, part) {
			t.Errorf("the recipe lacks:\n%s", part)
		}
	}
	if strings.Contains(text, "WARNING") {
		t.Errorf("unexpected warning:\n%s", text)
	}
}
