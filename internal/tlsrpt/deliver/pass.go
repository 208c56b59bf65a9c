package deliver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
)

// A pass is one look at a day.
type pass struct {
	*Deliverer
	ctx        context.Context
	day        tlsrpt.Day
	now        time.Time
	own        tlsrpt.State // of the day
	seen       func(tlsrpt.State)
	suppressed map[string]time.Time
	quota      func() (*quota, error)
	group      errgroup.Group

	mu   sync.Mutex
	slow map[string]int // failures that took long, by who caused them
	left int            // rows that stay open
}

// begin returns a pass of a day. The day's own row is planned before the day is closed,
// attempting when its domains are planned, accepted when nothing is left to do.
func (d *Deliverer) begin(ctx context.Context, day tlsrpt.Day) (p *pass, err error) {
	p = &pass{Deliverer: d, ctx: ctx, day: day, now: time.Now(), seen: func(tlsrpt.State) {}, slow: map[string]int{}}
	p.own = tlsrpt.State{Day: day, Kind: tlsrpt.Planned, Changed: p.now}
	p.quota = sync.OnceValues(func() (*quota, error) { return d.newQuota(day) })
	p.group.SetLimit(sendsAtOnce)
	if over, err := d.Store.Closed(day, p.now); err != nil || !over {
		return p, err
	}
	if p.suppressed, err = d.Store.Suppressed(); err != nil {
		return p, err
	}
	if rows, err := d.Store.States(day, ""); err != nil || len(rows) > 0 {
		p.own = append(rows, p.own)[0]
		return p, err
	}
	if err := p.plan(); err != nil {
		return p, err
	}
	p.own.Kind = tlsrpt.Attempting
	return p, d.put(p.own)
}

// todo returns the rows that stand for what is to be done for a domain: its own until
// there are destinations.
func todo(rows []tlsrpt.State) []tlsrpt.State { return rows[min(1, max(0, len(rows)-1)):] }

func (p *pass) due(row tlsrpt.State) bool { return row.Kind.Open() && !row.Next.After(p.now) }

// start works for a domain in a goroutine.
func (p *pass) start(rows []tlsrpt.State) {
	p.group.Go(func() error {
		rows, err := p.work(rows)
		p.see(rows)
		return err
	})
}

// see takes note of a domain's rows when the pass is through with them.
func (p *pass) see(rows []tlsrpt.State) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, row := range todo(rows) {
		if p.seen(row); row.Kind.Open() {
			p.left++
		}
	}
}

// again works for a domain as if no attempt had been made but those that were accepted.
func (p *pass) again(rows []tlsrpt.State, mailed map[string]uint64) {
	accepted := func(row tlsrpt.State) bool { return row.Kind == tlsrpt.Accepted }
	if !slices.ContainsFunc(rows, func(row tlsrpt.State) bool { return !accepted(row) }) {
		p.see(rows)
		return
	}
	own := p.decide(rows[0].Domain, mailed)
	if !own.Kind.Open() {
		p.see([]tlsrpt.State{own})
		return
	}
	if own.Next = p.now; rows[0].ReportID != "" {
		own.ReportID = rows[0].ReportID
	}
	for i := range rows {
		if row := &rows[i]; i == 0 || !accepted(*row) && row.Reason != tooMany {
			own.Destination = row.Destination
			*row = own
		}
	}
	if len(rows) > 1 {
		rows[0].Kind = tlsrpt.Attempting
	}
	p.start(rows)
}

// destined adds to a domain's rows those of destinations that have none yet.
func (p *pass) destined(rows []tlsrpt.State, destinations []report.Destination) ([]tlsrpt.State, error) {
	for _, to := range destinations {
		if len(rows) > report.MaxDestinations || slices.ContainsFunc(rows, func(row tlsrpt.State) bool { return row.Destination == to.URI }) {
			continue
		}
		q, err := p.quota()
		if err != nil {
			return rows, err
		}
		row := rows[0]
		row.Destination, row.Kind, row.Reason = to.URI, tlsrpt.Planned, ""
		if !q.take(row.Domain, to) {
			row = closed(row, tlsrpt.Suppressed, tooMany)
			p.tell(row)
		}
		rows = append(rows, row)
	}
	if len(rows) > 1 {
		rows[0].Kind, rows[0].Reason = tlsrpt.Attempting, ""
		rows[0] = concluded(rows)
	}
	return rows, nil
}

// work makes one attempt for each destination of a domain that is due, and returns the
// domain's rows as they are then. The error is from the store, or says that ctx has ended.
func (p *pass) work(rows []tlsrpt.State) (_ []tlsrpt.State, err error) {
	defer recoverInto(&err)
	destinations, noRecord := p.record(rows[0].Domain)
	if p.ctx.Err() != nil {
		return rows, p.ctx.Err()
	}
	if known := len(rows); noRecord == nil {
		if rows, err = p.destined(rows, destinations); err == nil && len(rows) > known {
			err = p.put(rows...)
		}
		if err != nil {
			return rows, err
		}
	}
	for i := range todo(rows) {
		row := &todo(rows)[i]
		if !p.due(*row) {
			continue
		}
		if noRecord != nil {
			*row = failed(begun(*row, time.Now()), noRecord, time.Now())
		} else if err := p.attempt(row, destinations); err != nil {
			return rows, err
		}
		rows[0] = concluded(rows)
		if err := p.put(rows[0], *row); err != nil {
			return rows, err
		}
		p.tell(*row)
	}
	return rows, nil
}

