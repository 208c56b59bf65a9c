package deliver

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
)

// A pass makes an attempt for each row of a day that is due.
type pass struct {
	*Deliverer
	ctx        context.Context
	day        tlsrpt.Day
	due        func(tlsrpt.State) bool
	seen       func(tlsrpt.State) // is called with each row as it is then, one at a time
	suppressed map[string]time.Time
	slow       tally
	group      errgroup.Group

	mu    sync.Mutex
	quota *quota // nil: not needed yet
	left  int    // rows that stay open
}

func (d *Deliverer) newPass(ctx context.Context, day tlsrpt.Day, due func(tlsrpt.State) bool, seen func(tlsrpt.State)) (*pass, error) {
	suppressed, err := d.Store.Suppressed()
	p := &pass{Deliverer: d, ctx: ctx, day: day, due: due, seen: seen, suppressed: suppressed}
	p.group.SetLimit(sendsAtOnce)
	return p, err
}

// todo returns the rows that stand for what is to be done for a domain: its own until
// there are destinations.
func todo(rows []tlsrpt.State) []tlsrpt.State { return rows[min(1, len(rows)-1):] }

// add does what is due for a domain.
func (p *pass) add(rows []tlsrpt.State) {
	if slices.ContainsFunc(todo(rows), p.due) {
		p.start(rows)
	} else {
		p.see(rows)
	}
}

// start makes an attempt for a domain, in a goroutine.
func (p *pass) start(rows []tlsrpt.State) {
	p.group.Go(func() error {
		rows, err := p.work(rows)
		p.see(rows)
		return err
	})
}

func (p *pass) see(rows []tlsrpt.State) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, row := range todo(rows) {
		if p.seen(row); row.Kind.Open() {
			p.left++
		}
	}
}

// wait waits for all attempts, and returns how many rows stay open.
func (p *pass) wait(err error) (left int, _ error) {
	err = errors.Join(err, p.group.Wait())
	if p.quota != nil {
		p.tellLeftOut(p.day, p.quota)
	}
	return p.left, err
}

// destined is quota.destined, and stores what it adds: that the record names other
// destinations than before, or could not be asked for before.
func (p *pass) destined(rows []tlsrpt.State, destinations []report.Destination) (_ []tlsrpt.State, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.quota == nil {
		if p.quota, err = p.newQuota(p.ctx, p.day); err != nil {
			return rows, err
		}
	}
	rows = p.quota.destined(rows, destinations)
	return rows, p.put(rows...)
}

// work makes one attempt for each destination of a domain that is due, and returns the
// domain's rows as they are then. The error is from the store, or says that ctx has ended.
func (p *pass) work(rows []tlsrpt.State) (_ []tlsrpt.State, err error) {
	defer recoverInto(&err)
	destinations, noRecord := p.record(p.ctx, rows[0].Domain, &p.slow)
	if p.ctx.Err() != nil {
		return rows, p.ctx.Err()
	}
	if slices.ContainsFunc(destinations, func(to report.Destination) bool { return !known(rows, to) }) {
		if rows, err = p.destined(rows, destinations); err != nil {
			return rows, err
		}
	}
	compressed := sync.OnceValues(func() ([]byte, error) { return p.compressed(rows[0]) })
	for i := range todo(rows) {
		row := &todo(rows)[i]
		if !p.due(*row) {
			continue
		}
		if noRecord != nil {
			*row = failed(begun(*row, time.Now()), noRecord, time.Now())
		} else if err := p.attempt(row, destinations, compressed); err != nil {
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
