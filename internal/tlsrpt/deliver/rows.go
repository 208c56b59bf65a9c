package deliver

import (
	"cmp"
	"context"
	"iter"
	"slices"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
)

// maxRows is how many rows a domain has: some destinations more than a record names, if
// the record changed.
const maxRows = 1 + 2*report.MaxDestinations

// Domains returns the domains of a day, in order.
func Domains(s Store, day tlsrpt.Day) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for after, more := "", true; more; {
			names, err := s.Domains(day, after, page)
			if err != nil {
				yield("", err)
				return
			}
			for _, after = range names {
				if !yield(after, nil) {
					return
				}
			}
			more = len(names) == page
		}
	}
}

// Rows returns the rows of a domain's day: its own, and those of its destinations.
func Rows(s Store, day tlsrpt.Day, domain string) ([]tlsrpt.State, error) {
	rows, err := s.States(day, domain, maxRows) // a key that comes after the domain's name is its own or a later one
	if end := slices.IndexFunc(rows, func(row tlsrpt.State) bool { return row.Domain != domain }); end >= 0 {
		rows = rows[:end]
	}
	return rows, err
}

// domains returns the rows of each domain of a day: its own first, then those of its
// destinations. A row that is written meanwhile may be missed.
func (d *Deliverer) domains(ctx context.Context, day tlsrpt.Day) iter.Seq2[[]tlsrpt.State, error] {
	return func(yield func([]tlsrpt.State, error) bool) {
		var group []tlsrpt.State
		after := tlsrpt.State{}.Key() // the day's own row
		for more := true; more; {
			rows, err := d.Store.States(day, after, page)
			if err = cmp.Or(err, ctx.Err()); err != nil {
				yield(nil, err)
				return
			}
			for _, row := range rows {
				if len(group) > 0 && group[0].Domain != row.Domain {
					if !yield(group, nil) {
						return
					}
					group = nil
				}
				group, after = append(group, row), row.Key()
			}
			more = len(rows) == page
		}
		if len(group) > 0 {
			yield(group, nil)
		}
	}
}
