package dane

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// A bomb is a resolver that panics at some types of questions.
type bomb struct {
	*fake
	armed map[resolver.Type]bool
}

func (b *bomb) Query(ctx context.Context, name string, qtype resolver.Type) (*resolver.Answer, error) {
	a, err := b.fake.Query(ctx, name, qtype)
	blow := false
	b.change(func(*fake) { blow = b.armed[qtype] })
	if blow {
		panic("a mistake in the DNS library")
	}
	return a, err
}

func (b *bomb) arm(types ...resolver.Type) {
	b.change(func(*fake) {
		b.armed = map[resolver.Type]bool{}
		for _, qtype := range types {
			b.armed[qtype] = true
		}
	})
}

// mined returns a Checker that asks a bomb for a domain with DANE.
func mined(log *bytes.Buffer) (*bomb, *Checker) {
	b := &bomb{fake: newFake()}
	daneDomain(b.fake, "example.com")
	return b, New(Options{Resolver: b, Log: slog.New(slog.NewTextHandler(log, nil)),
		Probe: ProbeNames{Signed: []string{"signed.test"}, Unsigned: []string{"unsigned.test"}}})
}

func TestAPanicInACheckDefersTheWaitingLookups(t *testing.T) {
	for name, qtype := range map[string]resolver.Type{"in the MX lookup": resolver.TypeMX, "at a host": resolver.TypeA, "in the TLSA lookup": resolver.TypeTLSA} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				b, c := mined(&log)
				c.Probe(t.Context())
				b.arm(qtype)
				hop := NextHop{Host: "example.com"}
				if got := c.Check(t.Context(), hop, everyHost); got.State != Undecided {
					t.Errorf("%+v", got)
				}
				if n := c.Stats().Panics; n != 1 {
					t.Errorf("%d panics counted", n)
				}
				if s := log.String(); !strings.Contains(s, "bug: a panic was recovered from") || !strings.Contains(s, "a mistake in the DNS library") || !strings.Contains(s, "panic_test.go") {
					t.Errorf("the log does not say where:\n%s", s)
				}
				b.arm()
				time.Sleep(failKeep)
				if got := c.Check(t.Context(), hop, everyHost); got.State != Usable {
					t.Errorf("afterwards: %+v", got)
				}
			})
		})
	}
}

// A lateBomb is a resolver whose errors about addresses panic when they are read
// again after the lookup.
type lateBomb struct {
	*fake
	read int
}

func (b *lateBomb) Query(ctx context.Context, name string, qtype resolver.Type) (*resolver.Answer, error) {
	if qtype == resolver.TypeA {
		return nil, b
	}
	return b.fake.Query(ctx, name, qtype)
}

func (b *lateBomb) Error() string { return "no answer" }

func (b *lateBomb) As(any) bool {
	if b.read++; b.read > 1 {
		panic("on purpose")
	}
	return false
}

func TestAPanicBetweenTheLookupsAtAHostIsSurvived(t *testing.T) {
	b := &lateBomb{fake: newFake()}
	daneDomain(b.fake, "example.com")
	c := New(Options{Resolver: b, Probe: checker(b.fake).prober.names})
	if got := c.Check(t.Context(), NextHop{Host: "example.com"}, everyHost); got.State != Undecided || c.Stats().Panics != 1 {
		t.Errorf("%+v, %d panics", got, c.Stats().Panics)
	}
}

func TestAPanicInTheLookupOfMXHostsIsAnError(t *testing.T) {
	b, c := mined(new(bytes.Buffer))
	b.arm(resolver.TypeMX)
	if set, err := c.MX(t.Context(), "example.com"); set != nil || err == nil {
		t.Errorf("%v, %v", set, err)
	}
	b.arm()
	if set, err := c.MX(t.Context(), "example.com"); err != nil || len(set.Hosts) != 1 {
		t.Errorf("afterwards: %v, %v", set, err)
	}
}

func TestAPanicInAProbeIsAProbeWithoutAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, c := mined(new(bytes.Buffer))
		b.arm(resolver.TypeSOA)
		if p := c.Probe(t.Context()); p.Verdict != NoVerdict || p.Began.IsZero() || len(p.Lookups) != 2 || p.Lookups[0].Err == nil {
			t.Errorf("%+v", p)
		}
		b.arm()
		time.Sleep(time.Nanosecond)
		if p := c.Probe(t.Context()); p.Verdict != Validates {
			t.Errorf("afterwards: %+v", p)
		}
	})
}

func TestLogLinesAboutPanicsAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		b, c := mined(&log)
		b.arm(resolver.TypeMX)
		for i := range 1000 {
			c.Check(t.Context(), NextHop{Host: fmt.Sprintf("d%d.example", i)}, everyHost)
			time.Sleep(10 * time.Millisecond)
		}
		if n, lines := c.Stats().Panics, strings.Count(log.String(), "bug: a panic"); n != 1000 || lines > 11 {
			t.Errorf("%d panics, %d lines", n, lines)
		}
	})
}
