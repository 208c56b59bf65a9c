package deliver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
)

// ourMTA is the receiver of all mail in a tally: no name that a record can have.
const ourMTA = "mail"

// errNoRecord is the answer that a domain wants no reports.
var errNoRecord = errors.New("no usable record")

// record asks for a domain's TLSRPT record. The error wraps errNoRecord if that is the
// answer.
func (d *Deliverer) record(ctx context.Context, domain string, t *tally) (_ []report.Destination, err error) {
	defer recoverInto(&err)
	zone := "zone " + registrable(domain)
	if t.exhausted(zone) {
		return nil, fmt.Errorf("the record was not asked for: the name servers of the %s have just kept others waiting", zone)
	}
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	answer, err := d.Resolver.Query(ctx, report.RecordName(domain), resolver.TypeTXT)
	t.note(zone, start, err)
	if err != nil {
		return nil, err
	}
	destinations, err := report.FindRecord(answer.Texts)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoRecord, err)
	}
	return destinations, nil
}

// compressed returns the report of a domain's own row.
func (d *Deliverer) compressed(own tlsrpt.State) ([]byte, error) {
	d.loading.Lock()
	defer d.loading.Unlock()
	day, err := d.Store.Load(own.Day, own.Domain)
	if err != nil {
		return nil, err
	}
	return d.Reporter.Build(day, own.ReportID).Compress()
}

// attempt makes one attempt for the row of a destination. The error is from the store,
// or says that the pass has ended.
func (p *pass) attempt(row *tlsrpt.State, destinations []report.Destination, compressed func() ([]byte, error)) error {
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
	if p.slow.exhausted(receiver) || to.Address != "" && p.slow.exhausted(ourMTA) {
		*row = failed(*row, errors.New("not tried: others have just waited there in vain"), start)
		return nil
	}
	if err := p.put(*row); err != nil { // before the attempt
		return err
	}
	err := p.send(*row, to, compressed)
	if errors.Is(err, ErrNoMTA) {
		receiver = ourMTA
	}
	p.slow.note(receiver, start, err)
	switch {
	case err == nil:
		*row = closed(*row, tlsrpt.Accepted, "")
	case p.ctx.Err() != nil:
		return p.ctx.Err()
	default:
		*row = failed(*row, err, time.Now())
	}
	return nil
}

// send hands the report over once.
func (p *pass) send(row tlsrpt.State, to report.Destination, compressed func() ([]byte, error)) (err error) {
	defer recoverInto(&err)
	text, err := compressed()
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
	d.mu.Unlock()
	next := "no other attempt"
	if row.Kind == tlsrpt.Planned {
		next = "tried again at " + row.Next.UTC().Format(time.RFC3339)
	}
	if row.Reason != "" && d.lines.Allow() {
		d.Log.Info("a TLS report was not delivered", "domain", row.Domain, "day", row.Day, "to", row.Destination, "err", row.Reason, "next", next)
	}
}

// A tally counts slow failures by who caused them, so that a zone that never answers,
// or a receiver that holds connections open, does not hold up others for long.
type tally struct {
	mu    sync.Mutex
	count map[string]int
}

// exhausted reports whether who is left alone for now.
func (t *tally) exhausted(who string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.count[who] >= patience
}

// note counts err if it came late.
func (t *tally) note(who string, start time.Time, err error) {
	if err == nil || time.Since(start) < slow {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.count == nil {
		t.count = map[string]int{}
	}
	t.count[who]++
}
