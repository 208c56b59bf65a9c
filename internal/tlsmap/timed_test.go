package tlsmap

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func TestAnExemptionEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newTestServer(t)
		before := ask(s, "postfix", "enforce.example")
		end := time.Now().Add(4 * time.Hour)
		if err := s.SetTimedExempt([]Exemption{{"enforce.example", end}}); err != nil {
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
	err := s.SetTimedExempt([]Exemption{
		{".below.test", now.Add(time.Hour)}, {"a.below.test", now.Add(2 * time.Hour)}, {"over.test", now.Add(-time.Second)},
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
	if err := s.SetTimedExempt([]Exemption{{"a.test", end}}); err != nil {
		t.Fatal(err)
	}
	var list []Exemption
	for i := range MaxTimedExempt + 1 {
		list = append(list, Exemption{fmt.Sprintf("d%d.test", i), end})
	}
	for _, bad := range [][]Exemption{list, {{"*.test", end}}} {
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
	if err := s.SetTimedExempt([]Exemption{{".exempt.example", time.Now().Add(time.Hour)}}); err != nil {
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
