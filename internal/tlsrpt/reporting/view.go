package reporting

import (
	"errors"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

// This file: what an administrator sees of the sessions and reports.

const (
	viewPage    = 256 // domains read at once
	viewDetails = 20  // of a policy
)

// Errors of Views and Report.
var (
	ErrOff     = errors.New("TLS reports are off: see [tlsrpt] in the configuration")
	ErrNotOpen = errors.New("the store of TLS reports is not open")
	ErrNoData  = errors.New("no TLS session of the domain is known on that day")
)

// A View is a domain's day: its sessions, as a report has them but for the text of the
// policies, and its deliveries.
type View struct {
	Day        tlsrpt.Day      `json:"day"`
	Domain     string          `json:"domain"`
	Policies   []report.Result `json:"policies"`
	Deliveries []Delivery      `json:"deliveries,omitempty"`
}

// A Delivery is how far one report is.
type Delivery struct {
	To      string           `json:"to,omitempty"` // a URI; empty: not known yet, or nobody wants the report
	State   tlsrpt.StateKind `json:"state"`
	Reason  string           `json:"reason,omitempty"` // why it failed, or is not sent
	Next    time.Time        `json:"next,omitzero"`
	Changed time.Time        `json:"changed"`
}

// ready returns the store, with all that was written merged.
func (s *Service) ready() (*store.Store, error) {
	if s == nil {
		return nil, ErrOff
	}
	s.mu.Lock()
	st := s.store
	s.mu.Unlock()
	if st == nil {
		return nil, ErrNotOpen
	}
	return st, st.Merge()
}

// Views calls each with all days of a domain, or of all domains if it is empty, the
// oldest day first.
func (s *Service) Views(domain string, each func(View) error) error {
	st, err := s.ready()
	if err != nil {
		return err
	}
	days, err := st.Days()
	if err != nil {
		return err
	}
	for _, day := range days {
		names := []string{domain}
		for after, more := "", true; more; {
			if domain == "" {
				if names, err = st.Domains(day, after, viewPage); err != nil {
					return err
				}
			}
			more = domain == "" && len(names) == viewPage
			for _, after = range names {
				v, err := view(st, day, after)
				if err == nil && len(v.Policies) > 0 {
					err = each(v)
				}
				if err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// view reads a domain's day.
func view(st *store.Store, day tlsrpt.Day, domain string) (v View, err error) {
	known, err := st.Load(day, domain)
	if err != nil {
		return v, err
	}
	for i := range known.Policies { // they are long, and strangers write them
		p := &known.Policies[i]
		p.Policy.Strings, p.Policy.MXHosts, p.Details = nil, nil, p.Details[:min(len(p.Details), viewDetails)]
	}
	v = View{Day: day, Domain: domain, Policies: new(report.Reporter).Build(known, "").Policies}
	rows, err := statesOf(st, day, domain)
	for _, r := range rows {
		if r.Destination == "" && len(rows) > 1 {
			continue // its destinations say more
		}
		d := Delivery{To: r.Destination, State: r.Kind, Reason: r.Reason, Changed: r.Changed.UTC()}
		if r.Kind.Open() {
			d.Next = r.Next.UTC()
		}
		v.Deliveries = append(v.Deliveries, d)
	}
	return v, err
}

// statesOf returns a domain's own row and those of its destinations.
func statesOf(st *store.Store, day tlsrpt.Day, domain string) ([]tlsrpt.State, error) {
	rows, err := st.States(day, domain, 1+report.MaxDestinations) // a key after the domain's name is its own or a later one
	for i, r := range rows {
		if r.Domain != domain {
			return rows[:i], err
		}
	}
	return rows, err
}

// Report returns the report of a domain's day that was sent, or would be.
func (s *Service) Report(day tlsrpt.Day, domain string) (*report.Report, error) {
	st, err := s.ready()
	if err != nil {
		return nil, err
	}
	if !s.Config.Reports() {
		return nil, errors.New("no reports are sent: organization, contact and sender in [tlsrpt] are not set")
	}
	reporter, err := newReporter(s.Config)
	if err != nil {
		return nil, err
	}
	known, err := st.Load(day, domain)
	if err != nil {
		return nil, err
	}
	if len(known.Policies) == 0 {
		return nil, ErrNoData
	}
	rows, err := statesOf(st, day, domain)
	if err != nil {
		return nil, err
	}
	id := reporter.NewID(day, domain)
	if len(rows) > 0 && rows[0].ReportID != "" {
		id = rows[0].ReportID
	}
	return reporter.Build(known, id), nil
}

// Suppress has no reports sent to an address, or to an https URL, for a time from now;
// zero ends that. It returns the name under which the address is kept.
func (s *Service) Suppress(address string, long time.Duration) (name string, err error) {
	st, err := s.ready()
	if err != nil {
		return "", err
	}
	to, err := report.ParseAddress(address)
	if strings.Contains(address, ":") {
		to, err = report.ParseDestination(address)
	}
	if err != nil {
		return "", err
	}
	return to.Name(), st.Suppress(to.Name(), s.Now().Add(long))
}
