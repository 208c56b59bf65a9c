package enforce

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

const (
	// costRounds is the number of lookups, or expansions without one, in each
	// measurement.
	costRounds = 2000

	// costPairs is the number of measurements after a warm-up. The median of an
	// odd number is a measured value.
	costPairs = 9
)

// costs measures what lookups add to Exim's work: their number for a message,
// and the time of each. test/bench reads the logged line.
func costs(t *testing.T, w *world) {
	d, other := w.lab.Domain("cost.test", testlab.With{}), w.lab.Domain("cost-other.test", testlab.With{})
	var asked atomic.Int64
	listenInstead(t, func(c net.Conn) {
		asked.Add(1)
		passOn(c)
	})
	recipients := []*testlab.Domain{d, d, other, other}
	var names []string
	for _, r := range recipients {
		names = append(names, r.Name)
	}
	for i, m := range w.exim.Submit(t, names, foreground, askOther) {
		check(t, m, m.Outcome(t), verified(recipients[i].Mail[0]), recipients[i].Mail...)
	}
	if n := asked.Load(); n != 2 {
		t.Errorf("%d lookups for a message to 2 domains", n)
	}

	request := "exim " + d.Name
	lookup := fmt.Sprintf("${readsocket{inet:127.0.0.1:8461}{%d:%s,}{30s}}", len(request), request)
	without := func() time.Duration {
		return w.expand(t, strings.Repeat("${length_3:cost.test}\n", costRounds), "cos")
	}
	with := func() time.Duration { return w.expand(t, strings.Repeat(lookup+"\n", costRounds), "OK mx1.cost.test,") }
	var took []time.Duration
	for i := range costPairs + 1 {
		var bare, whole time.Duration
		if i%2 == 0 { // other load on the machine affects both alike
			bare, whole = without(), with()
		} else {
			whole, bare = with(), without()
		}
		if i > 0 { // not the warm-up
			took = append(took, ((whole - bare) / costRounds).Round(time.Microsecond))
		}
	}
	slices.Sort(took)
	t.Logf("%s: a lookup takes %s, %s to %s in %d pairs; %d lookups for a message to 2 domains with 2 recipients each",
		w.exim.Name(), took[costPairs/2], took[0], took[costPairs-1], costPairs, asked.Load())
}

// expand makes Exim expand lines and returns the duration.
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
