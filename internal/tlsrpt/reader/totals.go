package reader

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

// Totals adds reports up.
type Totals struct {
	Sessions, Failed uint64

	failures, policies, days map[string]sum // by the cells that are no numbers
}

// A sum is the numbers of a row, and what is said of its latest failure.
type sum struct {
	failed, sessions uint64
	last             string // day, and reason if there is one
}

const (
	maxRows = 20_000 // rows of each table; the numbers of further rows are in one more, (others)
	maxCell = 100    // bytes of a cell, before it is made printable
)

// cells makes a stranger's words the cells of a row.
func cells(words ...string) string {
	cells := make([]string, len(words))
	for i, w := range words {
		cells[i] = text.Printable(text.Cut(cmp.Or(strings.TrimSpace(w), "-"), maxCell))
	}
	return strings.Join(cells, "\t")
}

// Add adds a report.
func (t *Totals) Add(r *Report) {
	day := string(r.Day())
	for i := range r.Policies {
		p := &r.Policies[i]
		domain := strings.TrimSuffix(strings.ToLower(p.Policy.Domain), ".")
		failed := count(p.Summary.Failed)
		for _, d := range p.Details {
			s := sum{failed: count(d.Sessions), last: cells(day, d.Reason)}
			failed = max(failed, s.failed) // a summary may leave out what the details count
			add(&t.failures, cells(domain, p.Policy.Type, strings.ToLower(d.Result), cmp.Or(d.MXHost, d.ReceivingIP), r.Organization), s)
		}
		s := sum{failed: failed, sessions: failed + count(p.Summary.Successful)}
		add(&t.policies, cells(domain, p.Policy.Type, r.Organization), s)
		add(&t.days, cells(day), s)
		t.Failed, t.Sessions = t.Failed+s.failed, t.Sessions+s.sessions
	}
}

func add(table *map[string]sum, row string, s sum) {
	if *table == nil {
		*table = map[string]sum{}
	}
	if _, ok := (*table)[row]; !ok && len(*table) >= maxRows {
		row = "(others)" + strings.Repeat("\t-", strings.Count(row, "\t"))
	}
	known := (*table)[row]
	(*table)[row] = sum{known.failed + s.failed, known.sessions + s.sessions, max(known.last, s.last)}
}

// WriteText writes three tables: the ways of failure and the policies, the worst first,
// and the days, the latest first. An empty line follows each.
func (t *Totals) WriteText(w io.Writer) error {
	columns := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	write := func(table map[string]sum, latest bool, head, line string) {
		rows := slices.SortedFunc(maps.Keys(table), func(x, y string) int {
			a, b := table[x], table[y]
			if latest {
				return strings.Compare(y, x)
			}
			return cmp.Or(cmp.Compare(b.failed, a.failed), cmp.Compare(b.sessions, a.sessions), strings.Compare(x, y))
		})
		if len(rows) == 0 {
			return
		}
		fmt.Fprintln(columns, head)
		for _, row := range rows {
			s := table[row]
			fmt.Fprintf(columns, line, s.failed, s.sessions, row, s.last)
		}
		fmt.Fprintln(columns)
	}
	write(t.failures, false, "FAILED\tDOMAIN\tPOLICY\tRESULT\tHOST\tSENDER\tLAST\tREASON", "%[1]d\t%[3]s\t%[4]s\n")
	write(t.policies, false, "FAILED\tSESSIONS\tDOMAIN\tPOLICY\tSENDER", "%[1]d\t%[2]d\t%[3]s\n")
	write(t.days, true, "FAILED\tSESSIONS\tDAY", "%[1]d\t%[2]d\t%[3]s\n")
	return columns.Flush()
}
