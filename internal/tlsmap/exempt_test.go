package tlsmap_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

func TestAnExemptionEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 0)
		before := l.ask("postfix", "enforce.example")
		end := time.Now().Add(4 * time.Hour)
		if err := l.SetTimedExempt([]exempt.Exemption{{Domain: "enforce.example", Until: end}}); err != nil {
			t.Fatal(err)
		}
		if got := l.ask("postfix", "[Enforce.example]:25"); got != "NOTFOUND " {
			t.Errorf("an exempt domain gets %q", got)
		}
		if by := l.ExemptBy("enforce.example"); len(by) != 1 || !by[0].Until.Equal(end) {
			t.Errorf("%v", by)
		}
		time.Sleep(4 * time.Hour)
		if got := l.ask("postfix", "enforce.example"); got != before {
			t.Errorf("when it is over: %q, want %q", got, before)
		}
		if len(l.ExemptBy("enforce.example")) > 0 {
			t.Error("it is exempt for ever")
		}
	})
}

// The wall clock is wrong by 8 days: see keeper.Clock.
func TestAnExemptionEndsByTheClockOfPolicies(t *testing.T) {
	for _, ahead := range []time.Duration{8 * 24 * time.Hour, -8 * 24 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			l := newLab(t, 0)
			now := func() time.Time { return time.Now().Add(-ahead) }
			l.Server = tlsmap.NewServer(l.table, tlsmap.Options{Policies: l.policies, Now: now})
			if err := l.SetTimedExempt([]exempt.Exemption{{Domain: "enforce.example", Until: now().Add(4 * time.Hour)}}); err != nil {
				t.Fatal(err)
			}
			for _, want := range []bool{true, false} {
				got := l.ask("postfix", "enforce.example") == "NOTFOUND "
				if listed := len(l.ExemptBy("enforce.example")) > 0; got != want || listed != want {
					t.Errorf("ahead by %v: exempt %t, listed %t; want %t", ahead, got, listed, want)
				}
				time.Sleep(4 * time.Hour)
			}
		})
	}
}

func TestALeadingDotExemptsAllSubdomains(t *testing.T) {
	l := newLab(t, 0)
	now := time.Now()
	l.SetExempt([]string{"always.test"})
	err := l.SetTimedExempt([]exempt.Exemption{
		{Domain: ".below.test", Until: now.Add(time.Hour)}, {Domain: "a.below.test", Until: now.Add(2 * time.Hour)}, {Domain: "over.test", Until: now.Add(-time.Second)},
	})
	if err != nil {
		t.Fatal(err)
	}
	for domain, want := range map[string]bool{
		"below.test": false, "a.below.test": true, "b.a.below.test": true, "notbelow.test": false,
		"over.test": false, "always.test": true,
	} {
		if by := l.ExemptBy(domain); len(by) > 0 != want {
			t.Errorf("%s: exempt by %v, want %t", domain, by, want)
		}
	}
	if by := l.ExemptBy("a.below.test"); len(by) != 2 || by[0].Domain != "a.below.test" || by[1].Domain != ".below.test" {
		t.Errorf("by %v", by)
	}
	if by := l.ExemptBy("always.test"); !by[0].Until.IsZero() {
		t.Errorf("by %v", by)
	}
}

func TestTimedExemptionsAreBoundedAndChecked(t *testing.T) {
	l := newLab(t, 0)
	end := time.Now().Add(time.Hour)
	if err := l.SetTimedExempt([]exempt.Exemption{{Domain: "a.test", Until: end}}); err != nil {
		t.Fatal(err)
	}
	var list []exempt.Exemption
	for i := range exempt.MaxTimed + 1 {
		list = append(list, exempt.Exemption{Domain: fmt.Sprintf("d%d.test", i), Until: end})
	}
	for _, bad := range [][]exempt.Exemption{list, {{Domain: "*.test", Until: end}}} {
		if err := l.SetTimedExempt(bad); err == nil {
			t.Errorf("%d exemptions are taken", len(bad))
		}
	}
	if len(l.ExemptBy("a.test")) == 0 {
		t.Error("a list that was refused has replaced the old one")
	}
}

func TestATimedExemptionCostsNoAllocation(t *testing.T) {
	l := newLab(t, 0)
	l.policies.mute = true
	if err := l.SetTimedExempt([]exempt.Exemption{{Domain: ".exempt.example", Until: time.Now().Add(time.Hour)}}); err != nil {
		t.Fatal(err)
	}
	room := make([]byte, 0, 4096)
	for _, key := range []string{"a.exempt.example", "enforce.example"} {
		m, k := []byte("postfix"), []byte(key)
		if n := testing.AllocsPerRun(200, func() { l.AppendReply(t.Context(), room, m, k) }); n != 0 {
			t.Errorf("%s: %v allocations", key, n)
		}
	}
}
