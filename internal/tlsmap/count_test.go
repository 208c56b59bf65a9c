package tlsmap

import (
	"context"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

// slowPolicies says of each lookup that it began so long ago, beyond memory.
type slowPolicies struct{ ago time.Duration }

func (p slowPolicies) Lookup(_ context.Context, _ []byte, h *keeper.Held) error {
	if p.ago > 0 {
		h.Since = time.Now().Add(-p.ago)
	}
	return keeper.ErrNoPolicy
}

func TestOnlyLookupsThatAreNotAnsweredFromMemoryAreTimed(t *testing.T) {
	table, err := NewTable(mta.Builtin())
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(table, Options{Policies: slowPolicies{ago: 2 * time.Hour}})
	ask(s, "postfix", "slow.example")
	s.policies = slowPolicies{}
	ask(s, "postfix", "fast.example")
	ask(s, "postfix", "[192.0.2.1]")
	m := s.Stats().Maps[0]
	var n uint64
	for _, by := range m.Slow {
		n += by
	}
	if n != 1 || m.Slow[len(SlowBounds)] != 1 || m.SlowSum < 2*time.Hour || m.Replies() != 3 {
		t.Errorf("%+v", m)
	}
}

func TestADurationIsCountedInTheSmallestBucketThatHoldsIt(t *testing.T) {
	var d durations
	for _, took := range []time.Duration{-1, 0, SlowBounds[0], SlowBounds[0] + 1, SlowBounds[1], time.Hour} {
		d.add(took)
	}
	if a, b, c := d.by[0].Load(), d.by[1].Load(), d.by[len(SlowBounds)].Load(); a != 3 || b != 2 || c != 1 {
		t.Error(a, b, c)
	}
}
