package deliver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

// ErrNoData says that nothing is known of a day, or of a domain's.
var ErrNoData = errors.New("no TLS session of that day is known")

// closesAfter is how long after its end the store closes a day.
const closesAfter = 10 * time.Minute

// Send delivers the reports of a closed day at once, of one domain or of all if it is
// empty: also before their moment, and once more if they failed or were suppressed. What
// was accepted stays so. It calls each, one at a time, with the rows of all destinations as
// they are then, and returns when all attempts have ended. While Run works, it waits.
func (d *Deliverer) Send(ctx context.Context, day tlsrpt.Day, domain string, each func(tlsrpt.State)) (err error) {
	defer recoverInto(&err)
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	notOver := fmt.Errorf("%s is not over yet: its reports can be sent after %s", day, day.End().Add(closesAfter).Format(time.RFC3339))
	if time.Now().Before(day.End()) {
		return notOver
	}
	days, err := d.Store.Days()
	if err != nil || !slices.Contains(days, day) {
		return cmp.Or(err, ErrNoData)
	}
	own, err := d.begin(ctx, day)
	if err != nil {
		return err
	}
	if own.Kind == tlsrpt.Planned {
		return notOver
	}
	mailed, err := d.mailed(ctx, day)
	if err != nil {
		return err
	}
	own.Kind = tlsrpt.Attempting // for Run: there may be something to do again
	if err := d.put(own); err != nil {
		return err
	}
	p, err := d.newPass(ctx, day, func(row tlsrpt.State) bool { return row.Kind.Open() }, each)
	if err != nil {
		return err
	}
	if domain == "" {
		for rows, failed := range d.domains(ctx, day) {
			if err = failed; err != nil {
				break
			}
			p.again(rows, mailed)
		}
	} else if rows, failed := Rows(d.Store, day, domain); failed != nil || len(rows) == 0 {
		err = cmp.Or(failed, ErrNoData)
	} else {
		p.again(rows, mailed)
	}
	_, err = p.wait(err)
	return err
}

// again makes an attempt for each destination of a domain that has not accepted the
// report, as if there had been none.
func (p *pass) again(rows []tlsrpt.State, mailed map[string]uint64) {
	accepted := func(row tlsrpt.State) bool { return row.Kind == tlsrpt.Accepted }
	if len(rows) > 1 && !slices.ContainsFunc(rows[1:], func(row tlsrpt.State) bool { return !accepted(row) }) {
		p.see(rows)
		return
	}
	domain := rows[0].Domain
	own := p.decide(p.day, p.candidate(p.day, domain), mailed[domain])
	if !own.Kind.Open() {
		p.see([]tlsrpt.State{own})
		return
	}
	own.ReportID, own.Next = cmp.Or(rows[0].ReportID, own.ReportID), own.Changed
	fresh := []tlsrpt.State{own}
	for _, row := range rows[1:] {
		switch {
		case accepted(row):
			fresh = append(fresh, row)
		case row.Kind != tlsrpt.Suppressed: // else the quota decides anew
			own.Destination = row.Destination
			fresh = append(fresh, own)
		}
	}
	if len(fresh) > 1 {
		fresh[0].Kind = tlsrpt.Attempting
	}
	p.start(fresh)
}
