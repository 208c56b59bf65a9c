package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// fakeExemptions answers what a test wants.
type fakeExemptions struct{ err error }

var exemptEnd = time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)

func (f *fakeExemptions) InForce() []exempt.Exemption {
	return []exempt.Exemption{{Domain: "a.test", Until: exemptEnd}}
}

func (f *fakeExemptions) Set(string, time.Duration) (time.Time, bool, error) {
	return exemptEnd, true, f.err
}

// fakeLearner finds every domain, and takes every policy over but one.
type fakeLearner struct{}

func (fakeLearner) Learn(_ context.Context, domain string) (keeper.Learned, error) {
	return keeper.Learned{Domain: domain, Result: policy.ResultOK, Mode: "enforce"}, nil
}

func (fakeLearner) Take(_ context.Context, f keeper.Foreign) (keeper.Learned, error) {
	if f.Domain == "bad.test" {
		return keeper.Learned{}, errors.New("it is no policy")
	}
	return keeper.Learned{Domain: f.Domain, Taken: f.ID == "1" && string(f.Text) == "text" && f.Expires.Equal(exemptEnd)}, nil
}

func TestAnExemptionThatIsNotOnDiskIsInForceAndSaysSo(t *testing.T) {
	x := new(fakeExemptions)
	c, _, _ := serve(t, &fakeKeeper{}, func(s *Server) { s.o.Exemptions = x })
	if got, err := c.Exempt(t.Context(), "a.test", time.Hour); err != nil || !got.Was || got.Err != "" || !got.Until.Equal(exemptEnd) {
		t.Errorf("%+v, %v", got, err)
	}
	x.err = fmt.Errorf("%w: the disk is full", exempt.ErrNotKept)
	if got, err := c.Exempt(t.Context(), "a.test", time.Hour); err != nil || !strings.Contains(got.Err, "the disk is full") {
		t.Errorf("%+v, %v", got, err)
	}
	x.err = exempt.ErrTooLong
	if got, err := c.Exempt(t.Context(), "a.test", time.Hour); err == nil || !strings.Contains(err.Error(), "at most 366 days") {
		t.Errorf("%+v, %v", got, err)
	}
	var list []Exemption
	if err := c.Exemptions(t.Context(), func(x Exemption) error { list = append(list, x); return nil }); err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
}

func TestWhatStillExemptsADomainIsSaidWhenItsOwnExemptionEnds(t *testing.T) {
	c, _, _ := serve(t, &fakeKeeper{}, func(s *Server) {
		s.o.Exemptions = new(fakeExemptions)
		s.o.ExemptBy = func(d string) []exempt.Exemption {
			if d != "a.test" {
				return nil
			}
			return []exempt.Exemption{{Domain: ".test"}, {Domain: ".test", Until: exemptEnd}}
		}
	})
	want := []ExemptEntry{{Entry: ".test"}, {Entry: ".test", Until: exemptEnd}}
	if x, err := c.Exempt(t.Context(), "A.test", 0); err != nil || !slices.Equal(x.Still, want) {
		t.Errorf("%+v, %v", x, err)
	}
	if x, err := c.Exempt(t.Context(), "a.test", time.Hour); err != nil || x.Still != nil {
		t.Errorf("%+v, %v", x, err)
	}
	if x, err := c.Exempt(t.Context(), "b.test", 0); err != nil || x.Still != nil {
		t.Errorf("%+v, %v", x, err)
	}
}

func TestPoliciesAreTakenOverAndDomainsDiscovered(t *testing.T) {
	c, _, _ := serve(t, &fakeKeeper{}, func(s *Server) { s.o.Learner = fakeLearner{} })
	got := map[string]Learned{}
	note := func(l Learned) error { got[l.Domain] = l; return nil }
	err := c.Learn(t.Context(), []Entry{
		{Domain: "a.test"}, {Domain: "b.test", ID: "1", Policy: "text", Expires: exemptEnd}, {Domain: "bad.test", Policy: "x"},
	}, note)
	if err != nil || got["a.test"].Mode != "enforce" || !got["b.test"].Taken || got["bad.test"].Err != "it is no policy" {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range [][]Entry{nil, make([]Entry, MaxDomains+1), {{Domain: "A.test"}}} {
		if err := c.Learn(t.Context(), bad, note); err == nil {
			t.Errorf("%d entries are taken", len(bad))
		}
	}
	if err := c.Learn(t.Context(), []Entry{{Domain: "a.test", Policy: strings.Repeat("x", maxLearnBody)}}, note); err == nil {
		t.Error("a request of any size is read")
	}
}

func TestRehearsalsAreReported(t *testing.T) {
	c, _, _ := serve(t, &fakeKeeper{}, func(s *Server) {
		s.o.Rehearsed = func(string) []Rehearsed { return []Rehearsed{{Domain: "a.test", Map: "m", Deferred: true, Count: 3}} }
	})
	var list []Rehearsed
	err := c.Rehearsed(t.Context(), func(r Rehearsed) error { list = append(list, r); return nil })
	if err != nil || len(list) != 1 || list[0].Count != 3 || !list[0].Deferred {
		t.Errorf("%+v, %v", list, err)
	}
	if h, err := c.Held(t.Context(), "a.test"); err != nil || len(h.Rehearsed) != 1 {
		t.Errorf("%+v, %v", h, err)
	}
}
