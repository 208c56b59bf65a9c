package enforce

import (
	"strings"
	"testing"
)

// printsRecipe checks -recipe on a machine without problems, which has the shipped
// files.
func printsRecipe(t *testing.T, w *world) {
	text := w.exim.Program(t, "-recipe", "exim")
	if n := strings.Count(text, "\n# already so\n"); n != 4 || strings.Contains(text, "cp -r") {
		t.Errorf("%d parts are said to be there, want 4 and no command to copy them:\n%s", n, text)
	}
	if strings.Contains(text, "WARNING") {
		t.Errorf("unexpected warning:\n%s", text)
	}
}
