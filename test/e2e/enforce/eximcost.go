package enforce

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// costRounds is how many lookups are timed, and expansions without one.
const costRounds = 500

// costs measures what the lookups add to Exim's work: how many there are is
// held in brokenLines, how long one takes is logged here.
func costs(t *testing.T, w *world) {
	d := w.lab.Domain("cost.test", testlab.With{})
	m := w.exim.Send(t, d.Name) // discovers it
	check(t, m, m.Outcome(t), verified(d.Mail[0]), d.Mail...)

	request := "exim " + d.Name
	lookup := fmt.Sprintf("${readsocket{inet:127.0.0.1:8461}{%d:%s,}{30s}}", len(request), request)
	bare := w.expand(t, strings.Repeat("${length_3:cost.test}\n", costRounds), "cos")
	asked := w.expand(t, strings.Repeat(lookup+"\n", costRounds), "OK mx1.cost.test,")
	t.Logf("%s: a lookup takes %s", w.exim.Name(), ((asked - bare) / costRounds).Round(time.Microsecond))
}

// expand has Exim expand lines, and returns how long that took.
func (w *world) expand(t *testing.T, lines, each string) time.Duration {
	t.Helper()
	began := time.Now()
	out := w.exim.Expand(t, lines)
	took := time.Since(began)
	if n := strings.Count(out, each); n != costRounds {
		t.Errorf("%d answers with %q: %.200s", n, each, out)
	}
	return took
}
