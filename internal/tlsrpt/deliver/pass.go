package deliver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
)

// ourMTA is the receiver of all mail in a tally: no name that a record can have.
const ourMTA = "mail"

// A pass is one look at all rows of a day.
type pass struct {
	*Deliverer
	now              time.Time
	suppressed       map[string]time.Time
	zones, receivers tally

	mu   sync.Mutex
	left look
	late bool // destinations became known that rank has not seen
}

// pass delivers what is due of a day, and returns what is left.
func (d *Deliverer) pass(ctx context.Context, day tlsrpt.Day) (look, error) {
	suppressed, err := d.Store.Suppressed()
	if err != nil {
		return look{}, err
	}
	p := &pass{Deliverer: d, now: time.Now(), suppressed: suppressed}
	var group errgroup.Group
	group.SetLimit(sendsAtOnce)
	for rows, failed := range d.domains(ctx, day) {
		if err = failed; err != nil {
			break
		}
		if !p.someDue(rows) {
			p.see(rows)
			continue
		}
		group.Go(func() error {
			rows, err := p.work(ctx, rows)
			p.see(rows)
			return err
		})
	}
	err = errors.Join(err, group.Wait())
	d.ranked[day] = d.ranked[day] && !p.late
	return p.left, err
}

// see adds the open rows of a domain to what is left.
func (p *pass) see(rows []tlsrpt.State) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, row := range rows {
		if !open(row) || row.Destination == "" && row.Kind == tlsrpt.Attempting {
			continue
		}
		if p.left.open++; p.left.open == 1 || row.Next.Before(p.left.first) {
			p.left.first = row.Next
		}
	}
}

func open(row tlsrpt.State) bool { return row.Kind.Open() }

func (p *pass) due(row tlsrpt.State) bool { return open(row) && !row.Next.After(p.now) }

// someDue reports whether there is something to do for a domain.
func (p *pass) someDue(rows []tlsrpt.State) bool {
	if rows[0].Kind == tlsrpt.Attempting {
		return slices.ContainsFunc(rows[1:], p.due) || !slices.ContainsFunc(rows[1:], open)
	}
	return p.due(rows[0])
}

// work does what is due for a domain, and returns its rows as they are then.
func (p *pass) work(ctx context.Context, rows []tlsrpt.State) (_ []tlsrpt.State, err error) {
	defer recoverInto(&err)
	if rows[0].Kind == tlsrpt.Planned {
		asked := p.ask(ctx, rows[0], &p.zones)
		if ctx.Err() != nil {
			return rows, ctx.Err()
		}
		p.mu.Lock()
		p.late = p.late || len(asked) > 1
		p.mu.Unlock()
		return asked, p.writer.put(asked...)
	}
	s := p.newShipment(ctx, rows[0])
	for i, row := range rows[1:] {
		if p.due(row) {
			if row, err = s.deliver(ctx, row); err != nil {
				return rows, err
			}
			rows[i+1] = row
			rows[0] = concluded(rows[0], rows[1:])
			if err := p.writer.put(rows[0], row); err != nil {
				return rows, err
			}
			p.told(row)
		}
	}
	if own := concluded(rows[0], rows[1:]); own.Kind != rows[0].Kind { // else no row was due
		return rows, p.writer.put(own)
	}
	return rows, nil
}

// told counts and logs what came of an attempt.
func (d *Deliverer) told(row tlsrpt.State) {
	d.mu.Lock()
	d.stats.Reports[row.Kind]++
	d.mu.Unlock()
	next := "no other attempt"
	if row.Kind == tlsrpt.Planned {
		next = "tried again at " + row.Next.UTC().Format(time.RFC3339)
	}
	if row.Reason != "" && d.lines.Allow() {
		d.Log.Info("a TLS report was not delivered", "domain", row.Domain, "day", row.Day, "to", row.Destination, "err", row.Reason, "next", next)
	}
}

// A shipment is a domain's report on its way to the destinations that are due.
type shipment struct {
	*pass
	record     func() ([]report.Destination, error) // asked for once
	compressed func() ([]byte, error)               // built once
}

func (p *pass) newShipment(ctx context.Context, own tlsrpt.State) *shipment {
	return &shipment{
		pass:   p,
		record: sync.OnceValues(func() ([]report.Destination, error) { return p.Deliverer.record(ctx, own.Domain, &p.zones) }),
		compressed: sync.OnceValues(func() ([]byte, error) {
			p.loading.Lock()
			defer p.loading.Unlock()
			day, err := p.Store.Load(own.Day, own.Domain)
			if err != nil {
				return nil, err
			}
			return p.Reporter.Build(day, own.ReportID).Compress()
		}),
	}
}

// deliver makes one attempt for a row, and returns what the row has become. The error is
// from the store, or says that ctx has ended.
func (s *shipment) deliver(ctx context.Context, row tlsrpt.State) (tlsrpt.State, error) {
	destinations, err := s.record()
	if ctx.Err() != nil {
		return row, ctx.Err()
	}
	at := slices.IndexFunc(destinations, func(to report.Destination) bool { return to.URI == row.Destination })
	switch {
	case err != nil:
		return failed(begun(row, time.Now()), err, time.Now()), nil
	case at < 0:
		return closed(row, tlsrpt.Suppressed, "the record no longer names it"), nil
	case s.suppressed[destinations[at].Name()].After(s.now):
		return closed(row, tlsrpt.Suppressed, "suppressed by the administrator"), nil
	}
	to := destinations[at]
	who := registrable(to.Host)
	start := time.Now()
	row = begun(row, start)
	if s.receivers.exhausted(who) || to.Address != "" && s.receivers.exhausted(ourMTA) {
		return failed(row, errors.New("not tried: others have just waited there in vain"), start), nil
	}
	if err := s.writer.put(row); err != nil { // before the attempt
		return row, err
	}
	err = s.send(ctx, row, to)
	if errors.Is(err, ErrNoMTA) {
		who = ourMTA
	}
	s.receivers.note(who, start, err)
	switch {
	case err == nil:
		return closed(row, tlsrpt.Accepted, ""), nil
	case ctx.Err() != nil:
		return row, ctx.Err()
	}
	return failed(row, err, time.Now()), nil
}

// send hands the report over once.
func (s *shipment) send(ctx context.Context, row tlsrpt.State, to report.Destination) (err error) {
	defer recoverInto(&err)
	compressed, err := s.compressed()
	switch {
	case errors.Is(err, report.ErrTooLarge):
		return fmt.Errorf("%w: %w", ErrRefused, err)
	case err != nil:
		return err
	case to.Address == "":
		return s.Post(ctx, to.URI, compressed)
	}
	message, err := s.Reporter.Message(report.Mail{
		To: to.Address, Day: row.Day, Domain: row.Domain, ID: row.ReportID, Compressed: compressed, Date: time.Now(),
	})
	if err != nil {
		return err
	}
	return s.Mail(ctx, s.Reporter.Sender(), to.Address, message)
}
