package reporting_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/reporting"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

// sessions stores sessions with a domain on a day: all, and some of them failed.
func sessions(t *testing.T, st *store.Store, day tlsrpt.Day, domain string, all, failed int, result tlsrpt.ResultType) {
	t.Helper()
	var batch store.Batch
	batch.Reset(day)
	for i := range all {
		e := tlsrpt.Event{Domain: domain, Policy: tlsrpt.Policy{Type: tlsrpt.TypeSTS, Domain: domain}, Failed: i < failed}
		if e.Failed {
			e.Failures = []tlsrpt.Failure{{Result: result}}
		}
		batch.Add(&e)
	}
	if err := st.Write(&batch); err != nil {
		t.Fatal(err)
	}
}

// overview returns the first overview of a service that runs at a moment.
func overview(t *testing.T, o reporting.Options) (reporting.Overview, *reporting.Service) {
	t.Helper()
	o.FetchDead = func() bool { return false }
	s, _, _ := run(t, o)
	var seen reporting.Overview
	await(t, "an overview", func() (ok bool) {
		var err error
		seen, err = s.Overview(false)
		return err == nil
	})
	return seen, s
}

func TestTheOverviewHasDaysAndDestinationsByHarm(t *testing.T) {
	c := settings(t)
	st, err := store.Open(c.Path, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	day := func(ago int) tlsrpt.Day { return tlsrpt.DayOf(now.UTC().AddDate(0, 0, -ago)) }
	sessions(t, st, day(0), "good.test", 5, 0, "")
	sessions(t, st, day(0), "broken.test", 4, 3, tlsrpt.CertificateHostMismatch)
	sessions(t, st, day(0), "unfetched.test", 50, 40, tlsrpt.STSPolicyFetchError)
	sessions(t, st, day(1), "broken.test", 20, 1, tlsrpt.CertificateExpired)
	sessions(t, st, day(3), "mended.test", 9, 8, tlsrpt.CertificateExpired)
	sessions(t, st, day(14), "old.test", 9, 9, tlsrpt.CertificateExpired)
	if err := errors.Join(st.Merge(), st.Close()); err != nil {
		t.Fatal(err)
	}
	o, s := overview(t, reporting.Options{Config: c, Now: func() time.Time { return now }})
	if !o.At.Equal(now) || !o.Complete || o.Failed != 3 || o.New != 2 || s.Stats().NewlyFailing != 2 {
		t.Errorf("got %+v", o)
	}
	for i, want := range map[int]reporting.Sessions{0: {All: 59, Failed: [3]uint64{3, 40, 0}}, 1: {All: 20, Failed: [3]uint64{1, 0, 0}}, 2: {}, 13: {}} {
		if o.Days[i] != day(i) || o.ByDay[i] != want {
			t.Errorf("%d days ago is %s, %+v; want %+v", i, o.Days[i], o.ByDay[i], want)
		}
	}
	var names []string
	for _, f := range o.Worst {
		names = append(names, f.Domain)
	}
	if want := []string{"broken.test", "unfetched.test", "mended.test"}; !slices.Equal(names, want) {
		t.Fatalf("the worst are %q; want %q", names, want)
	}
	f := o.Worst[0]
	if f.Failures() != 4 || f.All != 24 || f.Since != day(1) || f.Last != day(0) || !f.New || f.Policies() != "enforced" || f.ByDay[1].All != 20 ||
		!slices.Equal(f.Results, []tlsrpt.ResultType{tlsrpt.CertificateExpired, tlsrpt.CertificateHostMismatch}) {
		t.Errorf("got %+v", f)
	}
}

func TestTheOverviewOfManyFailingDestinationsHasTheWorstAThousand(t *testing.T) {
	c := settings(t)
	st, err := store.Open(c.Path, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	var batch store.Batch
	batch.Reset(tlsrpt.DayOf(now))
	const domains = 3000
	for i := range domains {
		domain := fmt.Sprintf("d%05d.test", i)
		for range 1 + i%3 {
			batch.Add(&tlsrpt.Event{Domain: domain, Policy: tlsrpt.Policy{Type: tlsrpt.TypeNone, Domain: domain}, Failed: true})
		}
	}
	if err := errors.Join(st.Write(&batch), st.Merge(), st.Close()); err != nil {
		t.Fatal(err)
	}
	o, _ := overview(t, reporting.Options{Config: c, Now: func() time.Time { return now }})
	if o.Failed != domains || len(o.Worst) != 1000 || o.New != 0 {
		t.Errorf("%d of %d, %d new", len(o.Worst), o.Failed, o.New)
	}
	for i, f := range o.Worst {
		if f.Failures() != 3 || f.Domain != fmt.Sprintf("d%05d.test", 3*i+2) {
			t.Fatalf("place %d has %+v", i, f)
		}
	}
}

func TestAnOverviewMadeAnewHasSessionsThatWereJustWritten(t *testing.T) {
	c := settings(t)
	o, s := overview(t, reporting.Options{Config: c})
	if o.ByDay != (reporting.Overview{}).ByDay || o.Failed != 0 || !o.Complete || o.Days[0] == "" {
		t.Errorf("an empty store: %+v", o)
	}
	send(t, c.PostfixSocket.Address, datagram)
	await(t, "the session", func() bool {
		anew, err := s.Overview(true)
		return err == nil && anew.ByDay[0].All+anew.ByDay[1].All == 1
	})
	if shown, err := s.Overview(false); err != nil || shown.ByDay[0].All+shown.ByDay[1].All != 1 {
		t.Errorf("what is shown then: %+v, %v", shown, err)
	}
	var off *reporting.Service
	if _, err := off.Overview(true); err == nil || !strings.Contains(err.Error(), "[tlsrpt]") {
		t.Errorf("off: %v", err)
	}
}
