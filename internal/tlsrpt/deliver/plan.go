package deliver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
)

// The bounds of a day's plan.
const (
	maxBelowDomain = 10      // reports a day to one destination for the domains below one registrable domain
	maxDomains     = 100_000 // of a day; those with fewest sessions get no report
	maxCounted     = 150_000 // destinations outside their domains, and pairs of both; others get no report
)

// A candidate is a domain that may get a report.
type candidate struct {
	domain           string
	sessions, failed uint64
	err              error // the domain's day cannot be read
}

// plan writes the first rows of each domain of a day that has none yet: whether there is
// a report, where to, and when. It begins with the domains that have most sessions: they
// come first where a destination is named by too many.
func (d *Deliverer) plan(ctx context.Context, day tlsrpt.Day) error {
	candidates, err := d.candidates(ctx, day)
	if err != nil {
		return err
	}
	mailed, err := d.mailed(ctx, day)
	if err != nil {
		return err
	}
	q, err := d.newQuota(ctx, day)
	if err != nil {
		return err
	}
	var slow tally
	for batch := range slices.Chunk(candidates, page) {
		own, records := make([]tlsrpt.State, len(batch)), make([][]report.Destination, len(batch))
		var group errgroup.Group
		group.SetLimit(asksAtOnce)
		for i, c := range batch {
			if own[i] = d.decide(day, c, mailed[c.domain]); own[i].Kind.Open() {
				group.Go(func() error {
					var err error
					if records[i], err = d.record(ctx, c.domain, &slow); errors.Is(err, errNoRecord) {
						own[i] = closed(own[i], tlsrpt.Suppressed, reason(err))
					} else if err != nil {
						own[i].Reason = reason(err) // it is asked for when the report is due
					}
					return ctx.Err()
				})
			}
		}
		if err := group.Wait(); err != nil {
			return err
		}
		var rows []tlsrpt.State
		for i := range own {
			rows = append(rows, q.destined([]tlsrpt.State{own[i]}, records[i])...)
		}
		if err := d.put(rows...); err != nil {
			return err
		}
	}
	d.tellLeftOut(day, q)
	return nil
}

// candidates returns the domains of a day that have no row yet, those with most sessions
// first.
func (d *Deliverer) candidates(ctx context.Context, day tlsrpt.Day) (list []candidate, err error) {
	seen := 0
	cut := func() {
		slices.SortFunc(list, func(a, b candidate) int {
			return cmp.Or(cmp.Compare(b.sessions, a.sessions), strings.Compare(a.domain, b.domain))
		})
		list = slices.Delete(list, min(maxDomains, len(list)), len(list))
	}
	for domain, err := range Domains(d.Store, day) {
		if err = cmp.Or(err, ctx.Err()); err != nil {
			return nil, err
		}
		if rows, err := Rows(d.Store, day, domain); err != nil {
			return nil, err
		} else if len(rows) > 0 {
			continue
		}
		seen, list = seen+1, append(list, d.candidate(day, domain))
		if len(list) >= maxDomains+maxDomains/4 {
			cut()
		}
	}
	if cut(); seen > len(list) {
		d.Log.Warn("a day has too many domains: those with fewest sessions get no TLS report", "day", day, "domains", seen-len(list))
	}
	return list, nil
}

// candidate counts the sessions of a domain's day.
func (d *Deliverer) candidate(day tlsrpt.Day, domain string) (c candidate) {
	defer recoverInto(&c.err)
	c.domain = domain
	loaded, err := d.Store.Load(day, domain)
	c.err = err
	for _, s := range loaded.Policies {
		c.sessions += s.Successful + s.Failed
		c.failed += s.Failed
	}
	return c
}

// decide returns a domain's own row: whether there is a report, and when. Mailed is how
// many report mails we sent to the domain that day.
func (d *Deliverer) decide(day tlsrpt.Day, c candidate, mailed uint64) tlsrpt.State {
	now := time.Now()
	own := tlsrpt.State{Day: day, Domain: c.domain, Kind: tlsrpt.Suppressed, Sessions: c.sessions, Changed: now, Next: now}
	switch {
	case c.err != nil:
		own.Reason = reason(c.err) // the other domains' reports go out
	case d.Skip(c.domain):
		own.Reason = "skipped by the configuration"
	case d.FailuresOnly && c.failed == 0:
		own.Reason = "no failed session"
	case c.sessions <= mailed:
		// RFC 8460, 3: a report's own session is not to be in the next report. No MTA says
		// which session that was, so this is what can be known: there were no others. Else
		// two reporters that send each other only reports would go on for ever.
		own.Reason = fmt.Sprintf("%d sessions, no more than our %d report mails", c.sessions, mailed)
	default:
		own.Kind, own.ReportID = tlsrpt.Planned, d.Reporter.NewID(day, c.domain)
		if d.Window > 0 {
			own.Next = now.Add(rand.N(d.Window)) // RFC 8460, 4.1
		}
	}
	return own
}

// mailed counts the report mails that we handed over on a day, by the domain they went to.
func (d *Deliverer) mailed(ctx context.Context, day tlsrpt.Day) (map[string]uint64, error) {
	days, err := d.Store.Days()
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
	return count, err
}
