package deliver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
)

// plan writes the first rows of each domain of a day that has none yet: whether there
// is a report, where to, and when.
func (d *Deliverer) plan(ctx context.Context, day tlsrpt.Day) error {
	mailed, err := d.mailed(ctx, day)
	if err != nil {
		return err
	}
	var zones tally
	var group errgroup.Group
	group.SetLimit(asksAtOnce)
	for after, more := "", true; more && err == nil; {
		var domains []string
		domains, err = d.Store.Domains(day, after, page)
		for _, domain := range domains {
			after = domain
			rows, failed := d.Store.States(day, domain, 1)
			if err = cmp.Or(failed, ctx.Err()); err != nil {
				break
			}
			if len(rows) > 0 && rows[0].Domain == domain {
				continue
			}
			group.Go(func() error {
				rows := d.begin(ctx, day, domain, mailed[domain], &zones)
				if ctx.Err() != nil {
					return ctx.Err()
				}
				return d.writer.put(rows...)
			})
		}
		more = len(domains) == page
	}
	return errors.Join(err, group.Wait())
}

// mailed counts the report mails that we handed over on a day, by the domain they went to.
func (d *Deliverer) mailed(ctx context.Context, day tlsrpt.Day) (map[string]uint64, error) {
	days, err := d.Store.Days()
	if err != nil {
		return nil, err
	}
	count := map[string]uint64{}
	for _, reported := range days {
		if reported >= day {
			break // reports of a day are sent after it
		}
		for rows, err := range d.domains(ctx, reported) {
			if err != nil {
				return nil, err
			}
			for _, row := range rows {
				address, mail := strings.CutPrefix(row.Destination, "mailto:")
				if mail && row.Kind == tlsrpt.Accepted && tlsrpt.DayOf(row.Changed) == day {
					count[address[strings.IndexByte(address, '@')+1:]]++
				}
			}
		}
	}
	return count, nil
}

// begin returns the first rows of a domain's day. Mailed is how many report mails we
// sent to the domain that day.
func (d *Deliverer) begin(ctx context.Context, day tlsrpt.Day, domain string, mailed uint64, zones *tally) []tlsrpt.State {
	own := tlsrpt.State{Day: day, Domain: domain, Kind: tlsrpt.Suppressed, Changed: time.Now()}
	sessions, failed, err := d.sessions(day, domain)
	own.Sessions = sessions
	switch {
	case err != nil:
		own.Reason = reason(err) // the other domains' reports go out
	case d.Skip(domain):
		own.Reason = "skipped by the configuration"
	case d.FailuresOnly && failed == 0:
		own.Reason = "no failed session"
	case sessions <= mailed:
		// Else two reporters that send each other only reports would go on for ever.
		own.Reason = fmt.Sprintf("%d sessions, no more than our %d report mails", sessions, mailed)
	default:
		own.Kind, own.ReportID = tlsrpt.Planned, d.Reporter.NewID(day, domain)
		return d.ask(ctx, own, zones)
	}
	return []tlsrpt.State{own}
}

// sessions counts the sessions of a domain's day, and the failed ones among them.
func (d *Deliverer) sessions(day tlsrpt.Day, domain string) (all, failed uint64, err error) {
	d.loading.Lock()
	defer d.loading.Unlock()
	defer recoverInto(&err)
	loaded, err := d.Store.Load(day, domain)
	for _, s := range loaded.Policies {
		all += s.Successful + s.Failed
		failed += s.Failed
	}
	return all, failed, err
}

// ask asks for the record of the domain of own, its row, and returns the domain's rows:
// own, and one for each destination.
func (d *Deliverer) ask(ctx context.Context, own tlsrpt.State, zones *tally) []tlsrpt.State {
	destinations, err := d.record(ctx, own.Domain, zones)
	now := time.Now()
	if err != nil {
		return []tlsrpt.State{failed(begun(own, now), err, now)}
	}
	own.Kind, own.Attempts, own.Begun, own.Reason = tlsrpt.Attempting, 0, time.Time{}, ""
	own.Changed, own.Next = now, now
	if d.Window > 0 {
		own.Next = now.Add(rand.N(d.Window)) // RFC 8460, 4.1
	}
	rows := []tlsrpt.State{own}
	for _, to := range destinations {
		row := own
		row.Destination, row.Kind = to.URI, tlsrpt.Planned
		rows = append(rows, row)
	}
	return rows
}

// errNoRecord is the answer that a domain wants no reports.
var errNoRecord = errors.New("no usable record")

// record asks for a domain's TLSRPT record. The error wraps errNoRecord if that is the
// answer.
func (d *Deliverer) record(ctx context.Context, domain string, zones *tally) (_ []report.Destination, err error) {
	defer recoverInto(&err)
	zone := registrable(domain)
	if zones.exhausted(zone) {
		return nil, fmt.Errorf("the record was not asked for: the name servers of %s have just kept others waiting", zone)
	}
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	answer, err := d.Resolver.Query(ctx, report.RecordName(domain), resolver.TypeTXT)
	zones.note(zone, start, err)
	if err != nil {
		return nil, err
	}
	destinations, err := report.FindRecord(answer.Texts)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoRecord, err)
	}
	return destinations, nil
}

// A writer gathers the rows of concurrent writes into one commit.
type writer struct {
	store  Store
	turn   sync.Mutex // held during a commit
	mu     sync.Mutex
	coming *commit // that rows are added to; nil: none
}

type commit struct {
	rows []tlsrpt.State
	done chan struct{}
	err  error
}

// put writes rows. They are on disk when it returns nil.
func (w *writer) put(rows ...tlsrpt.State) error {
	w.mu.Lock()
	c, first := w.coming, w.coming == nil
	if first {
		c = &commit{done: make(chan struct{}), err: errors.New("the store panicked")}
		w.coming = c
	}
	c.rows = append(c.rows, rows...)
	w.mu.Unlock()
	if first {
		w.write(c)
	}
	<-c.done
	return c.err
}

func (w *writer) write(c *commit) {
	w.turn.Lock()
	defer w.turn.Unlock()
	w.mu.Lock()
	w.coming = nil
	w.mu.Unlock()
	defer close(c.done)
	c.err = w.store.PutStates(c.rows)
}