// errNoRecord is the answer that a domain wants no reports.
var errNoRecord = errors.New("no usable record")

// record asks for a domain's TLSRPT record. The error wraps errNoRecord if that is the
// answer.
func (p *pass) record(domain string) (_ []report.Destination, err error) {
	defer recoverInto(&err)
	zone := "zone " + registrable(domain)
	if p.exhausted(zone) {
		return nil, fmt.Errorf("the record was not asked for: the name servers of the %s have just kept others waiting", zone)
	}
	start := time.Now()
	ctx, cancel := context.WithTimeout(p.ctx, askTime)
	defer cancel()
	answer, err := p.Resolver.Query(ctx, report.RecordName(domain), resolver.TypeTXT)
	if err != nil {
		p.note(zone, start)
		return nil, err
	}
	destinations, err := report.FindRecord(answer.Texts)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoRecord, err)
	}
	return destinations, nil
}

// compressed returns the report of a row.
func (p *pass) compressed(row tlsrpt.State) ([]byte, error) {
	p.loading.Lock()
	defer p.loading.Unlock()
	day, err := p.Store.Load(row.Day, row.Domain)
	if err != nil {
		return nil, err
	}
	return p.Reporter.Build(day, row.ReportID).Compress()
}

// ourMTA stands for the receiver of all mail: no name that a record can have.
const ourMTA = "mail"

// attempt makes one attempt for the row of a destination. The error is from the store,
// or says that the pass has ended.
func (p *pass) attempt(row *tlsrpt.State, destinations []report.Destination) error {
	at := slices.IndexFunc(destinations, func(to report.Destination) bool { return to.URI == row.Destination })
	if at < 0 {
		*row = closed(*row, tlsrpt.Suppressed, "the record no longer names it")
		return nil
	}
	to, start := destinations[at], time.Now()
	if p.suppressed[to.Name()].After(start) {
		*row = closed(*row, tlsrpt.Suppressed, "suppressed by the administrator")
		return nil
	}
	*row = begun(*row, start)
	receiver := registrable(to.Host)
	if p.exhausted(receiver) || to.Address != "" && p.exhausted(ourMTA) {
		*row = failed(*row, errors.New("not tried: others have just waited there in vain"), start)
		return nil
	}
	if err := p.put(*row); err != nil { // before the attempt
		return err
	}
	err := p.send(*row, to)
	switch {
	case err == nil:
		*row = closed(*row, tlsrpt.Accepted, "")
		return nil
	case p.ctx.Err() != nil:
		return p.ctx.Err()
	case errors.Is(err, ErrNoMTA):
		receiver = ourMTA
	}
	p.note(receiver, start)
	*row = failed(*row, err, time.Now())
	return nil
}

// send hands the report over once.
func (p *pass) send(row tlsrpt.State, to report.Destination) (err error) {
	defer recoverInto(&err)
	text, err := p.compressed(row)
	switch {
	case errors.Is(err, report.ErrTooLarge):
		return fmt.Errorf("%w: %w", ErrRefused, err)
	case err != nil:
		return err
	case to.Address == "":
		return p.Post(p.ctx, to.URI, text)
	}
	message, err := p.Reporter.Message(report.Mail{
		To: to.Address, Day: row.Day, Domain: row.Domain, ID: row.ReportID, Compressed: text, Date: time.Now(),
	})
	if err != nil {
		return err
	}
	return p.Mail(p.ctx, p.Reporter.Sender(), to.Address, message)
}

// tell counts and logs what came of an attempt.
func (d *Deliverer) tell(row tlsrpt.State) {
	d.mu.Lock()
	d.stats.Reports[row.Kind]++
	if row.Reason == tooMany {
		d.stats.LeftOut = time.Now()
	}
	d.mu.Unlock()
	next := "no other attempt"
	if row.Kind == tlsrpt.Planned {
		next = "tried again at " + row.Next.UTC().Format(time.RFC3339)
	}
	if row.Reason != "" && d.lines.Allow() {
		d.Log.Info("a TLS report was not delivered", "domain", row.Domain, "day", row.Day, "to", row.Destination, "err", row.Reason, "next", next)
	}
}

// note counts a failure if it came late. A zone that never answers, or a receiver that
// holds connections open, must not hold up others for long.
func (p *pass) note(who string, start time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(start) >= slow {
		p.slow[who]++
	}
}

// exhausted reports whether who is left alone for now.
func (p *pass) exhausted(who string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.slow[who] >= patience
}
