package deliver

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
)

// maxDomains bounds the domains of a day: there are reports for the first in their order.
const maxDomains = 100_000

// plan writes the first rows of each domain of a day that has none yet: whether there is
// a report, where to, and when. It begins with the domains that have most sessions: they
// come first where a destination is named by too many.
func (p *pass) plan() error {
	mailed, err := p.mailed(p.day)
	if err != nil {
		return err
	}
	type candidate struct {
		domain   string
		sessions uint64
	}
	var all []candidate
	over := 0
	err = Each(p.Store, p.day, func(domain string, rows []tlsrpt.State) error {
		switch {
		case len(rows) > 0: // planned before the daemon was ended
		case len(all) < maxDomains:
			sessions, _, _, _ := p.sessions(domain)
			all = append(all, candidate{domain, sessions})
		default:
			over++
		}
		return p.ctx.Err()
	})
	if err != nil {
		return err
	}
	if over > 0 {
		p.Log.Warn("TLS reports are left out: the day has too many domains", "day", p.day, "domains", over)
	}
	slices.SortFunc(all, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(b.sessions, a.sessions), strings.Compare(a.domain, b.domain))
	})
	for chunk := range slices.Chunk(all, page) {
		batch := make([]tlsrpt.State, len(chunk)) // the domains' own rows
		for i, c := range chunk {
			batch[i] = p.decide(c.domain, mailed)
		}
		records := make([][]report.Destination, len(batch))
		var group errgroup.Group
		group.SetLimit(asksAtOnce)
		for i := range batch {
			if own := &batch[i]; own.Kind.Open() {
				group.Go(func() (err error) {
					if records[i], err = p.record(own.Domain); errors.Is(err, errNoRecord) {
						*own = closed(*own, tlsrpt.Suppressed, reason(err))
					} else if err != nil {
						own.Reason = reason(err) // it is asked for again when the report is due
					}
					return p.ctx.Err()
				})
			}
		}
		if err := group.Wait(); err != nil {
			return err
		}
		var rows []tlsrpt.State
		for i, own := range batch {
			with, err := p.destined([]tlsrpt.State{own}, records[i])
			if err != nil {
				return err
			}
			rows = append(rows, with...)
		}
		if err := p.put(rows...); err != nil {
			return err
		}
	}
	return nil
}

// decide returns a domain's own row: whether there is a report, and when. Mailed is how
// many report mails we sent that day, by domain.
func (p *pass) decide(domain string, mailed map[string]uint64) tlsrpt.State {
	sessions, failed, looked, err := p.sessions(domain)
	own := tlsrpt.State{Day: p.day, Domain: domain, Kind: tlsrpt.Suppressed, Sessions: sessions, Changed: p.now, Next: p.now}
	switch {
	case err != nil:
		own.Reason = reason(err) // the other domains' reports go out
	case p.Skip(domain):
		own.Reason = "skipped by the configuration"
	case p.FailuresOnly && failed == 0:
		own.Reason = "no failed session"
	case own.Sessions-min(looked, mailed[domain]) <= mailed[domain]:
		// RFC 8460, 3: a report's own session is not to be in the next report. No MTA says
		// which session that was, so this is what can be known: there were no others, and of
		// failures that our own lookups count, no more than one for each mail. Else two
		// reporters that send each other only reports would go on for ever.
		own.Reason = fmt.Sprintf("%d sessions, no more than our %d report mails", own.Sessions, mailed[domain])
	default:
		own.Kind, own.ReportID = tlsrpt.Planned, p.Reporter.NewID(p.day, domain)
		if p.Window > 0 {
			own.Next = p.now.Add(rand.N(p.Window)) // RFC 8460, 4.1
		}
	}
	return own
}

// sessions counts the sessions of a domain's day, the failed ones among them, and the
// failures that our own lookups count, which come beside the session of a mail.
func (p *pass) sessions(domain string) (all, failed, looked uint64, err error) {
	day, err := p.Store.Load(p.day, domain)
	for _, s := range day.Policies {
		all += s.Successful + s.Failed
		failed += s.Failed
		for _, d := range s.Details {
			switch d.Failure.Result {
			case tlsrpt.STSPolicyFetchError, tlsrpt.STSPolicyInvalid, tlsrpt.STSWebPKIInvalid:
				looked += d.Sessions
			case tlsrpt.ValidationFailure:
				if d.Failure.Reason == tlsrpt.ReasonMXMismatch {
					looked += d.Sessions
				}
			}
		}
	}
	return all, failed, looked, err
}

// mailed counts the report mails that we handed over on a day, by the domain they went to.
func (d *Deliverer) mailed(day tlsrpt.Day) (map[string]uint64, error) {
	days, err := d.Store.Days()
	count := map[string]uint64{}
	for _, reported := range days {
		if reported >= day {
			break // reports of a day are sent after it
		}
		err = errors.Join(err, Each(d.Store, reported, func(_ string, rows []tlsrpt.State) error {
			for _, row := range rows {
				address, mail := strings.CutPrefix(row.Destination, "mailto:")
				if mail && row.Kind == tlsrpt.Accepted && tlsrpt.DayOf(row.Changed) == day {
					count[address[strings.IndexByte(address, '@')+1:]]++
				}
			}
			return nil
		}))
	}
	return count, err
}
