package reporting_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/reporting"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

func TestTheOverviewHasTheWorstDomainsOfAllDaysFirst(t *testing.T) {
	c := settings(t)
	st, err := store.Open(c.Path, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	today, before := tlsrpt.DayOf(now), tlsrpt.DayOf(now.AddDate(0, 0, -1))
	var batch store.Batch
	for _, day := range []tlsrpt.Day{before, today} {
		batch.Reset(day)
		add := func(domain string, failed int, result tlsrpt.ResultType) {
			for i := range failed + 1 {
				e := tlsrpt.Event{Domain: domain, Policy: tlsrpt.Policy{Type: tlsrpt.TypeSTS, Domain: domain}, Failed: i < failed}
				if e.Failed {
					e.Failures = []tlsrpt.Failure{{Result: result}}
				}
				batch.Add(&e)
			}
		}
		add("good.test", 0, "")
		if day == before {
			add("mended.test", 3, tlsrpt.CertificateExpired)
			add("broken.test", 2, tlsrpt.CertificateExpired)
		} else {
			add("broken.test", 2, tlsrpt.CertificateHostMismatch)
		}
		if err := st.Write(&batch); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(st.Merge(), st.Close()); err != nil {
		t.Fatal(err)
	}
	s, _, _ := run(t, reporting.Options{Config: c, FetchDead: func() bool { return false }})
	var o reporting.Overview
	await(t, "the store", func() bool { o, err = s.Overview(); return err == nil })
	if len(o.Days) != 2 || o.Days[0] != (reporting.DayTotal{Day: today, Total: store.Total{Domains: 2, Successful: 2, Failed: 2}}) ||
		o.Days[1].Domains != 3 || o.Days[1].Failed != 5 || !o.Complete {
		t.Errorf("the days are %+v", o.Days)
	}
	if len(o.Worst) != 2 || o.Worst[0].Domain != "broken.test" || o.Worst[1].Domain != "mended.test" {
		t.Fatalf("the worst are %+v", o.Worst)
	}
	f := o.Worst[0]
	if f.Failed != 4 || f.Sessions != 6 || f.Since != before || f.Last != today || !slices.Equal(f.Policies, []tlsrpt.PolicyType{tlsrpt.TypeSTS}) ||
		!slices.Equal(f.Results, []tlsrpt.ResultType{tlsrpt.CertificateHostMismatch, tlsrpt.CertificateExpired}) {
		t.Errorf("got %+v", f)
	}
	var off *reporting.Service
	if _, err := off.Overview(); err == nil || !strings.Contains(err.Error(), "[tlsrpt]") {
		t.Errorf("off: %v", err)
	}
}
