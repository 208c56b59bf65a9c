package reporting

import (
	"cmp"
	"slices"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

// This file: the status page's view. It writes nothing: sessions count there once the log
// is merged.

const (
	overviewDays  = 7        // the newest
	overviewWorst = 20       // domains
	overviewBytes = 32 << 20 // read of the store, the newest days first
)

// An Overview is the last days at a glance.
type Overview struct {
	Days     []DayTotal // the newest first
	Worst    []Failing  // of the domains that are among the worst of a day, the worst first
	Complete bool       // no row of the days was left out
}

// A DayTotal is the sessions of a day.
type DayTotal struct {
	Day tlsrpt.Day
	store.Total
}

// A Failing is a domain with failed sessions in the days of an overview.
type Failing struct {
	Domain           string
	Sessions, Failed uint64
	Since, Last      tlsrpt.Day // of the failures
	Policies         []tlsrpt.PolicyType
	Results          []tlsrpt.ResultType // of the failures
}

// Overview reads the overview.
func (s *Service) Overview() (o Overview, err error) {
	st, err := s.opened()
	if err != nil {
		return o, err
	}
	days, err := st.Days()
	if err != nil {
		return o, err
	}
	days = days[max(0, len(days)-overviewDays):]
	slices.Reverse(days)
	left, worst := overviewBytes, map[string]bool{}
	for _, day := range days {
		all, domains, read, err := st.Worst(day, overviewWorst, left)
		if err != nil {
			return o, err
		}
		left -= read
		o.Days = append(o.Days, DayTotal{day, all})
		for _, domain := range domains {
			worst[domain] = true
		}
	}
	o.Complete = left > 0
	for domain := range worst {
		f := Failing{Domain: domain}
		for _, day := range days {
			policies, err := st.Brief(day, domain, tlsrpt.MaxDetails)
			if err != nil {
				return o, err
			}
			f.add(day, policies)
		}
		o.Worst = append(o.Worst, f)
	}
	slices.SortFunc(o.Worst, func(a, b Failing) int {
		return cmp.Or(cmp.Compare(b.Failed, a.Failed), strings.Compare(a.Domain, b.Domain))
	})
	o.Worst = o.Worst[:min(len(o.Worst), overviewWorst)]
	return o, nil
}

// add adds a day, which is older than those before.
func (f *Failing) add(day tlsrpt.Day, policies []tlsrpt.Summary) {
	for _, p := range policies {
		f.Sessions, f.Failed = f.Sessions+p.Successful+p.Failed, f.Failed+p.Failed
		if p.Failed == 0 {
			continue
		}
		f.Since, f.Last = day, cmp.Or(f.Last, day)
		if !slices.Contains(f.Policies, p.Policy.Type) {
			f.Policies = append(f.Policies, p.Policy.Type)
		}
		for _, d := range p.Details {
			if !slices.Contains(f.Results, d.Result) {
				f.Results = append(f.Results, d.Result)
			}
		}
	}
}
