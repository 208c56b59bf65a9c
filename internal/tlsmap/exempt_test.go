package tlsmap

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
)

func TestAnExemptionEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newTestServer(t)
		before := ask(s, "postfix", "enforce.example")
		end := time.Now().Add(4 * time.Hour)
		if err := s.SetTimedExempt([]exempt.Exemption{{Domain: "enforce.example", Until: end}}); err != nil {
			t.Fatal(err)
		}
		if got := ask(s, "postfix", "[Enforce.example]:25"); got != "NOTFOUND " {
			t.Errorf("an exempt domain gets %q", got)
		}
		if until, exempt := s.Exempt("enforce.example"); !exempt || !until.Equal(end) {
			t.Errorf("%v, %t", until, exempt)
		}
		time.Sleep(4 * time.Hour)
		if got := ask(s, "postfix", "enforce.example"); got != before {
			t.Errorf("when it is over: %q, want %q", got, before)
		}
		if s.IsExempt("enforce.example") {
			t.Error("it is exempt for ever")
		}
	})
}

func TestAnExemptionOfADotIsForAllBelow(t *testing.T) {
	s, _ := newTestServer(t)
	now := time.Now()
	if err := s.SetExempt([]string{"always.test"}); err != nil {
		t.Fatal(err)
	}
	err := s.SetTimedExempt([]exempt.Exemption{
		{Domain: ".below.test", Until: now.Add(time.Hour)}, {Domain: "a.below.test", Until: now.Add(2 * time.Hour)}, {Domain: "over.test", Until: now.Add(-time.Second)},
	})
	if err != nil {
		t.Fatal(err)
	}
	for domain, want := range map[string]bool{
		"below.test": false, "a.below.test": true, "b.a.below.test": true, "notbelow.test": false,
		"over.test": false, "always.test": true,
	} {
		if _, got := s.Exempt(domain); got != want || s.IsExempt(domain) != want {
			t.Errorf("%s: exempt %t, want %t", domain, got, want)
		}
	}
	// The longest counts; one of the configuration has no end.
	if until, _ := s.Exempt("a.below.test"); until.Unix() != now.Add(2*time.Hour).Unix() {
		t.Errorf("until %v", until)
	}
	if until, _ := s.Exempt("always.test"); !until.IsZero() {
		t.Errorf("until %v", until)
	}
}

func TestTimedExemptionsAreBoundedAndChecked(t *testing.T) {
	s, _ := newTestServer(t)
	end := time.Now().Add(time.Hour)
	if err := s.SetTimedExempt([]exempt.Exemption{{Domain: "a.test", Until: end}}); err != nil {
		t.Fatal(err)
	}
	var list []exempt.Exemption
	for i := range exempt.MaxTimed + 1 {
		list = append(list, exempt.Exemption{Domain: fmt.Sprintf("d%d.test", i), Until: end})
	}
	for _, bad := range [][]exempt.Exemption{list, {{Domain: "*.test", Until: end}}} {
		if err := s.SetTimedExempt(bad); err == nil {
			t.Errorf("%d exemptions are taken", len(bad))
		}
	}
	if !s.IsExempt("a.test") {
		t.Error("a list that was refused has replaced the old one")
	}
}

func TestATimedExemptionCostsNoAllocation(t *testing.T) {
	s, f := newTestServer(t)
	f.mute = true
	if err := s.SetTimedExempt([]exempt.Exemption{{Domain: ".exempt.example", Until: time.Now().Add(time.Hour)}}); err != nil {
		t.Fatal(err)
	}
	room := make([]byte, 0, 4096)
	for _, key := range []string{"a.exempt.example", "enforce.example"} {
		m, k := []byte("postfix"), []byte(key)
		if n := testing.AllocsPerRun(200, func() { s.AppendReply(t.Context(), room, m, k) }); n != 0 {
			t.Errorf("%s: %v allocations", key, n)
		}
	}
}
