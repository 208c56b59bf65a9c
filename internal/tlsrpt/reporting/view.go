package reporting

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/deliver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

// This file: what an administrator sees of the sessions and reports.

const (
	viewDetails = 20   // of a policy
	viewsAtOnce = 1000 // domains that one transaction lists
)

// Errors of what an administrator asks for.
var (
	errOff     = errors.New("TLS reports are off: see [tlsrpt] in the configuration")
	errNotOpen = errors.New("the store of TLS reports has not been read yet")
	errNobody  = errors.New("no reports are sent: organization, contact and sender in [tlsrpt] are not set")
)

// A View is a domain's day: its sessions, as a report has them, but of the text of policies
// the mode alone; and its deliveries.
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
	st, err := s.opened()
	if err != nil {
		return nil, err
	}
	return st, st.Merge()
}

func (s *Service) opened() (*store.Store, error) {
	if s == nil {
		return nil, errOff
	}
	s.mu.Lock()
	st, why := s.store, cmp.Or(s.failing["configuration"], s.failing["store"], errNotOpen)
	s.mu.Unlock()
	if st == nil {
		return nil, why
	}
	return st, nil
}

// Views calls each with all days of a domain, or of all domains if it is empty, the
// oldest day first.
func (s *Service) Views(domain string, each func(View) error) error {
	st, err := s.ready()
	if err != nil {
		return err
	}
	days, err := st.Days()
	for _, day := range days {
		for after, whole := "", false; !whole && err == nil; {
			page := []string{domain}
			if whole = domain != ""; !whole {
				page = nil
				whole, err = st.EachDomain([]tlsrpt.Day{day}, after, func(name string, _ [][]tlsrpt.Summary) (more bool) {
					page = append(page, name)
					return len(page) < viewsAtOnce
				})
			}
			for _, after = range page { // each may be slow
				v, failed := view(st, day, after)
				if err = failed; err == nil && len(v.Policies) > 0 {
					err = each(v)
				}
				if err != nil {
					return err
				}
			}
		}
	}
	return err
}

// view reads a domain's day.
func view(st *store.Store, day tlsrpt.Day, domain string) (v View, err error) {
	policies, err := st.Brief(day, domain, viewDetails)
	if err != nil {
		return v, err
	}
	known := tlsrpt.DomainDay{Domain: domain, Day: day, Policies: policies}
	v = View{Day: day, Domain: domain, Policies: new(report.Reporter).Build(known, "").Policies}
	d, err := st.Delivery(day, domain)
	v.Deliveries = deliveries(d)
	return v, err
}

func deliveries(d tlsrpt.Delivery) (list []Delivery) {
	for _, r := range d.To {
		one := Delivery{To: r.URI, State: r.Kind, Reason: r.Reason, Changed: r.Changed.UTC()}
		if r.Kind.Open() {
			one.Next = d.Next.UTC()
		} else if d.Alone && d.Shared && r.Kind == tlsrpt.Accepted {
			one.Reason = "the fleet's report may have the same sessions"
		}
		list = append(list, one)
	}
	return list
}

// A Sent is a report that Send was asked for.
type Sent struct {
	Domain string `json:"domain"`
	Before bool   `json:"before,omitempty"` // it was accepted before, and not sent again
	Delivery
}

// Send delivers the reports of a closed day now, of one domain or of all if it is empty,
// and calls each with what came of it.
func (s *Service) Send(ctx context.Context, day tlsrpt.Day, domain string, each func(Sent)) error {
	if _, err := s.ready(); err != nil {
		return err
	}
	s.mu.Lock()
	d, why := s.deliverer, s.failing["reports"]
	s.mu.Unlock()
	switch {
	case !s.Config.Reports():
		return errNobody
	case d == nil:
		return cmp.Or(why, errNotOpen)
	}
	start := s.Now()
	return d.Send(ctx, day, domain, func(d tlsrpt.Delivery) {
		for _, one := range deliveries(d) {
			each(Sent{d.Domain, one.State == tlsrpt.Accepted && one.Changed.Before(start), one})
		}
	})
}

// Report returns the report of a domain's day that was sent, or would be.
func (s *Service) Report(day tlsrpt.Day, domain string) (*report.Report, error) {
	st, err := s.ready()
	if err != nil {
		return nil, err
	}
	if !s.Config.Reports() {
		return nil, errNobody
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
		return nil, deliver.ErrNoData
	}
	d, err := st.Delivery(day, domain)
	if err != nil {
		return nil, err
	}
	return reporter.Build(known, cmp.Or(d.ReportID, reporter.NewID(day, domain))), nil
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
